"""A search so small that an epoch takes a fraction of a second."""

import multiprocessing
import os
import signal
import zlib
from types import SimpleNamespace

import pytest
import torch

from derive.multi_branch import decode, latency_bounds, network_price
from dnas.config import to_mapping
from dnas.data import AugmentationConfig, DataConfig, open_dataset
from dnas.data.seeding import mix_seed
from dnas.networks import network_by_name
from dnas.ops import make_fractional
from dnas.progress import NoProgress
from dnas.runs import RunFolder, seed_everything
from dnas.search import JointSearchConfig, LatencyTarget, OneShotConfig, search
from search_spaces.fasterseg import (
    ArchitectureParameters,
    CoSearch,
    DecoupledWeights,
    ExpectedLatency,
    FasterSegSearchConfig,
    Grid,
    MultiResolutionSupernet,
    NetworkPlan,
)
from search_spaces.fasterseg.one_shot import NetworkSampling
from search_spaces.regseg import RateSearch

multiprocessing.get_start_method()  # fixes the default start method, as the first data worker would

OPERATORS = ("skip", "conv", "zoomed_conv")
RATIOS = (1, 2)
GRID = Grid(3, (8, 16))
END_RATIOS = {"teacher": 2, "student": 1}


def price(spec):
    """A latency that grows with width and depth, with pseudo-random noise."""
    channels = sum(shape[0] for shape in spec.inputs) + spec.out_channels
    return (0.02 if spec.operator == "conv" else 0.05) * channels + zlib.crc32(spec.key.encode()) % 97 / 970


def make_problem(config, seed=0, *, num_classes=6, kind=CoSearch, decoupled=DecoupledWeights(), logits_seed=None):  # noqa: B008
    """Teacher and student over 3 layers, 2 scales, 3 operators and 2 ratios, with one branch."""
    seed_everything(mix_seed("weights", seed))
    supernet = MultiResolutionSupernet(GRID, OPERATORS, RATIOS, list(END_RATIOS.values()), 1, num_classes)
    architectures = {
        name: ArchitectureParameters(
            GRID,
            len(OPERATORS),
            RATIOS,
            end_ratio=ratio,
            search_ratios=name == "student",
            generator=torch.Generator().manual_seed(mix_seed("logits", name, logits_seed or seed)),
        )
        for name, ratio in END_RATIOS.items()
    }
    plans = {
        name: NetworkPlan(GRID, OPERATORS, RATIOS, 1, num_classes, (64, 64), ratio)
        for name, ratio in END_RATIOS.items()
    }
    return kind(
        supernet,
        architectures,
        {name: ExpectedLatency(plan, price) for name, plan in plans.items()},
        decoupled=decoupled,
        pretrain_passes=config.pretrain_passes,
        search_passes=config.search_passes,
        temperature=config.temperature,
        single_path=config.operator_sampling == "single_path",
        recompute=config.recompute,
        batch_equal_passes=config.batches_equal_passes,
    )


def make_data(train=9, val=1, size=(32, 32)):
    config = DataConfig(dataset="rectangles", size=size, images={"train": train, "val": val})
    return open_dataset(config, "train"), open_dataset(config, "val")


def make_config(**values):
    defaults = {
        "pretrain_epochs": 1,
        "search_epochs": 2,
        "batch_size": 2,
        "learning_rate": 0.05,
        "architecture_learning_rate": 0.05,
        "augmentation": AugmentationConfig(crop=(32, 32), brightness=0.2),
    }
    return FasterSegSearchConfig(**{**defaults, **values})


def make_rate_problem(seed=0, **options):
    """Two small D blocks at 1/8 with initial rates of 1."""
    seed_everything(mix_seed("weights", seed))
    network = network_by_name("regseg_small", 6, {"rates": [[1, 1], [1, 1]], "width": 32, "split_equal": True})
    return RateSearch(make_fractional(network, "backbone.blocks.*.branches.*", upper=float("inf")), **options)


def make_joint_config(**values):
    defaults = {
        "epochs": 3,
        "batch_size": 2,
        "learning_rate": 0.05,
        "architecture_learning_rate": 5.0,
        "augmentation": AugmentationConfig(crop=(64, 64), brightness=0.2),
    }
    return JointSearchConfig(**{**defaults, **values})


