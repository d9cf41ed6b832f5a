"""Procedural road scenes: :mod:`layout` samples a street, :mod:`backdrop` renders it, :mod:`things` adds objects."""

from __future__ import annotations

from dnas.data.streets.dataset import DEFAULT_SIZE, StreetsDataset, render_street

__all__ = ["DEFAULT_SIZE", "StreetsDataset", "render_street"]
