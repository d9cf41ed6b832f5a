"""The end of an estimator search: random networks are judged, and a model of their choices is fitted."""

from __future__ import annotations

import torch

from derive.judging import Judge
from derive.multi_branch.decode import Likelihoods, assemble
from derive.multi_branch.estimator import ContributionModel
from derive.multi_branch.target import Price
from dnas.data.seeding import mix_seed
from dnas.runs import RunFolder
from search_spaces.fasterseg import ArchitectureParameters, FasterSegSpace
from search_spaces.fasterseg.selection import FairSampler


def estimate(run: RunFolder, space: FasterSegSpace, judge: Judge, count: int, price: Price | None) -> None:
    """Judge ``count`` random students, fit :class:`ContributionModel`, and save its logits as those of the search.

    ``price``: predicted latency in ms, for the record. The teacher gets the same contributions, but no ratios: it
    always uses the widest, and has no latency limit.
    """
    plan = space.plan()
    generator = torch.Generator().manual_seed(mix_seed("judged networks", run.seed))
    selections = FairSampler(plan).draw(count, generator)
    uniform = ArchitectureParameters(plan.grid, len(plan.operators), plan.ratios, end_ratio=plan.end_ratio, noise=0.0)
    likelihoods = Likelihoods(uniform.named_logits(), plan)
    architectures = [assemble(likelihoods, selection) for selection in selections]
    notes = [
        {"kind": "random", "index": index, "latency_ms": None if price is None else price(one)}
        for index, one in enumerate(architectures)
    ]
    mious = judge.miou(architectures, "judging random networks", notes)
    found = ContributionModel(plan).fit(selections, mious)
    tables = {
        f"{which}.{name}": table.float()
        for which in space.end_ratios
        for name, table in found.logits(ratios=which == "student").items()
    }
    run.save_weights("architecture", tables)
    if run.is_owner:
        found.ridge.fit.save(run)
    judge.wait()
