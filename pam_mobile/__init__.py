"""Path-adaptive matting: one network, any compute budget, from training to phone artifacts."""

__version__ = "0.1.0"
