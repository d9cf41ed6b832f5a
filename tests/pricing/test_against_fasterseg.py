"""The integer programme and FasterSeg's own exact dynamic programme agree on a small grid."""

import itertools

import numpy as np
import pytest

from derive.multi_branch import latency_bounds
from dnas.pricing import LatencyProgramme, Term
from dnas.pricing.conditions import ALWAYS, cube_of, holds
from search_spaces.fasterseg import Grid, NetworkPlan
from search_spaces.fasterseg.signatures import cell_signature, fuse_signature, head_signature, stem_signature

OPERATORS, RATIOS, END_RATIO, SIZE = ("conv", "zoomed_conv"), (1, 2), 2, (64, 96)
COST = {"conv": 1.0, "zoomed_conv": 0.4, "stem": 0.5, "head": 0.7, "fuse": 0.3}
PLAN = NetworkPlan(Grid(4, (8, 16)), OPERATORS, RATIOS, 1, 3, SIZE, END_RATIO)


def price(spec):
    """Not monotonic in the width, so that the best network is not at an end."""
    wide = sum(shape[0] for shape in spec.inputs) / 64 + spec.out_channels / 32
    return COST[spec.operator] * (0.3 + wide + 0.8 * np.sin(7 * wide + len(spec.operator)))


def paths(end):
    """The level of every layer's cell, for branches that end at the level."""
    layers = PLAN.grid.layers
    return (
        [tuple(int(layer >= entered) for layer in range(layers)) for entered in range(1, layers)] if end else [(0,) * 4]
    )


def terms_of(end):
    """The latency of the networks with one branch: the path, an operator in every cell, a width in every connection."""
    entered = [str(path.index(1)) for path in paths(end)] if end else ["0"]
    sizes = {"path": len(entered)}
    sizes |= {f"operator {cell}": len(OPERATORS) for cell in PLAN.grid.cells()}
    sizes |= {f"ratio {cell}": len(RATIOS) for cell in PLAN.grid.cells() if cell != (0, 0)}
    fixed = price(stem_signature(END_RATIO, SIZE)) + price(head_signature(END_RATIO, 1, PLAN.num_classes, SIZE))
    terms = [Term((ALWAYS,), (), np.array(fixed))]
    for number, path in enumerate(paths(end)):
        cube = cube_of({"path": {number}}) if len(entered) > 1 else ALWAYS
        for layer, level in enumerate(path):
            scale, cell = 8 * 2**level, (level, layer)
            following = (path[layer + 1], layer + 1) if layer + 1 < len(path) else None
            stride = 2 if following and following[0] > level else 1
            own = [f"ratio {cell}"] if layer else []
            after = [f"ratio {following}"] if following else []
            ins, outs = (RATIOS if own else (END_RATIO,)), (RATIOS if after else (END_RATIO,))
            table = np.array(
                [
                    price(cell_signature(name, a * scale, b * scale * stride, scale, stride, SIZE))
                    for name, a, b in itertools.product(OPERATORS, ins, outs)
                ]
            )
            variables = (f"operator {cell}", *own, *after)
            terms.append(Term((cube,), variables, table.reshape([sizes[name] for name in variables])))
            if stride == 2:
                fused = np.array([price(fuse_signature(a * scale, scale, END_RATIO, SIZE)) for a in ins])
                terms.append(Term((cube,), tuple(own), fused if own else fused.reshape(())))
    return terms, sizes


def latency_of(terms, options):
    return sum(
        float(term.prices[tuple(options[name] for name in term.variables)])
        for term in terms
        if any(holds(cube, options) for cube in term.cubes)
    )


@pytest.mark.parametrize("end", [0, 1])
def test_fastest_and_slowest_network_are_the_same(end):
    fastest, slowest = latency_bounds(PLAN, price)[(8 * 2**end,)]
    terms, sizes = terms_of(end)
    programme = LatencyProgramme(terms, sizes)
    assert latency_of(terms, programme.fastest()) == pytest.approx(fastest.latency_ms)
    assert latency_of(terms, programme.slowest()) == pytest.approx(slowest.latency_ms)
