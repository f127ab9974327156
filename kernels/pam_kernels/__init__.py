"""The two operators of path-adaptive matting: large-kernel depthwise convolution and the connect layer.

Needs torch only. Triton kernels stand behind the same names and run where they were measured to be faster: see dispatch.py.
"""

from .connect import Connect as Connect
from .connect import connect as connect
from .depthwise import DepthwiseConv2d as DepthwiseConv2d
from .depthwise import depthwise_conv2d as depthwise_conv2d
