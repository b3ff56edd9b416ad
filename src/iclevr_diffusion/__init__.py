"""Conditional diffusion on i-CLEVR: from a list of labels to an image of exactly those."""

__version__ = "0.1.0"
