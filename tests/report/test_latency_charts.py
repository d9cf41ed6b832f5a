"""Charts of latency tables: every entry is drawn at its position; unusual tables raise no error."""

import numpy as np
import pytest

from dnas.report import svg_text, table_chart, table_comparison


def points(axes):
    """The coordinates of all points of an axes, one array (n, 2) per collection."""
    return [np.asarray(collection.get_offsets()) for collection in axes.collections]


def test_a_table_shows_every_median_and_its_spread():
    figure = table_chart({"conv": [(1.0, 0.9, 1.1), (20.0, 19.0, 24.0)], "skip": [(0.5, 0.5, 0.5)]})
    left, right = figure.axes
    assert [list(found[:, 0]) for found in points(left)] == [[1.0, 20.0], [0.5]]
    assert [list(found[:, 0]) for found in points(right)] == [pytest.approx([20.0, 25.0]), [0.0]]
    assert [label.get_text() for label in left.get_yticklabels()] == ["conv", "skip"]
    text = svg_text(figure)
    assert "mathdefault" not in text
    assert text == svg_text(figure)


def test_a_comparison_shows_pairs_and_ratios():
    figure = table_comparison({"conv": [(1.0, 2.0), (2.0, 3.0)], "skip": [(4.0, 1.0)]}, "a", "b")
    left, right = figure.axes
    assert [found.tolist() for found in points(left)] == [[[1.0, 2.0], [2.0, 3.0]], [[4.0, 1.0]]]
    assert [list(found[:, 0]) for found in points(right)] == [[2.0, 1.5], [0.25]]
    assert right.get_xlabel() == "b / a"
    assert "mathdefault" not in svg_text(figure)


def test_tables_without_entries_or_with_latency_zero_are_drawn():
    assert "<svg" in svg_text(table_chart({}))
    assert "<svg" in svg_text(table_chart({"skip": [(0.0, 0.0, 0.0)]}))
    assert "<svg" in svg_text(table_comparison({}, "a", "b"))
    assert "<svg" in svg_text(table_comparison({"_odd $name$": [(0.0, 1.0), (1.0, 1.0)]}, "_a", "$b$"))
