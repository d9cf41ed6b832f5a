"""The image, pixel and steps that the picture of a search of dilation rates shows."""

import torch

from derive.dilated.snapshots import MAX_STAGES, Snapshot, _pixel, _select_stages, _visible_classes


def labels_with(*bars, size=(64, 96)):
    labels = torch.zeros(size, dtype=torch.int64)
    for left, width, number in bars:
        labels[:, left : left + width] = number
    return labels


def test_colours_count_what_can_be_seen():
    assert _visible_classes(labels_with((0, 4, 1), (10, 8, 2), (30, 5, 1), (50, 1, 3), (60, 6, 255))) == 2
    assert _visible_classes(labels_with()) == 0


def test_the_pixel_is_in_the_bar_nearest_to_the_middle():
    assert _pixel(labels_with((0, 20, 1), (40, 6, 2), (70, 20, 3), (48, 1, 4))) == (8, 43)
    assert _pixel(labels_with((88, 8, 1))) == (8, 92)
    assert _pixel(labels_with()) == (8, 48)


def test_stages_are_denser_at_the_beginning():
    def shown(count):
        taken = [Snapshot(i, 50 * i, {}, 0.0, None) for i in range(count)]
        return [snapshot.step for snapshot in _select_stages(taken)]

    assert shown(7) == [0, 50, 100, 150, 300]
    assert shown(5) == [0, 50, 100, 150, 200]
    assert shown(2) == [0, 50]
    assert all(len(shown(count)) <= MAX_STAGES for count in range(2, 40))
    assert shown(33) == [0, 200, 400, 800, 1600]
