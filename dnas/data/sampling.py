"""Which images an epoch has: all once, or rare classes more often."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch
from torch import Tensor

from dnas.config import Field, config
from dnas.data.seeding import mix_seed

Drawn = tuple[int, int, int]
"""(index, how manieth draw of this index in the epoch, the class that the crop must show or -1)."""


@config
class SamplingConfig:
    """The images of an epoch, which has ``repeat`` times as many as the dataset.

    rule: "plain" has every image once.
        "class_uniform" (Zhu et al. 2019, "Improving Semantic Segmentation via Video Propagation and Label Relaxation",
        section 3.3; RegSeg): ``share`` of the images are drawn for the classes, equally many for each, from those that
        contain the class, and cropped around a random pixel of it; the others are drawn as in "plain".
        "class_balanced": images are drawn with replacement, with a probability proportional to the repeat factor of
        Gupta et al. 2019 ("LVIS", section 5.1): the largest sqrt(``threshold`` / f) of the classes in the image, at
        least 1, f being the share of the images that contain the class.
    """

    rule: Literal["plain", "class_uniform", "class_balanced"] = "plain"
    share: float = Field(default=0.5, ge=0, le=1)
    threshold: float = Field(default=0.3, gt=0, le=1)
    repeat: int = Field(default=1, ge=1)

    @property
    def draws(self) -> bool:
        """Whether the images of an epoch are drawn, instead of every one once."""
        return self.rule != "plain" or self.repeat > 1


def count_labels(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A transform that replaces the image by nothing and the mask uint8 (H, W) by its pixels of each label, (256,)."""
    return torch.zeros(0), torch.bincount(mask.as_subclass(Tensor).flatten().long(), minlength=256)


def draw_epoch(config: SamplingConfig, presence: Tensor, seed: int, epoch: int) -> list[Drawn]:
    """The draws of an epoch in random order, as rows of ``presence`` (images, classes).

    They depend on nothing but the arguments.
    """
    count = config.repeat * len(presence)
    generator = torch.Generator().manual_seed(mix_seed("sampling", config.rule, seed, epoch))
    if config.rule == "class_balanced":
        rows = torch.multinomial(repeat_factors(presence, config.threshold), count, True, generator=generator)
        chosen = [(int(row), -1) for row in rows]
    else:
        share = config.share if config.rule == "class_uniform" else 0.0
        chosen = _class_uniform(presence, share, count, generator)
        chosen = [chosen[position] for position in torch.randperm(len(chosen), generator=generator).tolist()]
    seen: Counter[int] = Counter()
    draws = []
    for row, focus in chosen:
        draws.append((row, seen[row], focus))
        seen[row] += 1
    return draws


def repeat_factors(presence: Tensor, threshold: float) -> Tensor:
    """The repeat factor of every image, float64 (images,), from the classes that it contains (images, classes)."""
    shares = presence.double().mean(0)
    of_class = (threshold / shares.clamp(min=1 / len(presence))).sqrt().clamp(min=1)
    return (presence * of_class).amax(1).clamp(min=1)


def _class_uniform(presence: Tensor, share: float, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """(row, class or -1) of each of ``count`` draws, not yet shuffled."""
    classes = presence.any(0).nonzero().flatten().tolist()
    each = int(count * share / len(classes)) if share else 0
    chosen: list[tuple[int, int]] = []
    for label in classes:
        rows = presence[:, label].nonzero().flatten()
        chosen += [(row, label) for row in _in_turns(rows, each, generator)]
    rest = _in_turns(torch.arange(len(presence)), count - len(chosen), generator)
    return chosen + [(row, -1) for row in rest]


def _in_turns(rows: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """``count`` of ``rows`` in random order; every row once before any of them again."""
    turns = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-count // len(rows)))]
    return [int(row) for row in torch.cat(turns)[:count]] if turns else []
