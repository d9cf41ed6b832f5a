"""The rates in the log of a search, checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from dnas.config import Field, parse_config, record
from dnas.errors import UserError
from dnas.runs import RunFolder

_Rate = Annotated[float, Field(ge=0, le=1e5)]


@record
class RateRecord:
    """What the record of an epoch says about the rates: by layer, with their upper bounds, and the field of view."""

    epoch: Annotated[int, Field(ge=0)]
    rates: dict[str, _Rate]
    field_of_view: Annotated[float, Field(ge=0, le=1e7)]
    upper: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


def epoch_records(run: RunFolder, layers: Collection[str]) -> list[dict[str, Any]]:
    """The records of the epochs; raises :class:`UserError` unless each has a rate for every one of ``layers``."""
    records = run.records("epoch")
    for entry in records:
        source = f"{run.path / 'log.jsonl'}: epoch {entry['epoch'] + 1}"
        checked = parse_config(RateRecord, entry, source)
        if checked.rates.keys() != set(layers):
            raise UserError(f"{source}: its rates are not those of the searched layers; the file is damaged")
    return records
