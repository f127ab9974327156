"""Depthwise convolution with odd square kernels and same padding."""

from .op import DepthwiseConv2d as DepthwiseConv2d
from .op import depthwise_conv2d as depthwise_conv2d
