"""Images of other than three channels, from the files to the exported network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from derive import deriver_of
from dnas.cli import main
from dnas.data import AugmentationConfig, batches, load_data_config, open_dataset, train_transform
from dnas.errors import UserError
from dnas.export.onnx_file import read_onnx
from dnas.input_channels import input_channels, with_input_channels
from dnas.networks import create_network
from dnas.runs import RunFolder
from dnas.workflows.search import run_search
from search_spaces import space_from
from tests.priced import priced_table

SPACE = """
space: fasterseg
task: {input_size: [64, 96], num_classes: 2, channels: 4}
branch_selection: {reference_ms: 1.0}
network: {layers: 4, ratios: [1, 2], student_ratio: 1, teacher_ratio: 2}
search: {pretrain_epochs: 1, search_epochs: 1, batch_size: 2, validation_images: 2}
retrain: {epochs: 1, batch_size: 2, augmentation: {brightness: 0.2, contrast: 0.2, saturation: 0.2}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of red, green, blue and near infrared, described by ``dnas data init``; the class is infrared."""
    root = tmp_path_factory.mktemp("bands")
    for n in range(8):
        random = np.random.default_rng(n)
        mask = np.zeros((64, 96), np.uint8)
        mask[10 + n : 40, 20:70] = 1
        image = np.dstack([random.integers(0, 256, (64, 96, 3), dtype=np.uint8), 60 + 120 * mask])
        (root / "images").mkdir(exist_ok=True)
        (root / "masks").mkdir(exist_ok=True)
        np.save(root / "images" / f"{n}.npy", image)
        Image.fromarray(mask).save(root / "masks" / f"{n}.png")
    assert main(["data", "init", str(root), "--val-share", "0.25"]) == 0
    with (root / "data.yaml").open("a") as file:
        file.write("range: [0, 240]\n")
    return root / "data.yaml"


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_first_convolutions_are_replaced_and_nothing_else(channels: int):
    torch.manual_seed(0)
    plain = create_network("dwrseg_b", 5)
    shapes = {name: tuple(value.shape) for name, value in plain.state_dict().items()}
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    network = with_input_channels(plain, channels)
    assert input_channels(network) == channels
    assert network.eval()(torch.zeros(2, channels, 64, 64)).shape == (2, 5, 64, 64)
    for name, value in network.state_dict().items():
        if tuple(value.shape) != shapes[name]:
            assert (value.shape[1], shapes[name][1]) == (channels, 3)
            spread = before[name].std() * (3 / channels) ** 0.5
            assert float(value.std()) == pytest.approx(float(spread), rel=0.25)
        else:
            assert torch.equal(value, before[name])


def test_published_networks_take_three_channels_unless_replaced():
    for name in ("regseg", "eseg_lite_s", "fasterseg_student"):
        with torch.device("meta"):
            network = create_network(name)
        assert input_channels(network) == 3
        assert with_input_channels(network, 3) is network
        assert input_channels(with_input_channels(network, 4)) == 4
    with pytest.raises(UserError, match="has no convolution of RGB images"):
        with_input_channels(nn.Sequential(nn.Conv2d(5, 2, 1)), 4)


@pytest.mark.parametrize(
    "values",
    [
        {"space": "fasterseg", "network": {"layers": 4, "ratios": [1, 2], "student_ratio": 1, "teacher_ratio": 2}},
        {"space": "eseg", "network": {"coarsest": [5], "repeats": 1, "depths": [1, 1, 1, 1], "expansions": [2]}},
        {"space": "dwrseg", "network": {"width": 0.25, "modules": [1, 1, 1]}},
        {
            "space": "regseg",
            "network": {"name": "regseg_small", "options": {"rates": [[1, 2], [1, 2]], "width": 32}},
            "rates": {"upper": 2},
        },
    ],
    ids=lambda values: values["space"],
)
def test_every_space_prices_its_networks_for_the_channels_of_the_images(values):
    """With 4 channels, what reads the images has 4 channels in the inventory and runs on them; the rest is the same."""
    task = {"input_size": [64, 64], "num_classes": 2}
    spaces = {n: space_from({**values, "task": {**task, "channels": n}}, "test") for n in (3, 4)}
    keys = {n: {item.spec.key for item in space.inventory()} for n, space in spaces.items()}
    new = [item for item in spaces[4].inventory() if item.spec.key not in keys[3]]
    assert new
    for item in new:
        assert (4, 64, 64) in item.spec.inputs
        item.build().eval()(*(torch.zeros(1, *shape) for shape in item.spec.inputs))
    assert len(keys[4]) == len(keys[3])
    space = spaces[4]
    table = dict.fromkeys(keys[4], 1.0)
    architecture = deriver_of(space).draw(1, 0)[0]
    assert deriver_of(space).predict_ms(architecture, FlatTable(table)) > 0


def test_a_table_for_rgb_is_refused(data: Path, tmp_path: Path):
    """One line names the entry, and the setting with which it is measured."""
    values = {"space": "fasterseg", "task": {"input_size": [64, 96], "num_classes": 2}}
    network = {"layers": 4, "ratios": [1, 2], "student_ratio": 1, "teacher_ratio": 2}
    space = space_from({**values, "network": network}, "rgb.yaml")
    table = priced_table(space, lambda _: 1.0)
    with pytest.raises(UserError, match=r"holds no 'stem in=4x64x96 .* --set task.channels=4"):
        run_search(space, load_data_config(str(data)), table, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


class FlatTable:
    """A table in which every operator takes 1 ms, and of which nothing may be missing."""

    def __init__(self, entries):
        self.entries = entries

    def lookup(self, spec):
        return self.entries[spec.key]


def test_augmentation_and_cache_keep_all_channels(data: Path):
    config = load_data_config(str(data), ["size=[32, 48]", "cache=true"])
    dataset = open_dataset(config, "train")
    settings = AugmentationConfig(
        crop=(48, 48),
        scale=(0.5, 1.5),
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.1,
        mean=config.mean,
        std=config.std,
    )
    options = {"batch_size": 2, "seed": 0, "epoch": 0, "shuffle": True, "drop_last": False}
    for _ in range(2):
        for images, _ in batches(dataset, train_transform(settings), **options):
            assert tuple(images.shape[1:]) == (4, 48, 48)
            assert images.isfinite().all()


def test_search_derive_retrain_evaluate_and_export(data: Path, tmp_path: Path, capsys):
    (tmp_path / "space.yaml").write_text(SPACE)
    space, table, search = (str(tmp_path / name) for name in ("space.yaml", "table.json", "search"))
    run = str(tmp_path / "run")
    architecture, out = str(tmp_path / "student.yaml"), str(tmp_path / "student.onnx")
    images = ["--data", str(data), "--device", "cpu"]
    commands = [
        ["latency", "build", space, "--out", table, "--rounds", "1", "--time-per-entry", "0.001", "--threads", "1"],
        ["search", space, *images, "--table", table, "--out", search],
        ["derive", search, "--out", architecture],
        ["retrain", architecture, *images, "--out", run],
        ["retrain", architecture, *images, "--out", str(tmp_path / "inherited"), "--inherit"],
        ["evaluate", run, *images, "--json"],
        ["export", run, "--format", "onnx", "--out", out],
    ]
    for command in commands:
        capsys.readouterr()
        status = main(command)
        printed = capsys.readouterr()
        assert status == 0, (command, printed.err)
        if command[0] == "evaluate":
            assert json.loads(printed.out)["images"] == 2
    shape = onnx.load(out).graph.input[0].type.tensor_type.shape
    assert [size.dim_value for size in shape.dim] == [1, 4, 64, 96]
    recorded = RunFolder.open(run).configuration["retrain"]["augmentation"]
    assert recorded["mean"] == list(load_data_config(str(data)).mean)
    assert main(["evaluate", run, "--data", "streets", "--device", "cpu"]) == 2
    metadata = read_onnx(Path(out))[1]
    assert metadata is not None
    assert metadata.value_range == (0, 240)
    picture = str(data.parent / "images" / "3.npy")
    maps = []
    for model in (run, out):
        capsys.readouterr()
        assert main(["evaluate", model, *images, "--json"]) == 0
        maps.append([json.loads(capsys.readouterr().out)["miou"]])
        folder = tmp_path / f"of_{Path(model).name}"
        assert main(["predict", model, picture, "--out", str(folder), "--device", "cpu"]) == 0
        maps[-1].append(np.asarray(Image.open(folder / "classes" / "3.png")))
    assert maps[0][0] == pytest.approx(maps[1][0], abs=0.01)
    assert (maps[0][1] == maps[1][1]).mean() > 0.99
