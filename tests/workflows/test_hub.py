"""``dnas share``: a network of a run as a folder of the Hugging Face Hub, and back."""

import json

import pytest
import torch

from dnas.cli import main
from dnas.config import to_mapping
from dnas.data import open_dataset
from dnas.errors import UserError
from dnas.networks import network_by_name
from dnas.runs import RunFolder
from dnas.training import RetrainConfig
from dnas.workflows.evaluating import open_scored
from dnas.workflows.networks import load_network

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory, reader, data):
    """A run of ``dnas retrain`` as it is on disk, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("runs") / "run"
    description = {"name": "regseg_small", "options": {}}
    configuration = {
        "network": description,
        "data": to_mapping(data),
        "retrain": to_mapping(RetrainConfig()),
        "classes": list(reader.labels.names),
        "colours": [list(colour) for colour in reader.labels.colours],
        "input_size": [32, 48],
    }
    with RunFolder.create(path, "retrain", configuration, 0) as folder:
        folder.save_weights("best", network_by_name("regseg_small", 3).state_dict())
    return path


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "network"
    assert main(["share", str(run), "--out", str(out), "--licence", "mit"]) == 0
    return out


def test_the_folder_holds_safetensors_configuration_and_card(shared):
    assert {path.name for path in shared.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((shared / "config.json").read_text())
    assert config["class_names"] == ["red", "green", "blue"]
    assert config["network"]["name"] == "regseg_small"
    card = (shared / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "| 2 | blue | 0, 0, 200 |" in card
    assert "HubNetwork.from_pretrained" in card


def test_it_comes_back_as_the_network_of_the_run(run, shared, data):
    before, after = load_network(str(run)), load_network(str(shared))
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(after.network(images), before.network(images))
    assert (after.labels, after.input_size) == (before.labels, before.input_size)
    assert (after.augmentation.mean, after.augmentation.std) == (before.augmentation.mean, before.augmentation.std)
    assert open_scored(shared, open_dataset(data, "val")).evaluate().images == 3


def test_from_pretrained_and_push_to_hub_are_those_of_the_mixin(shared, run, tmp_path, monkeypatch):
    from dnas.workflows.hub import HubNetwork

    network = HubNetwork.from_pretrained(str(shared))
    assert not network.training
    assert network.licence == "mit"
    pushed = []
    monkeypatch.setattr(HubNetwork, "push_to_hub", lambda self, name: pushed.append(name))
    assert main(["share", str(run), "--out", str(tmp_path / "again"), "--push", "me/network"]) == 0
    assert pushed == ["me/network"]


def test_mistakes_are_one_line(shared, run, tmp_path, capsys):
    assert main(["share", str(run), "--out", str(shared)]) == 2
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no network of dnas share there"):
        load_network(str(tmp_path))
