"""The connect layer: a pointwise residual bottleneck that stands in for bypassed blocks."""

from .op import Connect as Connect
from .op import connect as connect
