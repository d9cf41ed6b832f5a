"""Configuration of a study: a space, its images, the recipe of every training, and which networks are trained."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from dnas.config import Field, config, parse_config, to_mapping
from dnas.data import DataConfig, load_data_config
from dnas.files import read_yaml
from dnas.latency import LatencyTable
from dnas.training import RetrainConfig
from latency_tables import table_file
from scripts.study.rows import RESULTS

FOLDER = Path(__file__).parent


@config
class Method:
    """A way to search.

    search: the ``search`` section of the space's configuration. one_search_per_target: whether the search itself has
        the latency target; otherwise one search derives for all targets. network: changes of the ``network`` section,
        for the search of a part of the space.
    """

    search: dict[str, Any]
    one_search_per_target: bool = True
    network: dict[str, Any] = Field(default_factory=dict)


@config
class HandMade:
    """A network by its name in dnas, with options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


@config
class Retraining:
    """A way to train derived networks.

    options: of ``dnas retrain``. recipe: changes of the recipe. teacher: whether the search's teacher is distilled.
    epochs: lengths of the training; each is one of its own, with its own schedule.
    """

    options: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    teacher: bool = False
    epochs: tuple[int, ...] = Field(min_length=1)


@config
class RetrainingsConfig:
    """Which ways to train are compared, on networks that ``method`` derives for ``target_ms``.

    teacher_epochs: how long the teachers are trained.
    """

    method: str
    target_ms: float
    teacher_epochs: int
    ways: dict[str, Retraining]


@config
class StudyConfig:
    """One study.

    space: name of the preset. data: name of the data; images are resized to ``image_size``. table: name of the shipped
        latency table, or of one beside the rows, for the space's input size.
    recipe: how every network is trained, with one validation at the end, so that no epoch is chosen; ``recipe_name``
        names it in the results.
    targets_ms: latency targets. Around each, within ``tolerance``, ``networks_per_target`` random networks are trained.
    spread_networks: further random networks, spread over all latencies of the space.
    repeated_networks: how many of all are trained with ``seeds`` seeds instead of one.
    supernets: settings of one-shot searches whose ranking of the random networks is measured, by name; within bands of
        ``band_tolerance`` around the targets as well.
    methods: the searches that are compared, by name. In both, ``like`` names one before, of which some values change.
    hand_made: networks to compare with, by name.
    retrainings: ways to train derived networks.
    """

    space: str
    data: str
    image_size: tuple[int, int]
    images: dict[str, int] | None = None
    table: str
    recipe_name: str
    recipe: RetrainConfig
    targets_ms: tuple[float, ...]
    tolerance: float = Field(default=0.05, gt=0, lt=1)
    networks_per_target: int = Field(ge=1)
    spread_networks: int = Field(ge=0)
    repeated_networks: int = Field(ge=0)
    seeds: int = Field(default=3, ge=1)
    band_tolerance: float = Field(default=0.1, gt=0, lt=1)
    supernets: dict[str, Method] = Field(default_factory=dict)
    methods: dict[str, Method] = Field(default_factory=dict)
    hand_made: dict[str, HandMade] = Field(default_factory=dict)
    retrainings: RetrainingsConfig | None = None

    @pydantic.field_validator("supernets", "methods", mode="before")
    @classmethod
    def _complete(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with ``like`` have what the one with that name has, but for what they change."""
        found: dict[str, Any] = {}
        for name, setting in settings.items():
            if isinstance(setting, Method):  # Complete already: ``dataclasses.replace`` validates again.
                found[name] = setting
                continue
            other = setting.get("like")
            if other is not None:
                if other not in found:
                    raise ValueError(f"{name}: like: {other} is none of the settings before it")
                search = {**found[other]["search"], **setting.get("search", {})}
                setting = {**found[other], **setting, "search": search}
            found[name] = {key: value for key, value in setting.items() if key != "like"}
        return found

    @property
    def recipe_key(self) -> str:
        """Name of the recipe with a digest of its values, so that changed recipes are told apart.

        Defaults are left out, so that a new option of the retraining leaves the recipe what it is.
        """
        values = _changes(to_mapping(self.recipe), to_mapping(RetrainConfig()))
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return f"{self.recipe_name}-{digest[:6]}"

    @property
    def keys(self) -> dict[str, Any]:
        """What tells the study's rows from those of others: space, data and recipe."""
        return {"space": self.space, "data": self.data, "recipe": self.recipe_key}

    def open_data(self, root: str | None) -> DataConfig:
        """The data; ``root`` is the folder of its files, None for generated images."""
        overrides = [f"size={list(self.image_size)}", "cache=true"]
        overrides += [f"images={json.dumps(self.images)}"] if self.images else []
        return load_data_config(self.data if root is None else f"{self.data}:{root}", overrides)

    def latency_table(self) -> LatencyTable:
        """The latency table."""
        own = RESULTS / f"{self.table}.json"
        if own.exists():
            return LatencyTable.load(own)
        with table_file(self.table) as path:
            return LatencyTable.load(path)


def _changes(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values that are not the defaults, at any depth."""
    return {
        key: _changes(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in values.items()
        if key not in defaults or value != defaults[key]
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that the commands of a study have in common."""
    parser.add_argument("study", choices=study_names())
    parser.add_argument("--root", help="folder of the data's files; not for generated data")
    parser.add_argument("--work", type=Path, required=True, help="folder for unfinished runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--on", default="local", help="where jobs run: local, ray, ray:ADDRESS or slurm")


def load_study(name: str) -> StudyConfig:
    """The study of that name in this folder."""
    path = FOLDER / f"{name}.yaml"
    return parse_config(StudyConfig, read_yaml(path, "study"), str(path))


def study_names() -> list[str]:
    """Names of all studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
