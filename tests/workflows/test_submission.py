from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import Cityscapes

from dnas.cli import main
from dnas.data import AugmentationConfig, DataConfig, Labels, eval_transform, open_dataset
from dnas.data.layouts import cityscapes_lookup
from dnas.errors import UserError
from dnas.training import InferenceConfig, SegmentationMetrics, evaluate
from dnas.training.inference import predict
from dnas.workflows import networks
from dnas.workflows.networks import LoadedNetwork
from dnas.workflows.submission import label_ids, write_submission

SIZE = (32, 64)
TRAIN_NAMES = tuple(
    entry.name for entry in sorted(Cityscapes.classes, key=lambda e: e.train_id) if not entry.ignore_in_eval
)


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three annotated images of val and two of test, which have none."""
    random = np.random.default_rng(0)
    for split, count in (("val", 3), ("test", 2)):
        for index in range(count):
            stem = f"ulm_{index:06d}_000019"
            _save(
                tmp_path / f"leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png",
                random.integers(0, 256, (*SIZE, 3), np.uint8),
            )
            if split == "val":
                _save(tmp_path / f"gtFine/val/ulm/{stem}_gtFine_labelIds.png", random.integers(0, 34, SIZE, np.uint8))
    return tmp_path


@pytest.fixture
def loaded() -> LoadedNetwork:
    """A coarse network of the 19 classes."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 19, 3, stride=2, padding=1).eval()
    colours = tuple((index, 0, 0) for index in range(19))
    return LoadedNetwork("net", network, 19, SIZE, Labels(TRAIN_NAMES, colours), AugmentationConfig())


@pytest.mark.parametrize("options", [InferenceConfig(), InferenceConfig(input_size=(16, 32), flip=True)])
def test_the_files_score_what_evaluate_does(root: Path, loaded: LoadedNetwork, options: InferenceConfig):
    dataset = open_dataset(DataConfig(dataset="cityscapes", root=str(root)), "val")
    files = write_submission(loaded, root, root / "out", split="val", inference=options)
    metrics = SegmentationMetrics(TRAIN_NAMES)
    for index, file in enumerate(files):
        assert file.name == f"ulm_{index:06d}_000019_labelIds.png"
        image = Image.open(file)
        assert (image.mode, image.size) == ("L", (64, 32))
        predicted = cityscapes_lookup()[torch.from_numpy(np.array(image)).long()]
        metrics.update(predicted[None].long(), dataset[index][1][None].long())
    expected = evaluate(loaded.network, dataset, AugmentationConfig(), inference=options)
    assert metrics.result() == expected


def test_ids_follow_the_names_of_the_classes(loaded: LoadedNetwork):
    assert label_ids(["road", "car", "bicycle", "sky"]).tolist() == [7, 26, 33, 23]
    np.testing.assert_array_equal(cityscapes_lookup()[label_ids(TRAIN_NAMES).long()], np.arange(19))
    with pytest.raises(UserError, match="has a class 'pavement', Cityscapes has none"):
        label_ids(["road", "pavement"])


def test_an_interrupted_submission_is_continued(root: Path, loaded: LoadedNetwork):
    out = root / "out"
    first, second = write_submission(loaded, root, out)
    before = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match="is there already; continue with --resume"):
        write_submission(loaded, root, out)
    write_submission(loaded, root, out, resume=True)
    assert (first.stat().st_mtime_ns, second.read_bytes()) == before


def test_the_command_packs_the_files(root: Path, loaded: LoadedNetwork, monkeypatch, capsys):
    monkeypatch.setattr(networks, "load_network", lambda reference: loaded)
    command = ["submission", str(root), "--data", f"cityscapes:{root}", "--out", str(root / "out"), "--device", "cpu"]
    assert main([*command, "--zip", str(root / "out.zip")]) == 0
    with zipfile.ZipFile(root / "out.zip") as archive:
        assert archive.namelist() == ["ulm_000000_000019_labelIds.png", "ulm_000001_000019_labelIds.png"]
    assert "2 files in" in capsys.readouterr().err
    assert main(["submission", str(root), "--data", "streets", "--out", str(root / "x")]) == 2
    assert "use cityscapes:DIR" in capsys.readouterr().err
    assert main([*command, "--split", "all"]) == 2
    assert "expected test, val, train or train_extra" in capsys.readouterr().err


def test_pseudo_labels_are_trained_on_beside_labels(root: Path, loaded: LoadedNetwork):
    """ESeg, section 4.4: what is less probable than the confidence is ignored; half of the images are labelled."""
    random = np.random.default_rng(1)
    for split, count in (("train", 2), ("train_extra", 5)):
        for index in range(count):
            stem = f"bonn_{index:06d}_000019"
            image = random.integers(0, 256, (*SIZE, 3), np.uint8)
            _save(root / f"leftImg8bit/{split}/bonn/{stem}_leftImg8bit.png", image)
            if split == "train":
                _save(root / f"gtFine/train/bonn/{stem}_gtFine_labelIds.png", random.integers(0, 34, SIZE, np.uint8))
    config = DataConfig(dataset="cityscapes", root=str(root))
    with pytest.raises(UserError, match="pseudo_labels: no such folder; write them with dnas submission"):
        open_dataset(config, "train+pseudo")
    options = InferenceConfig(scales=(0.5, 1.0), flip=True)
    confidence = 0.09
    out = root / "pseudo_labels"
    write_submission(loaded, root, out, split="train_extra", inference=options, confidence=confidence)
    both, train = open_dataset(config, "train+pseudo"), open_dataset(config, "train")
    assert len(both) == 2 * 2 + 5
    assert torch.equal(both[2][1], train[0][1])
    image, mask = both[4]
    pixels, _ = eval_transform(AugmentationConfig())(image, mask)
    with torch.no_grad():
        shares = predict(loaded.network, pixels[None], SIZE, options)[0]
    probability, expected = shares.max(dim=0)
    assert 0.05 < float((probability < confidence).float().mean()) < 0.95
    torch.testing.assert_close(
        mask.as_subclass(torch.Tensor).long(), expected.masked_fill(probability < confidence, 255)
    )
    with pytest.raises(UserError, match="is for cityscapes"):
        open_dataset(DataConfig(dataset="streets", images={"train": 1}), "train+pseudo")
