"""Class names and colours of a dataset, and the YAML file that defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch

from dnas.config import Field, config, parse_config
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.presets import read_preset

IGNORE_LABEL = 255
"""Label of pixels without a class; ignored by losses and metrics."""

Colour = tuple[int, int, int]
_Byte = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset: names and RGB colours (0 to 255), in the order of their indices."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE_LABEL:
            raise UserError(f"given {len(self.names)} classes, expected 1 to {IGNORE_LABEL}")
        if len(self.names) != len(self.colours):
            raise UserError(
                f"given {len(self.names)} class names and {len(self.colours)} colours, expected equally many"
            )
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise UserError(f"the class name {twice[0]!r} occurs twice")

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to ``num_classes - 1``, or :data:`IGNORE_LABEL`."""
        return len(self.names)

    def colourise(self, mask: torch.Tensor | npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Colours of a mask of labels (H, W), of any integer type, as uint8 (H, W, 3); ignored pixels are black."""
        indices = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colours
        return palette[indices.astype(np.uint8)]


@config
class ClassEntry:
    """One class of a classes file."""

    name: str
    colour: tuple[_Byte, _Byte, _Byte]


@config
class ClassesFile:
    """The content of a classes file: the classes in the order of their indices, and the mask values to ignore.

    ``ignore`` is the mask index of ignored pixels, ``ignore_colour`` their colour in colour masks. The index 255 is
    always ignored.
    """

    classes: tuple[ClassEntry, ...]
    ignore: _Byte | None = None
    ignore_colour: tuple[_Byte, _Byte, _Byte] | None = None

    @property
    def labels(self) -> Labels:
        """The classes as :class:`Labels`."""
        return Labels(tuple(entry.name for entry in self.classes), tuple(entry.colour for entry in self.classes))


def read_classes(path: str | Path) -> ClassesFile:
    """Read a classes file; a missing file, an invalid value or a duplicate class raises :class:`UserError`."""
    return _parse_classes(read_yaml(path, "classes file"), str(path))


def builtin_classes(name: str) -> ClassesFile:
    """The bundled classes file ``dnas/data/classes/NAME.yaml``."""
    return _parse_classes(read_preset(resources.files("dnas.data") / "classes" / f"{name}.yaml"), name)


def _parse_classes(values: Mapping[str, Any], source: str) -> ClassesFile:
    classes = parse_config(ClassesFile, values, source)
    try:
        labels = classes.labels
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if classes.ignore is not None and classes.ignore < labels.num_classes:
        name = labels.names[classes.ignore]
        raise UserError(f"{source}: ignore: given {classes.ignore}, the index of the class {name!r}; expected another")
    colours = [*labels.colours, *([classes.ignore_colour] if classes.ignore_colour else [])]
    twice = [colour for colour in colours if colours.count(colour) > 1]
    if twice:
        raise UserError(f"{source}: the colour {list(twice[0])} occurs twice, expected a different one for each class")
    return classes
