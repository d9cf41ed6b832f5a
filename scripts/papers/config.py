"""Configuration of a paper's table: the recipe, the networks in its rows, and the figures that it prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pydantic
from typing_extensions import Self

from dnas.config import Field, apply_overrides, config, parse_config, to_mapping
from dnas.data import DataConfig, load_data_config
from dnas.errors import UserError
from dnas.files import read_yaml
from dnas.training import InferenceConfig, RetrainConfig
from dnas.training.recipes import load_recipe

FOLDER = Path(__file__).parent

Column = Literal[
    "miou", "reduced_miou", "pixel_accuracy", "fps", "latency_ms", "parameters", "multiply_adds", "field_of_view"
]
TRAINED: tuple[Column, ...] = ("miou", "reduced_miou", "pixel_accuracy")
"""The columns for which a row's network is trained."""

TOY_RECIPE = (
    *("epochs=1", "batch_size=2", "accumulate=1", "workers=0", "precision=fp32", "warm_up_steps=0"),
    *("augmentation.crop=[64,64]", "validate_every=1", "validation_batch_size=1"),
)
"""Changes of every recipe for a run that only shows that the experiment works."""
TOY_DATA = ("size=[64,64]", "images={train: 2, val: 1, test: 1}", "cache=false")


@config
class Before:
    """A training on another dataset, whose weights the row's training begins with.

    recipe: its name. data: the dataset. init: the weights that this training begins with, as ``dnas retrain --init``.
    """

    recipe: str
    data: str
    init: str | None = None


@config
class Row:
    """A row of a table.

    network, options: a network by name; without a name that of the table.
    trained: the label of another row, whose training is used; this row differs in the evaluation alone.
    changes: changes of the recipe, as ``dnas retrain --set``.
    init: the weights to begin with, as ``dnas retrain --init``.
    before: instead of them, a training on another dataset.
    inference: how the network is evaluated. size: the input size of this row's speed and multiply-adds.
    printed: what the paper prints, by column; fractions and units as in the paper.
    """

    network: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    trained: str | None = None
    changes: tuple[str, ...] = ()
    init: str | None = None
    before: Before | None = None
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    size: tuple[int, int] | None = None
    printed: dict[Column, str] = Field(default_factory=dict)


@config
class Table:
    """A table of a paper.

    paper: the paper and the number of the table or figure. title: what it shows.
    network: of rows without one. recipe: its name; none for a table without trainings. changes: of the recipe, for all
        rows.
    data: the dataset's name. split: on which the networks are scored.
    size: input size (height, width) of speed and multiply-adds. num_classes: of networks that are not trained.
    columns: what is measured. seeds: trainings of each row, as many as the paper has.
    note: in which respect this differs from the paper, or what the paper leaves open.
    """

    paper: str
    title: str
    network: str | None = None
    recipe: str | None = None
    changes: tuple[str, ...] = ()
    data: str = "cityscapes"
    split: Literal["val", "test"] = "val"
    size: tuple[int, int] = (1024, 2048)
    num_classes: int = Field(default=19, ge=1)
    columns: tuple[Column, ...]
    seeds: int = Field(default=1, ge=1)
    note: str = ""
    rows: dict[str, Row]

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        for label, row in self.rows.items():
            if row.trained is not None and (row.trained not in self.rows or self.rows[row.trained].trained is not None):
                raise ValueError(f"row {label}: trained: {row.trained!r} is not a row with a training of its own")
            if row.network is None and self.network is None and row.trained is None:
                raise ValueError(f"row {label}: names no network, nor does the table")
        if self.trains and self.recipe is None:
            raise ValueError("columns of trained networks need a recipe")
        return self

    @property
    def trains(self) -> bool:
        """Whether its networks are trained."""
        return any(column in TRAINED for column in self.columns)

    def described(self, label: str) -> dict[str, Any]:
        """The network of a row, as in the configuration of a retraining."""
        row = self.rows[self.rows[label].trained or label]
        return {"name": row.network or self.network, "options": row.options}

    def retraining(self, label: str, changes: Iterable[str] = ()) -> RetrainConfig:
        """The settings of the training of a row; ``changes`` are further ones."""
        if self.recipe is None:
            raise UserError(f"{self.paper}: its networks are not trained")
        row = self.rows[self.rows[label].trained or label]
        values = to_mapping(load_recipe(self.recipe).retrain)
        return parse_config(
            RetrainConfig, apply_overrides(values, [*self.changes, *row.changes, *changes]), f"{self.paper}, {label}"
        )

    def open_data(self, root: str | None, settings: Iterable[str] = (), *, toy: bool = False) -> DataConfig:
        """The images below ``root``, or a few generated ones."""
        if root is None and not toy:
            raise UserError(f"{self.paper}: give --root, the folder of {self.data}, or --toy")
        return _open(self.data, root, settings)

    def open_data_before(
        self, labels: Iterable[str], root: str | None, settings: Iterable[str] = (), *, toy: bool = False
    ) -> DataConfig | None:
        """The images of the trainings before those of the rows ``labels``; None if there are none."""
        names = {before.data for label in labels if (before := self.rows[label].before) is not None}
        if not names:
            return None
        if root is None and not toy:
            raise UserError(f"{self.paper}: give --before-root, the folder of {' and '.join(sorted(names))}")
        return _open(next(iter(names)), root, settings)


def _open(data: str, root: str | None, settings: Iterable[str]) -> DataConfig:
    """The images of ``data`` below ``root``; without it a few generated ones."""
    if root is None:
        return load_data_config("streets", [*TOY_DATA, *settings])
    return load_data_config(f"{data}:{root}", settings)


def table_names() -> tuple[str, ...]:
    """Names of all tables, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_table(name: str) -> Table:
    """The table of that name; an unknown one raises :class:`UserError` with the known ones."""
    if name not in table_names():
        raise UserError(f"{name}: no such table, expected one of {', '.join(table_names())}")
    return parse_config(Table, read_yaml(FOLDER / f"{name}.yaml", "table"), name)
