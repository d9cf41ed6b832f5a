import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnas.data import DataConfig, batches, eval_transform, open_dataset
from dnas.data.transforms import AugmentationConfig
from dnas.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def root(make_folder) -> Path:
    return make_folder(splits=("train",), count=2)


@pytest.fixture
def opened(root, tmp_path):
    """Open the training images with a cache on disk."""

    def open_it(**settings):
        data = {"dataset": "folder", "root": str(root), "cache": "disk", "cache_dir": str(tmp_path / "cache")}
        return open_dataset(DataConfig(**{**data, **settings}), "train")

    return open_it


@pytest.fixture
def reads(monkeypatch):
    """The images that were decoded."""
    from dnas.data.file_dataset import FileDataset

    found, read = [], FileDataset._read_pair

    def recorded(self, pair):
        found.append(pair.image.name)
        return read(self, pair)

    monkeypatch.setattr(FileDataset, "_read_pair", recorded)
    return found


def files(tmp_path):
    return sorted((tmp_path / "cache").glob("*/*.pixels"))


def assert_equal(pair, other):
    for one, two in zip(pair, other, strict=True):
        assert torch.equal(one.as_subclass(torch.Tensor), two.as_subclass(torch.Tensor))


@pytest.mark.parametrize("size", [None, (16, 24)])
def test_an_image_is_decoded_once_for_all_processes(opened, reads, tmp_path, size):
    plain = opened(cache=False, cache_dir=None, size=size)
    expected = [plain[index] for index in range(2)]
    reads.clear()
    for _ in range(2):
        dataset = opened(size=size)
        assert dataset.kept_in == "disk"
        for _ in range(2):
            for index in range(2):
                image, mask = dataset[index]
                assert_equal((image, mask), expected[index])
                image.zero_()  # what is returned can be written to, and no other reader sees it
                mask.zero_()
    assert reads == ["im0.png", "im1.png"]
    assert len(files(tmp_path)) == 2


def test_workers_fill_it_and_read_it(opened, reads):
    options = {"batch_size": 1, "seed": 0, "epoch": 0, "shuffle": False, "drop_last": False}
    transform = eval_transform(AugmentationConfig())
    loaded = [
        list(batches(opened(**values), transform, workers=workers, **options))
        for values, workers in (({"cache": False, "cache_dir": None}, 0), ({}, 1), ({}, 0))
    ]
    assert len(reads) == 2  # of the data without a cache; the worker's are not seen here, and then all are there
    for other in loaded[1:]:
        for pair, expected in zip(other, loaded[0], strict=True):
            assert_equal(pair, expected)


def test_a_changed_file_and_changed_settings_are_read_again(opened, reads, root, tmp_path):
    before = opened()[0]
    other = np.zeros((10, 14, 3), np.uint8)
    image = root / "train" / "images" / "im0.png"
    status = image.stat()
    Image.fromarray(other).save(image)
    assert not opened()[0][0].any()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    opened()[0]
    mask = root / "train" / "labels" / "im0.png"
    os.utime(mask, ns=(1, 1))
    opened()[0]
    assert len(reads) == 4
    assert len(files(tmp_path)) == 1  # a stale file is replaced
    opened(size=(16, 24))[0]
    opened(orientation="stored")[0]
    two_classes = (root / "classes.yaml").read_text().replace("  - {name: c, colour: [0, 0, 255]}\n", "")
    (root / "classes.yaml").write_text(two_classes.replace("ignore: 9", "ignore: 2"))
    _, relabelled = opened()[0]
    assert len(reads) == 7
    assert set(relabelled.unique().tolist()) <= {0, 1, 255}
    assert before[1].max() == 2


def test_other_content_counts_as_absent(opened, reads, tmp_path):
    expected = opened()[0]
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    height, width = 10, 14
    hostile = [
        b"",
        whole[:40],
        whole[:-1],
        whole + b"\0",
        b"x" * len(whole),
        whole[:40] + struct.pack("<III", 3, 0, 0) + whole[52:64],
        whole[:40] + struct.pack("<III", 2**32 - 1, 2**32 - 1, 2**32 - 1) + whole[52:],
        whole[:40] + struct.pack("<III", 4, height, width) + whole[52:] + bytes(height * width),
        whole[:-1] + bytes([3]),  # a label that is no class
    ]
    for number, content in enumerate(hostile, start=1):
        path.write_bytes(content)
        assert_equal(opened()[0], expected)
        assert len(reads) == 1 + number
        assert path.read_bytes() == whole
    path.unlink()
    os.mkfifo(path)
    assert_equal(opened()[0], expected)
    path.unlink()
    path.mkdir()
    assert_equal(opened()[0], expected)


def test_a_full_disk_is_an_error_at_the_beginning_and_none_later(opened, reads, tmp_path, monkeypatch):
    def room(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))

    room(2**30 + 8 * 10 * 14 - 1)
    with pytest.raises(UserError, match=r"the cache of 2 images needs .* set cache_dir"):
        opened(size=(10, 14))
    room(2**40)
    dataset = opened(size=(10, 14))
    room(2**30)
    for _ in range(2):
        assert dataset[0][0].any()
    assert len(reads) == 2
    assert not files(tmp_path)
    room(2**40)
    full = opened(size=(10, 14))
    expected = [full[index] for index in range(2)]
    room(0)
    complete = pickle.loads(pickle.dumps(opened(size=(10, 14))))  # as it is sent to workers that are not forked
    for index in range(2):
        assert_equal(complete[index], expected[index])
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    with pytest.raises(UserError, match="blocked"):
        opened(cache_dir=str(blocked))


def test_a_missing_file_is_reported_as_without_a_cache(opened, root):
    dataset = opened()
    (root / "train" / "images" / "im0.png").unlink()
    with pytest.raises(UserError, match="no such image file"):
        dataset[0]
