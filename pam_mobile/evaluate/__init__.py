"""Metrics of matting, and tables of models and baselines on folders of images and on held-out composites."""