def run_joint(path, config=None, *, problem=None, train=4, **options):
    """Two steps per epoch by default."""
    data = make_data(train=train, size=(64, 64))
    return run_search(path, config or make_joint_config(), problem=problem or make_rate_problem(), data=data, **options)


def make_one_shot_problem(seed=0, networks=3, largest_first=False):
    """Sampled networks of the supernet of :func:`make_problem`."""
    seed_everything(mix_seed("weights", seed))
    supernet = MultiResolutionSupernet(GRID, OPERATORS, RATIOS, [END_RATIOS["student"]], 1, 6)
    plan = NetworkPlan(GRID, OPERATORS, RATIOS, 1, 6, (64, 64), END_RATIOS["student"])
    return NetworkSampling(supernet, plan, networks=networks, largest_first=largest_first, seed=seed)


def make_one_shot_config(**values):
    defaults = {
        "epochs": 2,
        "batch_size": 2,
        "learning_rate": 0.05,
        "warm_up_steps": 2,
        "held_out": 0.25,
        "augmentation": AugmentationConfig(crop=(32, 32), brightness=0.2),
    }
    return OneShotConfig(**{**defaults, **values})


def run_one_shot(path, config=None, *, problem=None, **options):
    return run_search(path, config or make_one_shot_config(), problem=problem or make_one_shot_problem(), **options)


def make_target(share):
    """A target between the latencies of the fastest (``share`` 0) and the slowest network (1)."""
    plan = NetworkPlan(GRID, OPERATORS, RATIOS, 1, 6, (64, 64), END_RATIOS["student"])
    bounds = latency_bounds(plan, price).values()
    fastest, slowest = (sum(pair[end].latency_ms for pair in bounds) / len(bounds) for end in (0, 1))
    cost = network_price(plan, price)

    def derived(logits):
        mine = {name.removeprefix("student."): x for name, x in logits.items() if name.startswith("student.")}
        return {str(scale): cost(decode(mine, plan, (scale,))) for scale in GRID.scales}

    return LatencyTarget(
        architecture="student",
        target_ms=fastest + share * (slowest - fastest),
        fastest_ms=fastest,
        derived=derived,
    )


def run_search(path, config, *, problem=None, data=None, seed=3, resume=False, progress=None, latency_target=None):
    problem = problem or make_problem(config)
    with RunFolder.create(path, "search", to_mapping(config), seed, resume, device="cpu") as run:
        return search(
            problem, data or make_data(), run, config, device="cpu", progress=progress, latency_target=latency_target
        )


def lasting(path):
    """The log without entries that differ between equal runs."""
    passing = ("seconds", "peak_memory_mb", "data_wait")
    return [{k: v for k, v in record.items() if k not in passing} for record in RunFolder.open(path).records()]


class Recorded:
    """A dataset that records which images are read."""

    def __init__(self, dataset):
        self._dataset, self.read = dataset, []

    def __len__(self):
        return len(self._dataset)

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def __getitem__(self, index):
        self.read.append(index)
        return self._dataset[index]


class PressesCtrlC(NoProgress):
    """Sends this process SIGINT after the given step, counted over all epochs."""

    def __init__(self, step):
        self.left, self.messages, self.validating = step, [], False

    def begin(self, description, total):
        self.validating = description == "validation"

    def advance(self, steps=1, **figures):
        self.left -= not self.validating
        if self.left == 0 and not self.validating:
            os.kill(os.getpid(), signal.SIGINT)

    def message(self, text):
        self.messages.append(text)


@pytest.fixture
def recorded():
    """The class of datasets that record what is read."""
    return Recorded


@pytest.fixture
def presses_ctrl_c():
    """The class of progresses that interrupt."""
    return PressesCtrlC


@pytest.fixture
def tiny():
    """The functions above."""
    return SimpleNamespace(
        problem=make_problem,
        data=make_data,
        config=make_config,
        run=run_search,
        lasting=lasting,
        price=price,
        latency_target=make_target,
    )


@pytest.fixture
def joint():
    """The functions above, for a search of dilation rates."""
    return SimpleNamespace(
        problem=make_rate_problem, config=make_joint_config, run=run_joint, lasting=lasting, data=make_data
    )


@pytest.fixture
def one_shot():
    """The functions above, for a one-shot search."""
    return SimpleNamespace(
        problem=make_one_shot_problem, config=make_one_shot_config, run=run_one_shot, lasting=lasting, data=make_data
    )
