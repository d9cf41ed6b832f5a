"""Architecture parameters, and their samples, the input of a supernet and of a latency model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.choices import gumbel_draws, read_columns
from dnas.errors import UserError
from search_spaces.fasterseg.grid import Grid


@dataclass(frozen=True)
class Sample:
    """A sample of an architecture, immutable: the argument of ``supernet(images, sample)``.

    Every tuple has one entry per level of the grid. ``alpha``: (cells, operators) weights of the operators. ``beta``:
    (cells, 2) weights of the predecessors, the finer one first. ``gamma``: (connections, ratios) probabilities of the
    expansion ratios, for the expected latency. ``choice``: index of the sampled ratio of each connection. ``gate``:
    (connections,) ones with the straight-through gradient of the choice to gamma, or None. ``end_ratio``: expansion
    ratio of stem and head. ``operators``: index of the sampled operator of each cell with single-path sampling; None:
    all operators run, weighted by alpha. ``operator_gate``: (cells,) ones with the straight-through gradient of the
    sampled operators to alpha, or None. The expected latency always depends on all of alpha.
    """

    alpha: tuple[Tensor, ...]
    beta: tuple[Tensor, ...]
    gamma: tuple[Tensor, ...]
    choice: tuple[tuple[int, ...], ...]
    gate: tuple[Tensor, ...] | None
    end_ratio: int
    operators: tuple[tuple[int, ...], ...] | None = None
    operator_gate: tuple[Tensor, ...] | None = None

    def operators_of(self, level: int, row: int) -> Sequence[int]:
        """The indices of the operators that run in the cell with ``row`` in alpha."""
        return range(self.alpha[level].shape[1]) if self.operators is None else (self.operators[level][row],)

    def operator_weights(self, level: int, row: int) -> dict[int, Tensor | None]:
        """The weights of the operators that run in the cell with ``row`` in alpha, by index; None is 1."""
        if self.operators is None:
            return dict(enumerate(self.alpha[level][row].unbind()))
        gate = None if self.operator_gate is None else self.operator_gate[level][row]
        return {self.operators[level][row]: gate}

    def map_weights(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """A copy with ``function`` applied to each tensor of alpha, beta and gamma."""
        return dataclasses.replace(
            self,
            alpha=tuple(map(function, self.alpha)),
            beta=tuple(map(function, self.beta)),
            gamma=tuple(map(function, self.gamma)),
        )


@dataclass(frozen=True)
class Draft:
    """A sample whose drawn ratios and operators, (connections,) and (cells,) per level, are still on the device.

    None: the sample has them already.
    """

    sample: Sample
    ratios: tuple[Tensor, ...] | None = None
    operators: tuple[Tensor, ...] | None = None


def finished(drafts: Sequence[Draft]) -> list[Sample]:
    """The samples of the drafts; the host waits once for the draws of all of them."""
    drawn = [draws for draft in drafts for draws in (draft.ratios, draft.operators) if draws is not None]
    columns = iter(read_columns(drawn))
    samples = []
    for draft in drafts:
        sample = draft.sample
        if draft.ratios is not None:
            sample = dataclasses.replace(sample, choice=next(columns))
        if draft.operators is not None:
            sample = dataclasses.replace(sample, operators=next(columns))
        samples.append(sample)
    return samples


class ArchitectureParameters(nn.Module):
    """The logits of one architecture (FasterSeg Appendix D): alpha, beta and, if widths are searched, gamma.

    ``alpha``: operators, O in Eq. 2. ``beta``: predecessors in Eq. 1, i.e. where to downsample. ``gamma``: expansion
    ratios, chi in Eq. 2. The teacher has ``search_ratios=False``: it always uses the widest ratio (section 3.3).
    Logits are initialised with a normal distribution of standard deviation ``noise``, so that no choice is preferred.
    """

    def __init__(
        self,
        grid: Grid,
        operators: int,
        ratios: Sequence[int],
        *,
        end_ratio: int,
        search_ratios: bool = True,
        generator: torch.Generator | None = None,
        noise: float = 1e-3,
    ) -> None:
        super().__init__()
        self.grid, self.ratios, self.end_ratio, self.search_ratios = grid, tuple(ratios), end_ratio, search_ratios

        def logits(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(noise * torch.randn(rows, columns, generator=generator))

        levels = grid.levels
        self.alpha = nn.ParameterList([logits(grid.alpha_rows(level), operators) for level in levels])
        self.beta = nn.ParameterList([logits(grid.beta_rows(level), 2) for level in levels])
        columns = len(self.ratios) if search_ratios else 0
        self.gamma = nn.ParameterList([logits(grid.gamma_rows(level), columns) for level in levels])

    def named_logits(self) -> dict[str, Tensor]:
        """All tables of logits, named ``alpha_SCALE``, ``beta_SCALE`` or ``gamma_SCALE``, detached."""
        tables = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        return {
            f"{kind}_{scale}": table.detach().clone()
            for kind, levels in tables.items()
            for scale, table in zip(self.grid.scales, levels, strict=True)
            if table.numel()
        }

    @torch.no_grad()
    def load_logits(self, logits: dict[str, Tensor]) -> None:
        """Set the logits from :meth:`named_logits`; raises :class:`UserError` for a missing name or a wrong shape."""
        for name, current in self.named_logits().items():
            given = logits.get(name)
            if given is None or given.shape != current.shape:
                shape = "nothing" if given is None else f"shape {tuple(given.shape)}"
                raise UserError(f"logits {name}: given {shape}, expected shape {tuple(current.shape)}")
            kind, scale = name.split("_")
            getattr(self, kind)[self.grid.level_of(int(scale))].copy_(given)

    def sample(self, generator: torch.Generator, temperature: float = 1.0) -> Sample:
        """Softmax of alpha and beta, hard straight-through Gumbel-softmax of gamma (Appendix C).

        The widest ratios if widths are not searched.
        """
        return finished([self.draft("sampled", generator, temperature)])[0]

    def draft(
        self, width: str, generator: torch.Generator, temperature: float = 1.0, *, single_path: bool = False
    ) -> Draft:
        """A draft of :meth:`sample` for ``width`` "sampled", else of :meth:`at_width`.

        ``single_path``: with one operator per cell, see :meth:`with_operators`.
        """
        if width == "sampled" and self.search_ratios:
            ratios, gates = gumbel_draws(self.gamma, generator, temperature)
            found = Draft(self._with_choice((), _with_gradient(gates)), ratios)
        else:
            found = Draft(self.at_width("largest" if width == "sampled" else width, generator))
        return self._with_draws(found, generator, temperature) if single_path else found

    def with_operators(self, sample: Sample, generator: torch.Generator, temperature: float = 1.0) -> Sample:
        """``sample`` with one operator per cell, by hard straight-through Gumbel-softmax of alpha.

        The gradient is that of the sampled entry of the softmax alone, because the other operators do not run (GDAS,
        Dong and Yang 2019, section 3.2).
        """
        return finished([self._with_draws(Draft(sample), generator, temperature)])[0]

    def with_likeliest_operators(self, sample: Sample) -> Sample:
        """``sample`` with only the most likely operator of every cell."""
        operators = tuple(tuple(table.argmax(dim=-1).tolist()) for table in self.alpha)
        return dataclasses.replace(sample, operators=operators, operator_gate=None)

    def at_width(self, width: str, generator: torch.Generator | None = None) -> Sample:
        """A sample with all ratios ``"smallest"``, ``"largest"``, ``"likeliest"`` or ``"random"`` (uniform)."""
        count = len(self.ratios)
        choices: list[tuple[int, ...]] = []
        for level in self.grid.levels:
            rows = self.grid.gamma_rows(level)
            if width == "random":
                indices = torch.randint(count, (rows,), generator=generator).tolist()
            elif width == "likeliest" and self.search_ratios:
                indices = self.gamma[level].argmax(dim=-1).tolist()
            elif width in ("smallest", "largest", "likeliest"):
                indices = [0 if width == "smallest" else count - 1] * rows
            else:
                raise ValueError(f"width {width!r}: expected smallest, largest, likeliest or random")
            choices.append(tuple(indices))
        return self._with_choice(choices, None)

    def gamma_probabilities(self) -> tuple[Tensor, ...]:
        """(connections, ratios) per level; one-hot at the widest ratio if widths are not searched."""
        if self.search_ratios:
            return tuple(F.softmax(table, dim=-1) for table in self.gamma)
        widest = self.alpha[0].new_zeros(len(self.ratios))
        widest[-1].fill_(1)  # on the device, without a copy
        return tuple(widest.expand(self.grid.gamma_rows(level), len(self.ratios)) for level in self.grid.levels)

    def _with_draws(self, draft: Draft, generator: torch.Generator, temperature: float) -> Draft:
        operators, gates = gumbel_draws(self.alpha, generator, temperature)
        sample = dataclasses.replace(draft.sample, operator_gate=_with_gradient(gates))
        return dataclasses.replace(draft, sample=sample, operators=operators)

    def _with_choice(self, choices: Sequence[tuple[int, ...]], gate: tuple[Tensor, ...] | None) -> Sample:
        return Sample(
            alpha=tuple(F.softmax(table, dim=-1) for table in self.alpha),
            beta=tuple(F.softmax(table, dim=-1) for table in self.beta),
            gamma=self.gamma_probabilities(),
            choice=tuple(choices),
            gate=gate,
            end_ratio=self.end_ratio,
        )


def _with_gradient(gates: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """The gates; on a GPU None if they have no gradient, as they are then only launches that multiply by 1."""
    return None if gates[0].is_cuda and not torch.is_grad_enabled() else gates
