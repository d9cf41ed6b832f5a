"""The drawing of a derived network of dilated blocks."""

import networkx as nx
import pytest

from derive.dilated.drawing import dilated_drawing
from dnas.report import svg_text


def graph(*blocks):
    """A sequence of blocks; a list stands for parallel blocks."""
    made, before = nx.DiGraph(), ["stem"]
    made.add_node("stem", label="stem", operator="stem", position=0, field_of_view=15, scale=8)
    for column, entry in enumerate(blocks, start=1):
        names = []
        for index, rates in enumerate(entry if isinstance(entry, list) else [entry]):
            names.append(f"blocks.{column}.{index}")
            made.add_node(
                names[-1], label=names[-1], operator="dilated", rates=rates, position=column, field_of_view=100 * column
            )
        made.add_edges_from((a, b) for a in before for b in names)
        before = names
    made.add_node("head", label="head", operator="head", position=len(blocks) + 1)
    made.add_edges_from((name, "head") for name in before)
    return made


@pytest.mark.parametrize("blocks", [[(1, 4)], [(1, 1), (1, 14), (1, 2, 3, 4)], [(2,), [(6,), (12,), (18,)]]])
def test_every_rate_and_field_of_view_is_there(blocks):
    drawn = graph(*blocks)
    text = svg_text(dilated_drawing(drawn, "mine"))
    for _, data in drawn.nodes(data=True):
        assert " | ".join(map(str, data.get("rates", ()))) in text
        assert str(data.get("field_of_view", "")) in text
    assert "mine" in text
    assert text == svg_text(dilated_drawing(drawn, "mine"))
