"""FasterSeg's search problem: teacher and student architectures that share the weights of one supernet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.choices import mean_entropy
from dnas.errors import UserError
from dnas.search.problem import Pass
from search_spaces.fasterseg.cells import RunCell, run_cell
from search_spaces.fasterseg.ends import combination_name
from search_spaces.fasterseg.expected_latency import DecoupledWeights, ExpectedLatency
from search_spaces.fasterseg.parameters import ArchitectureParameters, Sample, finished
from search_spaces.fasterseg.supernet import MultiResolutionSupernet, can_batch

WIDTHS = ("smallest", "largest", "random", "likeliest", "sampled")


class CoSearch:
    """Co-search of two or more architectures over one supernet; a :class:`~dnas.search.problem.SearchProblem`.

    ``latencies``: expected latency of each architecture. Only architectures in ``constrained`` have a latency term in
    their loss (FasterSeg section 3.3: the student, not the teacher); ``decoupled`` scales its gradients (Eq. 3).
    """

    def __init__(
        self,
        supernet: MultiResolutionSupernet,
        architectures: Mapping[str, ArchitectureParameters],
        latencies: Mapping[str, ExpectedLatency],
        *,
        constrained: Sequence[str] = ("student",),
        decoupled: DecoupledWeights,
        pretrain_passes: Sequence[str],
        search_passes: Sequence[str],
        temperature: float = 1.0,
        temperature_end: float | None = None,
        single_path: bool = False,
        recompute: bool = False,
        batch_equal_passes: bool = False,
    ) -> None:
        """``single_path``: sample one operator per cell and pass. ``recompute``: activation checkpointing.

        ``batch_equal_passes``: run weight passes of equal widths as one batch
        (:meth:`MultiResolutionSupernet.forward_batched`).
        """
        self.supernet, self._architectures = supernet, dict(architectures)
        self.weights: nn.Module = supernet
        self.architecture: nn.Module = nn.ModuleDict(dict(architectures))
        self.latencies, self.constrained, self.decoupled = latencies, tuple(constrained), decoupled
        self.passes = {
            "pretrain": [self._parse(text) for text in pretrain_passes],
            "search": [self._parse(text) for text in search_passes],
        }
        self.temperature, self.single_path = temperature, single_path
        self._temperatures = temperature, temperature if temperature_end is None else temperature_end
        self.recompute, self.batch_equal_passes = recompute, batch_equal_passes
        self.run_cell: RunCell = run_cell

    def _parse(self, text: str) -> tuple[str, str]:
        name, _, width = text.partition(".")
        if name not in self._architectures or width not in WIDTHS:
            raise UserError(
                f"pass {text!r}: expected ARCHITECTURE.WIDTH with one of {', '.join(self._architectures)} "
                f"and one of {', '.join(WIDTHS)}"
            )
        return name, width

    def begin_epoch(self, progress: float) -> None:
        """Set the temperature: geometric from that of the beginning to that of the end of the search."""
        begin, end = self._temperatures
        self.temperature = begin * (end / begin) ** progress

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """One pass per entry of the phase's list; with ``batch_equal_passes`` equal ones are merged."""
        with torch.no_grad():
            passes = self._drawn(self.passes[phase], generator)
        return merged(passes) if self.batch_equal_passes else passes

    def architecture_passes(self, generator: torch.Generator) -> Sequence[Pass]:
        """One sampled pass per architecture, those with searched widths first."""
        passes = self._drawn([(name, "sampled") for name in self._architectures], generator)
        return sorted(passes, key=lambda one: not self._architectures[one.architecture].search_ratios)

    def _drawn(self, wanted: Sequence[tuple[str, str]], generator: torch.Generator) -> list[Pass]:
        """A pass for each architecture and width, in single-path search with sampled operators."""
        drafts = [
            self._architectures[name].draft(width, generator, self.temperature, single_path=self.single_path)
            for name, width in wanted
        ]
        return [
            Pass(name, sample, key=None if self._is_drawn(name, width) else (name, width))
            for (name, width), sample in zip(wanted, finished(drafts), strict=True)
        ]

    def _is_drawn(self, name: str, width: str) -> bool:
        """Whether what a pass runs depends on a draw, or on the logits."""
        fixed = ["smallest", "largest"]
        if not self._architectures[name].search_ratios:
            fixed.append("sampled")  # the widest
        return self.single_path or width not in fixed

    def validation_passes(self) -> Mapping[str, Pass]:
        """Every architecture at its most likely widths, in single-path search also with its most likely operators."""
        passes = {}
        with torch.no_grad():
            for name in self._architectures:
                parameters = self._architectures[name]
                sample = parameters.at_width("likeliest")
                passes[name] = Pass(name, parameters.with_likeliest_operators(sample) if self.single_path else sample)
        return passes

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """Logits at 1/8 by combination of branches, such as ``8_32``; ``0.8_32`` and so on for merged passes."""
        if isinstance(forward.sample, Sample):
            logits = self.supernet(images, forward.sample, self.run_cell, recompute=self.recompute, full_size=False)
            return {combination_name(scales): value for scales, value in logits.items()}
        found = self.supernet.forward_batched(
            images, forward.sample, self.run_cell, recompute=self.recompute, full_size=False
        )
        return {
            f"{number}.{combination_name(scales)}": value
            for number, logits in enumerate(found)
            for scales, value in logits.items()
        }

    def latency(self, forward: Pass) -> Tensor | None:
        """The expected latency in ms, averaged over the combinations of branches; None if not constrained."""
        if forward.architecture not in self.constrained:
            return None
        latency = self.latencies[forward.architecture](forward.sample, self.decoupled)
        return torch.stack(list(latency.values())).mean()

    def monitor(self) -> dict[str, Any]:
        """Entropies, share of skips, mean ratio, ratio range and expected latency of every architecture."""
        record: dict[str, Any] = {"latency_ms": {}, "entropy": {}, "skip_share": {}, "mean_ratio": {}}
        choices = [ratio for parameters in self._architectures.values() for ratio in parameters.ratios]
        record["ratio_range"] = [min(choices), max(choices)]
        with torch.no_grad():
            for name in self._architectures:
                parameters = self._architectures[name]
                sample = parameters.at_width("likeliest")
                latency = self.latencies[name](sample)
                record["latency_ms"][name] = float(torch.stack(list(latency.values())).mean())
                record["entropy"][name] = {
                    "alpha": mean_entropy(list(parameters.alpha)),
                    "beta": mean_entropy(list(parameters.beta)),
                    "gamma": mean_entropy(list(parameters.gamma)),
                }
                operators = torch.cat([table.argmax(dim=1) for table in sample.alpha])
                skip = self.supernet.operators.index("skip") if "skip" in self.supernet.operators else -1
                record["skip_share"][name] = float((operators == skip).double().mean())
                ratios = torch.tensor(parameters.ratios, dtype=torch.float64)
                expected = torch.cat([table.double().cpu() @ ratios for table in sample.gamma])
                record["mean_ratio"][name] = float(expected.mean())
        return record

    def logits(self) -> dict[str, Tensor]:
        """The logits, named ``student.alpha_8`` and so on."""
        return {
            f"{name}.{table}": values
            for name in self._architectures
            for table, values in self._architectures[name].named_logits().items()
        }


def merged(passes: Sequence[Pass]) -> list[Pass]:
    """Merge passes that can run as one batch; the merged sample is a tuple of samples, at the position of the first."""
    groups: list[list[Pass]] = []
    for one in passes:
        equal = next((group for group in groups if can_batch(group[0].sample, one.sample)), None)
        if equal is None:
            groups.append([one])
        else:
            equal.append(one)
    return [group[0] if len(group) == 1 else _merge(group) for group in groups]


def _merge(passes: Sequence[Pass]) -> Pass:
    names = dict.fromkeys(one.architecture for one in passes)
    keys = tuple(one.key for one in passes)
    return Pass("+".join(names), tuple(one.sample for one in passes), len(passes), None if None in keys else keys)
