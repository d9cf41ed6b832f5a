"""Reading the scores of the branches, which the end of a search has written."""

from __future__ import annotations

from typing import Annotated

from derive.multi_branch.branches import SELECTION
from dnas.config import Field, parse_config, record
from dnas.errors import UserError
from dnas.files import read_json
from dnas.runs import RunFolder

_Fraction = Annotated[float, Field(ge=0, le=1)]
_Milliseconds = Annotated[float, Field(gt=0, le=1e6)]
_Scales = Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(max_length=8)]
_Number = Annotated[float, Field(ge=-1e6, le=1e6)]


@record
class SelectionScore:
    """The score of a combination of branches; see :class:`derive.multi_branch.branches.BranchScore`."""

    branches: _Scales
    miou: _Fraction | None = None
    latency_ms: _Milliseconds | None = None
    score: _Number | None = None
    argmax_ms: _Milliseconds | None = None
    lost_log_probability: _Number = 0.0
    candidates: Annotated[int, Field(ge=1)] = 1


@record
class Selection:
    """The scores of an architecture's combinations, and the chosen one."""

    scores: Annotated[tuple[SelectionScore, ...], Field(max_length=1000)]
    chosen: _Scales | None = None
    target_ms: _Milliseconds | None = None


def read_selections(run: RunFolder) -> dict[str, Selection]:
    """The selections in a run folder, by architecture."""
    path = run.path / SELECTION
    content = read_json(path, "selection of branches")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected the selections by architecture")
    return {
        name: parse_config(Selection, found if isinstance(found, dict) else {}, f"{path}: {name}")
        for name, found in content.items()
    }
