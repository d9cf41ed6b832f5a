"""Describing folders of images and labels as they are, for ``dnas data init``."""

from __future__ import annotations

from dnas.data.discovery.describe import Description, InitOptions, describe_folder

__all__ = ["Description", "InitOptions", "describe_folder"]
