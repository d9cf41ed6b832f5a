"""A network with choices, which runs samples, and the drawing of samples."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.choices.choice import Choice, RateChoice, named_choices
from dnas.choices.kinds import Kind, kind_of
from dnas.choices.running import Likeliest, Sampled, running
from dnas.choices.sample import Decision, Sample
from dnas.choices.sampling import gumbel_choices
from dnas.errors import UserError


class ChoiceNetwork(nn.Module):
    """A network whose parts may be choices: ``network(images, sample)``; without a sample the likeliest options run.

    choices: its choices by name.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.choices = named_choices(network)
        self._names = {choice: name for name, choice in self.choices.items()}

    def forward(self, images: Tensor, sample: Sample | None = None) -> Tensor:
        """Run the network on ``images`` (N, 3, H, W)."""
        with running(Likeliest() if sample is None else Sampled(self._names, sample)):
            result: Tensor = self.network(images)
        return result

    def sample(self, generator: torch.Generator, kinds: Mapping[str, Kind] | None = None) -> Sample:
        """Draw a sample, each choice as its kind says.

        Choices of the same kind and number of options are drawn together; the noise is drawn on the CPU.
        """
        kinds = kinds or {}
        groups: dict[tuple[str, int, bool], list[str]] = {}
        for name, choice in self.choices.items():
            one = choice.one_runs
            groups.setdefault((choice.kind, len(choice.labels), one), []).append(name)
        found: dict[str, Decision] = {}
        for (kind, _, one_runs), names in groups.items():
            found |= self._drawn(names, kind_of(kind, kinds), one_runs, generator)
        return Sample({name: found[name] for name in self.choices})

    def _drawn(self, names: list[str], kind: Kind, one_runs: bool, generator: torch.Generator) -> dict[str, Decision]:
        found: dict[str, Decision] = {}
        choices = {name: self.choices[name] for name in names}
        for name, choice in choices.items():
            if isinstance(choice, RateChoice):
                found[name] = Decision(choice.probabilities(), rate=choice.rate())
        rest = [name for name in names if name not in found]
        if not rest:
            return found
        if one_runs and kind.sampler == "softmax":
            first = choices[rest[0]]
            raise UserError(
                f"{first.what}: only one width can run: set search.kinds.{first.kind}.sampler to gumbel or single_path"
            )
        table = torch.stack([choices[name].logits for name in rest])
        probabilities = F.softmax(table, dim=-1).unbind()
        if kind.sampler == "softmax":
            return {**found, **{name: Decision(p) for name, p in zip(rest, probabilities, strict=True)}}
        indices, gates = _sampled(table, kind, generator)
        for name, p, index, gate in zip(rest, probabilities, indices, gates.unbind(), strict=True):
            found[name] = Decision(p, index, gate)
        return found

    def likeliest(self) -> Sample:
        """The sample of the likeliest options; rates stay real numbers."""
        with torch.no_grad():
            return Sample(
                {
                    name: Decision(choice.probabilities(), rate=choice.rate())
                    if isinstance(choice, RateChoice)
                    else one_hot(choice, choice.likeliest())
                    for name, choice in self.choices.items()
                }
            )

    def one_hot(self, options: Mapping[str, int]) -> Sample:
        """The sample of one option for every choice, by index; choices that are not given take their first option."""
        return Sample({name: one_hot(choice, options.get(name, 0)) for name, choice in self.choices.items()})

    def at_end(self, sample: Sample, *, last: bool) -> Sample:
        """``sample`` with the last (largest) or first option of every width and number of repetitions."""
        return sample.replaced(
            {
                name: one_hot(choice, len(choice.labels) - 1 if last else 0, sample.decisions[name].probabilities)
                for name, choice in self.choices.items()
                if choice.ordered and not isinstance(choice, RateChoice)
            }
        )

    def at_random(self, sample: Sample, generator: torch.Generator) -> Sample:
        """``sample`` with uniformly drawn widths and numbers of repetitions."""
        return sample.replaced(
            {
                name: one_hot(
                    choice,
                    int(torch.randint(len(choice.labels), (), generator=generator)),
                    sample.decisions[name].probabilities,
                )
                for name, choice in self.choices.items()
                if choice.ordered and not isinstance(choice, RateChoice)
            }
        )

    def random_options(self, generator: random.Random, share: float = 1.0) -> dict[str, int]:
        """A uniformly drawn option of every choice; of ordered ones among the first ``share`` of the options."""
        found = {}
        for name, choice in self.choices.items():
            count = len(choice.labels)
            found[name] = generator.randrange(max(1, round(share * count)) if choice.ordered else count)
        return found

    def project(self) -> None:
        """Project the logits of all choices onto their bounds."""
        for choice in self.choices.values():
            choice.project()


def one_hot(choice: Choice, index: int, probabilities: Tensor | None = None) -> Decision:
    """The decision for one option; without ``probabilities`` they are certain."""
    if probabilities is None:
        values = torch.zeros(len(choice.labels), device=choice.logits.device, dtype=choice.logits.dtype)
        values[index] = 1.0
        probabilities = values
    return Decision(probabilities.detach(), index)


def _sampled(table: Tensor, kind: Kind, generator: torch.Generator) -> tuple[tuple[int, ...], Tensor]:
    """The drawn columns of a table of logits (choices, options), and gates (choices,) with their gradient."""
    if kind.sampler == "gumbel":
        (indices,), (gates,) = gumbel_choices([table], generator, kind.temperature)
        return indices, gates
    soft = F.softmax(table, dim=-1)
    drawn = torch.multinomial(soft.detach().cpu(), 1, generator=generator)[:, 0]
    chosen = soft.gather(1, drawn.to(table.device)[:, None])[:, 0]
    return tuple(drawn.tolist()), 1.0 + (chosen - chosen.detach())
