"""Procedural road scenes: :mod:`layout` draws a street, :mod:`backdrop` what stands still, :mod:`things` the rest."""

from __future__ import annotations

from dnas.data.streets.dataset import DEFAULT_SIZE, StreetsDataset, render_street

__all__ = ["DEFAULT_SIZE", "StreetsDataset", "render_street"]
