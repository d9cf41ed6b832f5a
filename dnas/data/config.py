"""The configuration of a dataset, and its presets."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from typing_extensions import Self

from dnas.config import Field, apply_overrides, config, parse_config
from dnas.data.masks import MaskReading
from dnas.data.orientation import Orientation
from dnas.data.stored import MAX_PIXELS, PILLOW_MAX_PIXELS
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.presets import preset_files, read_preset

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

DatasetName = Literal[
    "streets",
    "rectangles",
    "camvid",
    "camvid701",
    "camvid701_unmerged",
    "cityscapes",
    "bdd100k",
    "ade20k",
    "coco_stuff",
    "voc",
    "mapillary",
    "mapillary_v2",
    "folder",
    "files",
]
Split = Literal["train", "val", "test"]

BUILT_IN: tuple[DatasetName, ...] = ("streets", "rectangles")
"""Datasets that are generated and need no files."""

CacheKind = bool | Literal["memory", "disk"]
"""Where decoded images are kept; true is "memory"."""

_Side = Annotated[int, Field(ge=8, le=16384)]


@config
class DataConfig:
    """A dataset and how to read it.

    dataset: its name; streets and rectangles are generated, the others read files below ``root``.
    root: folder of a dataset of files.
    size: (height, width) to which images and masks are resized, or at which images are generated; null is the size of
        the files, or the default of a generated dataset.
    images: number of images of each split of a generated dataset; a missing split has its default.
    seed: seed of generated images.
    cache: where the resized uint8 images are kept after their first reading: "memory" (or true), shared between worker
        processes, for which files need a ``size``; "disk", for files, which lasts beyond the process; or nowhere.
    cache_dir: folder of the cache on disk; null is ``dnas/images`` in the user's folder of caches. It may be deleted.
    classes: the classes file of ``folder`` and ``files``; null is ``root/classes.yaml``.
    listing: the table of ``files`` with the columns split, image and mask; null is ``root/files.csv``.
    masks: whether the stored values of masks or their colours decide; null accepts both where they do not contradict
        each other.
    range: the image values that become 0 and 255, for files of more than 8 bits; null is the whole range of 16 bits
        where a file uses it.
    orientation: where the EXIF orientation of an image and that of its mask differ: "turned" if they fit each other as
        viewers show them, "stored" if they fit as stored, and the mask is turned like the image; null refuses such
        masks unless only the first is possible.
    channels: of the images; 3 is RGB.
    mean, std: of each channel in 0..1, which replace those of the training settings; null leaves them.
    max_pixels: files whose header gives more pixels are refused, before anything of that size is allocated.
    """

    dataset: DatasetName
    root: str | None = None
    size: tuple[_Side, _Side] | None = None
    images: dict[Split, Annotated[int, Field(ge=1)]] | None = None
    seed: int = Field(default=0, ge=0)
    cache: CacheKind = False
    cache_dir: str | None = None
    classes: str | None = None
    listing: str | None = None
    masks: MaskReading | None = None
    range: tuple[float, float] | None = None
    orientation: Orientation | None = None
    channels: int = Field(default=3, ge=1, le=64)
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=PILLOW_MAX_PIXELS)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.dataset in BUILT_IN:
            if self.root is not None:
                raise ValueError(f"{self.dataset} is generated and takes no root")
        elif not self.root:
            raise ValueError(f"{self.dataset} needs a root, the folder of its files (on the command line: NAME:DIR)")
        elif self.images is not None:
            raise ValueError("images is for generated datasets; a dataset of files uses all its images")
        elif self.cache in (True, "memory") and self.size is None:
            raise ValueError("cache needs a size, as all images in memory have the same size; set it, or cache: disk")
        if self.cache == "disk" and self.dataset in BUILT_IN:
            raise ValueError(f"cache: disk is for files; the images of {self.dataset} can be kept in memory")
        if self.cache_dir is not None and self.cache != "disk":
            raise ValueError("cache_dir is for cache: disk")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: given {list(self.range)}, expected the smaller value first")
        if self.classes is not None and self.dataset not in ("folder", "files"):
            raise ValueError(f"classes is for folder and files, the classes of {self.dataset} are fixed")
        if self.listing is not None and self.dataset != "files":
            raise ValueError(f"listing is for files, not for {self.dataset}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(
                    f"{name}: given {len(values)} values, expected one for each of {self.channels} channels"
                )
        if self.channels != 3 and (self.mean is None or self.std is None):
            raise ValueError(
                f"channels {self.channels} needs mean and std of each channel, which dnas data init measures"
            )
        return self


def preset_names() -> tuple[str, ...]:
    """Names of the data presets, sorted."""
    return tuple(_presets())


def load_data_config(data: str, overrides: Iterable[str] = ()) -> DataConfig:
    """The configuration for ``data``: a preset, a YAML file, or ``NAME:DIR`` (a preset with the folder of its files).

    A folder stands for its ``data.yaml``.

    Paths become absolute, so that a run can be resumed from any directory: DIR is relative to the working directory,
    paths in a YAML file are relative to the folder of that file. ``overrides`` are ``key=value`` strings.
    Raises :class:`UserError` for unknown data and invalid values.
    """
    name, colon, folder = data.partition(":")
    if name in preset_names():
        return _from_preset(name, folder if colon else None, overrides)
    if Path(data).is_dir():
        if not (Path(data) / "data.yaml").is_file():
            raise UserError(
                f"{data}: a folder without a data.yaml; dnas data init {data} writes one for a folder as it is, and "
                f"folder:{data} reads SPLIT/images and SPLIT/labels"
            )
        data = str(Path(data) / "data.yaml")
    if data.endswith((".yaml", ".yml")) or Path(data).is_file():
        values = _with_absolute_paths(read_yaml(data, "data configuration"), Path(data).parent)
        return parse_config(DataConfig, apply_overrides(values, overrides), data)
    raise UserError(
        f"{data}: unknown data, expected a YAML file, one of {', '.join(preset_names())}, "
        "or NAME:DIR for files in a folder, for example camvid:DIR"
    )


def _presets() -> dict[str, Traversable]:
    return preset_files(resources.files("dnas.data") / "presets")


def _from_preset(name: str, folder: str | None, overrides: Iterable[str]) -> DataConfig:
    values = apply_overrides(read_preset(_presets()[name]), overrides)
    if values["dataset"] in BUILT_IN:
        if folder is not None:
            raise UserError(f"{name}:{folder}: {name} is generated and takes no folder; use {name}")
        return parse_config(DataConfig, values, name)
    if folder is None and not values.get("root"):
        raise UserError(f"{name}: needs the folder of its files; use {name}:DIR")
    if folder is not None:
        if not folder:
            raise UserError(f"{name}: given no folder after the colon; use {name}:DIR")
        values["root"] = _absolute(folder, Path())
    return parse_config(DataConfig, values, name)


def _with_absolute_paths(values: dict[str, Any], base: Path) -> dict[str, Any]:
    return {
        key: _absolute(value, base)
        if key in ("root", "classes", "listing", "cache_dir") and isinstance(value, str) and value
        else value
        for key, value in values.items()
    }


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / Path(path).expanduser())  # noqa: PTH100 - resolve() would follow links
