"""Conditional diffusion on i-CLEVR: from a list of labels to a picture with exactly those objects."""

__version__ = "0.1.0"
