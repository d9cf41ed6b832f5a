from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import Cityscapes

from dnas.data import IGNORE_LABEL, Labels
from dnas.data.labels import builtin_classes, read_classes
from dnas.errors import UserError


def test_cityscapes_classes_are_those_that_torchvision_evaluates():
    expected = sorted((entry for entry in Cityscapes.classes if not entry.ignore_in_eval), key=lambda e: e.train_id)
    labels = builtin_classes("cityscapes").labels
    assert labels.names == tuple(entry.name for entry in expected)
    assert labels.colours == tuple(entry.color for entry in expected)


def test_camvid_classes_have_the_documented_order():
    names = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
    assert builtin_classes("camvid").labels.names == tuple(names.split(" "))
    assert builtin_classes("camvid").ignore == 11


def test_colourise_gives_each_class_its_colour_and_black_for_ignored():
    labels = Labels(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    mask = torch.tensor([[0, 1, IGNORE_LABEL]], dtype=torch.int64)
    expected = np.array([[[1, 2, 3], [4, 5, 6], [0, 0, 0]]], np.uint8)
    for given in (mask, mask.to(torch.uint8).numpy(), mask.numpy()):
        coloured = labels.colourise(given)
        assert coloured.dtype == np.uint8
        np.testing.assert_array_equal(coloured, expected)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("classes: []", "given 0 classes, expected 2 to 255"),
        ("classes: [{name: a}]", "given 1 class, expected 2 to 255: the background counts"),
        ("classes: [{colour: [0, 0, 1]}]", "classes.0.name: missing"),
        ("classes: [{name: a, colour: [0, 0, 256]}]", "classes.0.colour.2: given 256"),
        ("classes: [{name: a, color: [0, 0, 2]}]", "classes.0.color: unknown key"),
        ("classes: [{name: a, colour: [0, 0, 2]}, {name: a, colour: [0, 0, 3]}]", "class name 'a' occurs twice"),
        ("classes: [{name: a, colour: [0, 0, 2]}, {name: b, colour: [0, 0, 2]}]", "colour [0, 0, 2] occurs twice"),
        ("classes: [{name: a}, {name: b}]\nignore: 0", "the index of the class 'a'"),
        ("classes: [{name: a}, {name: b}]\nignore: [7, 1]", "the index of the class 'b'"),
        ("classes: [{name: a, values: [1]}, {name: b}]", "the value 1 occurs twice, for 'a' and 'b'"),
        ("classes: [{name: a, colours: [[1, 2, 3]]}, {name: b, colour: [1, 2, 3]}]", "colour [1, 2, 3] occurs twice"),
        ("classes: [{name: a}, {name: b}]\nothers: guess", 'others: given "guess"'),
        ("- 3", "expected a mapping"),
    ],
)
def test_a_bad_classes_file_names_itself_and_the_mistake(tmp_path: Path, text: str, part: str):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
