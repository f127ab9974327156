"""Training in stages: 1 the whole network, 2 random paths. Stage 3, path learning, will join them in `stages.py`."""
