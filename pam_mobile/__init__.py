"""Path-adaptive matting."""
