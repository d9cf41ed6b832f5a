"""FasterSeg's published search results: reading the logits of a file like ``arch_1.pt``, and deriving from them.

The file is a pickled dict of tensors. ``alpha_A_J``, ``beta_A_J`` and ``ratio_A_J`` are the logits of architecture A
(0: teacher, 1: student) at scale 8 * 2**J, with the rows of :class:`search_spaces.fasterseg.Grid`. The file also
contains values recorded during the search, such as ``latency12`` (ms) and ``mIoU12`` for the branches that end at
scales 16 and 32.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from derive.base import DeriveOptions
from derive.multi_branch.architecture import MultiBranchArchitecture
from derive.multi_branch.branches import MultiBranchDerivation
from derive.multi_branch.decode import decode
from derive.multi_branch.published_rule import decode_as_published, priced_as_published
from dnas.errors import UserError
from dnas.files import read_bytes
from dnas.input_channels import RGB
from dnas.latency.spec import OperatorSpec
from dnas.pickles import check_archive
from dnas.text import encodable
from search_spaces.fasterseg import Grid, NetworkPlan

RULES = ("paper", "published-code")

OPERATORS = ("skip", "conv", "zoomed_conv", "conv_x2", "zoomed_conv_x2")
"""The columns of alpha in the file."""

RATIOS = (4, 6, 8, 10, 12)
"""The columns of ratio in the file (FasterSeg section 4.2); a single column means the widest ratio only."""

MAX_LAYERS = 64
NUM_CLASSES = 19
INPUT_SIZE = (1024, 2048)

_WHAT = "file of FasterSeg's published logits"
_NUMBERS = {"teacher": 0, "student": 1}
_END_RATIOS = {"teacher": 12, "student": 8}
_TARGET_MS, _EXPONENT = 8.3, -0.07  # Appendix B
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PublishedLogits:
    """One architecture of a published file.

    ``logits`` are named as in ``ArchitectureParameters.named_logits`` and belong to ``plan``. ``miou`` (a fraction) and
    ``latency_ms`` were recorded during the search, by final scales; the authors' teacher files repeat the student's
    values.
    """

    source: Path
    which: str
    logits: Mapping[str, Tensor]
    plan: NetworkPlan
    miou: Mapping[tuple[int, ...], float]
    latency_ms: Mapping[tuple[int, ...], float]

    @classmethod
    def load(cls, path: str | Path, which: str = "student") -> PublishedLogits:
        """Read the ``student`` or the ``teacher`` of a file.

        Only tensors and plain or NumPy numbers are read; a pickle with anything else is refused without executing it.
        Raises :class:`UserError`, with the file and the table, for any invalid content.
        """
        if which not in _NUMBERS:
            raise UserError(f"which {which!r}: expected student or teacher")
        values = _read(path)
        logits, grid, columns = _tables(path, values, which)
        ratios = RATIOS if columns > 1 else RATIOS[-1:]
        return cls(
            source=Path(path),
            which=which,
            logits=logits,
            plan=NetworkPlan(grid, OPERATORS, ratios, 2, NUM_CLASSES, INPUT_SIZE, _END_RATIOS[which]),
            miou=_recorded(path, values, "mIoU"),
            latency_ms=_recorded(path, values, "latency"),
        )

    def best_branches(self) -> tuple[int, ...]:
        """The final scales with the best recorded ACC * (LAT / T) ** w (Appendix B); (16, 32) if none is recorded."""
        scores = {
            scales: miou * (self.latency_ms[scales] / _TARGET_MS) ** _EXPONENT
            for scales, miou in self.miou.items()
            if self.latency_ms.get(scales, 0) > 0
        }
        return max(scores, key=lambda scales: scores[scales]) if scores else (16, 32)

    def derive(self, branches: Sequence[int] | None = None, rule: str = "paper") -> MultiBranchArchitecture:
        """The architecture of the branches that end at ``branches`` (default: the best recorded), by one of ``RULES``.

        ``paper``: :func:`derive.multi_branch.decode`; ``published-code``:
        :func:`derive.multi_branch.decode_as_published`.
        """
        wanted = self.best_branches() if branches is None else tuple(branches)
        scales = self.plan.grid.scales
        if not wanted or any(scale not in scales for scale in wanted) or wanted != tuple(sorted(set(wanted))):
            raise UserError(f"branches {','.join(map(str, wanted))}: expected some of {', '.join(map(str, scales))}")
        provenance: dict[str, object] = {
            "file": encodable(self.source.name),
            "space": "fasterseg",
            "which": self.which,
            "rule": _check_rule(rule),
        }
        if rule == "published-code" and self.which == "student" and wanted in self.latency_ms:
            provenance["recorded_latency_ms"] = self.latency_ms[wanted]
        derived = (decode if rule == "paper" else decode_as_published)(self.logits, self.plan, wanted, provenance)
        # num_classes stays unset: the paper also uses the architecture for CamVid and BDD.
        return replace(derived, input_size=INPUT_SIZE)


def derive_published(path: Path, options: DeriveOptions) -> MultiBranchDerivation:
    """The architecture of a published file, with its predicted latency if the options have a table.

    Raises :class:`UserError` for a table of another input size, and for a latency target.
    """
    if options.target_ms is not None:
        raise UserError(f"{path}: --target needs the run folder of a search, given a file of published logits")
    rule = _check_rule(options.rule or RULES[0])
    architecture = PublishedLogits.load(path, options.which or "student").derive(options.branches, rule)
    table = options.table
    if table is None:
        return MultiBranchDerivation(architecture=architecture, rule=rule)
    if tuple(table.provenance.input_size) != INPUT_SIZE:
        given, wanted = ("x".join(map(str, size)) for size in (table.provenance.input_size, INPUT_SIZE))
        raise UserError(f"{table.source}: is for images of {given}, expected {wanted}, the input size of {path}")
    ms = predicted_latency_ms(architecture, table.lookup, rule)
    return MultiBranchDerivation(architecture=architecture, rule=rule, latency_ms=ms)


def predicted_latency_ms(
    architecture: MultiBranchArchitecture,
    lookup: Callable[[OperatorSpec], float],
    rule: str,
    channels: int = RGB,
) -> float:
    """The sum of an architecture's table entries in ms; ``published-code`` uses the entries that code looks up.

    channels: of the images.
    """
    price = priced_as_published if _check_rule(rule) == "published-code" else None
    classes, size = architecture.num_classes or NUM_CLASSES, architecture.input_size or INPUT_SIZE
    specs = architecture.signatures(classes, size, channels)
    return sum(lookup(spec if price is None else price(spec)) for spec in specs)


def _check_rule(rule: str) -> str:
    if rule not in RULES:
        raise UserError(f"rule {rule!r}: expected {' or '.join(RULES)}")
    return rule


def _read(path: str | Path) -> dict[str, object]:
    data = read_bytes(path, _WHAT)
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path}: given {len(data)} bytes, expected a {_WHAT} of at most {_MAX_BYTES}")
    # The mIoU is a NumPy scalar, which NumPy 1 pickled under another module name.
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
    ]
    try:
        check_archive(data)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file format is deprecated
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt or malicious file can raise almost any exception
        lines = str(error).replace("\n", " ")
        found = re.search(r"GLOBAL ([\w.]+)", lines)
        if found:
            raise UserError(
                f"{path}: refused: its pickle imports {found[1]}, which logits do not need and which could execute "
                "code; nothing was executed"
            ) from None
        raise UserError(f"{path}: not a readable {_WHAT}: {type(error).__name__}: {lines[:200]}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{path}: expected a dict of tensors by name, found {type(values).__name__}")
    return values


def _tables(path: str | Path, values: Mapping[str, object], which: str) -> tuple[dict[str, Tensor], Grid, int]:
    """The logits under our names, the grid inferred from the tables' shapes, and the number of ratio columns."""
    number = _NUMBERS[which]
    names = {name: match for name in values if (match := re.fullmatch(r"alpha_([01])_0", name))}
    if f"alpha_{number}_0" not in names:
        others = [other for other, index in _NUMBERS.items() if f"alpha_{index}_0" in names]
        hint = f"; it holds the {others[0]}, give --which {others[0]}" if others else ""
        raise UserError(f"{path}: holds no logits of the {which} (alpha_{number}_0){hint}")
    grid, columns = _majority(path, values, number)
    expected = {}
    for level, scale in enumerate(grid.scales):
        expected[f"alpha_{scale}"] = f"alpha_{number}_{level}", (grid.alpha_rows(level), len(OPERATORS))
        expected[f"gamma_{scale}"] = f"ratio_{number}_{level}", (grid.gamma_rows(level), columns)
        if level:
            expected[f"beta_{scale}"] = f"beta_{number}_{level}", (grid.beta_rows(level), 2)
    logits = {ours: _checked(path, values, theirs, shape) for ours, (theirs, shape) in expected.items()}
    if columns == 1:  # ratios were not searched: the widest everywhere
        logits = {name: table for name, table in logits.items() if not name.startswith("gamma")}
    return logits, grid, columns


