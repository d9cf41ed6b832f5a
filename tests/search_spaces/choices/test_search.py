"""A search of choices: learning rates by kind, bounds of rates, and a search that is interrupted."""

import json

import pytest
import torch
from torch import nn

from dnas.choices import (
    ChoiceConv2d,
    ChoiceConvNorm,
    ChoiceNetwork,
    Kind,
    OperatorChoice,
    RateChoice,
    RepeatChoice,
    WidthChoice,
)
from dnas.data import AugmentationConfig, DataConfig, open_dataset
from dnas.errors import UserError
from dnas.pricing import ExpectedLatency, inventory_of, latency_terms
from dnas.runs import RunFolder, seed_everything
from dnas.search import search
from search_spaces.choices import ChoiceSearch, ChoiceSearchConfig

KINDS = {"width": Kind(sampler="gumbel", learning_rate=0.0), "rate": Kind(learning_rate=40.0)}


class Small(nn.Sequential):
    def __init__(self):
        width = WidthChoice((4, 8), name="width")
        options = {
            "conv": ChoiceConvNorm(width, width, 3, dilation=RateChoice(1.5, name="rate")),
            "skip": nn.Identity(),
        }
        super().__init__(
            ChoiceConvNorm(3, width, 3, 4),
            RepeatChoice([OperatorChoice(options, name="operator")], 0, name="depth"),
            ChoiceConv2d(width, 6, bias=True),
        )


def problem():
    seed_everything(0)
    network = ChoiceNetwork(Small())
    inventory = inventory_of(network, (32, 32))
    terms = latency_terms(inventory, lambda spec: 0.01 * (1 + spec.out_channels))
    return ChoiceSearch(network, ExpectedLatency(terms, inventory.sizes), kinds=KINDS)


def config(epochs):
    return ChoiceSearchConfig(
        pretrain_epochs=0,
        search_epochs=epochs,
        batch_size=2,
        architecture_learning_rate=0.05,
        latency_weight=1.0,
        augmentation=AugmentationConfig(crop=(32, 32)),
    )


def run(path, epochs=2, *, resume=False):
    images = DataConfig(dataset="rectangles", size=(32, 32), images={"train": 12, "val": 1})
    data = open_dataset(images, "train"), open_dataset(images, "val")
    searched = problem()
    with RunFolder.create(path, "search", {}, 0, resume, device=torch.device("cpu")) as folder:
        search(searched, data, folder, config(epochs), device="cpu")
    return searched


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices") / "run"
    return run(path), path


def test_kinds_have_their_own_learning_rates_and_rates_stay_within_their_bounds(finished):
    searched, path = finished
    before, after = problem().logits(), searched.logits()
    assert torch.equal(before["network.width"], after["network.width"])
    assert not torch.equal(before["network.operator"], after["network.operator"])
    assert not torch.equal(before["network.depth"], after["network.depth"])
    assert 1.0 <= float(after["network.rate"]) <= 1.5
    epochs = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines() if '"kind": "epoch"' in line]
    assert epochs[-1]["rates"]["rate"] == pytest.approx(float(after["network.rate"]))
    assert set(epochs[-1]["entropy"]["network"]) == {"operator", "width", "repeat"}


def test_a_search_that_was_interrupted_ends_the_same(finished, tmp_path):
    run(tmp_path / "run", 1)
    resumed = run(tmp_path / "run", 2, resume=True)
    for name, logits in finished[0].logits().items():
        assert torch.equal(resumed.logits()[name], logits), name
    for one, other in zip(finished[0].weights.parameters(), resumed.weights.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_latency_pulls_towards_faster_options():
    searched = problem()
    sample = searched.network.sample(torch.Generator().manual_seed(0), KINDS)
    from dnas.search import Pass

    searched.latency(Pass("network", sample)).backward()
    width, depth = (searched.network.choices[name].logits.grad for name in ("width", "depth"))
    assert width[1] > 0 > width[0]
    assert depth[1] > 0 > depth[0]


def test_widths_cannot_be_mixed():
    network = ChoiceNetwork(Small())
    with pytest.raises(UserError, match="only one width can run"):
        network.sample(torch.Generator(), {"width": Kind(sampler="softmax")})
