"""Metrics of matting, and the evaluation of a model on a folder of images."""