def _majority(path: str | Path, values: Mapping[str, object], number: int) -> tuple[Grid, int]:
    """The grid and the ratio columns of the majority of tables, so that errors name the table that deviates."""
    layers: Counter[int] = Counter()
    columns: Counter[int] = Counter()
    for name, missing in (("alpha", (0, 1, 2)), ("ratio", (1, 1, 2)), ("beta", (None, 2, 3))):
        for level, fewer in enumerate(missing):
            table = values.get(f"{name}_{number}_{level}")
            if fewer is None or not isinstance(table, Tensor) or table.dim() != 2:
                continue
            layers[table.shape[0] + fewer] += 1
            if name == "ratio" and table.shape[1] in (1, len(RATIOS)):
                columns[table.shape[1]] += 1
    found = layers.most_common(1)[0][0] if layers else 0
    if not 3 <= found <= MAX_LAYERS:
        raise UserError(f"{path}: given logits of {found} layers, expected 3 to {MAX_LAYERS}")
    return Grid(found), columns.most_common(1)[0][0] if columns else len(RATIOS)


def _tensor(path: str | Path, values: Mapping[str, object], name: str) -> Tensor:
    table = values.get(name)
    if not isinstance(table, Tensor):
        given = "nothing" if table is None else type(table).__name__
        raise UserError(f"{path}: {name}: given {given}, expected a table of logits")
    return table.detach()


def _checked(path: str | Path, values: Mapping[str, object], name: str, shape: tuple[int, int]) -> Tensor:
    table = _tensor(path, values, name)
    if tuple(table.shape) != shape:
        raise UserError(f"{path}: {name}: given shape {tuple(table.shape)}, expected {shape}")
    if not table.is_floating_point() or table.layout != torch.strided or not bool(table.isfinite().all()):
        raise UserError(f"{path}: {name}: expected finite floating-point logits")
    return table


def _recorded(path: str | Path, values: Mapping[str, object], kind: str) -> dict[tuple[int, ...], float]:
    """The recorded values of a kind, by final scales: ``latency12`` belongs to (16, 32)."""
    found = {}
    for name, value in values.items():
        match = re.fullmatch(rf"{kind}([012]{{1,3}})", name)
        if match is None:
            continue
        if not isinstance(value, (float, int, np.floating)) or not math.isfinite(value):
            raise UserError(f"{path}: {name}: expected a finite number, given {type(value).__name__}")
        found[tuple(sorted({8 * 2 ** int(level) for level in match[1]}))] = float(value)
    return found
