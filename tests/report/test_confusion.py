from __future__ import annotations

import re

import numpy as np
import pytest

from dnas.report.confusion import confusion_chart
from dnas.report.style import save_figure, svg_text


def test_cells_are_shares_of_the_true_class(tmp_path):
    figure = confusion_chart(("road", "car", "sign"), [[3, 1, 0], [0, 0, 0], [20, 0, 180]])
    shares = np.asarray(figure.axes[0].images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(shares, [[75, 25, 0], [np.nan] * 3, [10, 0, 90]])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["10", "25", "75", "90"]
    text = svg_text(figure)
    assert all(re.search(rf">{word}<", text) for word in ("road", "car", "sign", "predicted", "true"))
    save_figure(figure, tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_many_classes_have_no_numbers():
    names = [f"class {index}" for index in range(30)]
    assert not confusion_chart(names, np.eye(30, dtype=int)).axes[0].texts
    with pytest.raises(ValueError, match="for 2 classes"):
        confusion_chart(("a", "b"), [[1]])
