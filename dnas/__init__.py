"""Differentiable neural architecture search of real-time semantic segmentation networks."""

__version__ = "0.1.0"
