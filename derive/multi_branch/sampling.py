"""Random sampling of discrete networks of a space, from small and fast to large and slow."""

from __future__ import annotations

import torch

from derive.multi_branch.architecture import MultiBranchArchitecture
from derive.multi_branch.decode import decode
from search_spaces.fasterseg import ArchitectureParameters, NetworkPlan


def sample_architectures(plan: NetworkPlan, count: int, seed: int) -> list[MultiBranchArchitecture]:
    """Sample ``count`` architectures with ``seed``.

    The bias towards skips and wide ratios varies linearly over the list, so that the networks spread over the latencies
    of the space instead of clustering around its mean. The combinations of branches alternate.
    """
    generator = torch.Generator().manual_seed(seed)
    combinations = plan.combinations()
    skip = plan.operators.index("skip") if "skip" in plan.operators else None
    found = []
    for index in range(count):
        parameters = ArchitectureParameters(
            plan.grid, len(plan.operators), plan.ratios, end_ratio=plan.end_ratio, generator=generator, noise=1.0
        )
        # From shallow and narrow to deep and wide over the list.
        size = 2 * (index + 0.5) / count - 1
        slope = torch.linspace(-1, 1, len(plan.ratios)) if len(plan.ratios) > 1 else torch.zeros(1)
        with torch.no_grad():
            for table in parameters.alpha:
                if skip is not None:
                    table[:, skip] -= 2 * size
            for table in parameters.gamma:
                table += 2 * size * slope
        found.append(decode(parameters.named_logits(), plan, combinations[index % len(combinations)]))
    return found
