from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dnas.config import parse_config, to_mapping
from dnas.data import AugmentationConfig, DataConfig, Labels, SamplingConfig, SegmentationDataset, open_dataset
from dnas.data.rand_augment import RandAugmentConfig
from dnas.errors import UserError
from dnas.progress import NoProgress
from dnas.runs import Interrupted, RunFolder
from dnas.training import RetrainConfig, retrain
from dnas.training.objective import Objective

CLASSES = 6
"""Of the built-in dataset "rectangles"."""


class Tiny(nn.Module):
    """Convolution, BatchNorm, dropout (so that random numbers matter) and, in training mode, auxiliary heads."""

    def __init__(self, classes=CLASSES, heads=0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Conv2d(8, classes, 1)
        self.auxiliary = nn.ModuleList(nn.Conv2d(8, classes, 1) for _ in range(heads))

    def forward(self, images):
        features = self.drop(torch.relu(self.norm(self.stem(images))))
        if self.training and self.auxiliary:
            return self.head(features), *(head(features) for head in self.auxiliary)
        return self.head(features)


def _data(train=9, val=3, **config):
    data = DataConfig(dataset="rectangles", size=(16, 32), images={"train": train, "val": val}, **config)
    return open_dataset(data, "train"), open_dataset(data, "val")


def _config(**values):
    defaults = {
        "epochs": 3,
        "batch_size": 2,
        "learning_rate": 0.05,
        "warm_up_steps": 3,
        "augmentation": AugmentationConfig(crop=(16, 16), brightness=0.3),
    }
    return RetrainConfig(**{**defaults, **values})


def _run(path, config, seed=5, resume=False):
    return RunFolder.create(path, "retrain", to_mapping(config), seed, resume, device="cpu")


def _retrain(path, config, *, resume=False, network=None, teacher=None, progress=None, data=None):
    network = network or Tiny(heads=len(config.auxiliary_weights))
    with _run(path, config, resume=resume) as run:
        return retrain(network, data or _data(), run, config, teacher=teacher, device="cpu", progress=progress)


def _lasting(path):
    """The log without values that differ between equal runs."""
    passing = ("seconds", "peak_memory_mb", "data_wait")
    records = RunFolder.open(path).records()
    return [{key: value for key, value in record.items() if key not in passing} for record in records]


def _assert_same_run(path, other):
    assert _lasting(path) == _lasting(other)
    for name in ("best", "last"):
        ours, theirs = RunFolder.open(path).load_weights(name), RunFolder.open(other).load_weights(name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_a_run_leaves_its_log_its_weights_and_a_result(tmp_path):
    config = _config(validate_every=2)
    network = Tiny()
    result = _retrain(tmp_path / "run", config, network=network)
    run = RunFolder.open(tmp_path / "run", kind="retrain")
    steps, epochs = run.records("step"), run.records("epoch")
    assert [(record["epoch"], record["step"]) for record in steps] == [(e, s) for e in range(3) for s in range(4)]
    assert steps[0].keys() == {
        *("kind", "epoch", "step", "loss", "loss_segmentation", "loss_distillation", "learning_rate", "seconds")
    }
    assert all(record["loss"] == record["loss_segmentation"] for record in steps)
    assert all(record["loss_distillation"] is None for record in steps)
    assert steps[0]["learning_rate"] == pytest.approx(0.05 * 0.1)
    assert steps[6]["learning_rate"] == pytest.approx(0.05 * 0.5**0.9)
    assert [record["miou"] is None for record in epochs] == [True, False, False]
    assert epochs[0].keys() == {
        *("kind", "epoch", "loss", "miou", "pixel_accuracy", "data_wait", "seconds", "peak_memory_mb")
    }
    assert all(0 <= record["data_wait"] <= 1 for record in epochs)
    assert epochs[1]["loss"] == pytest.approx(sum(record["loss"] for record in steps[4:8]) / 4)
    assert result.best_miou == max(record["miou"] for record in epochs[1:])
    assert epochs[result.best_epoch]["miou"] == result.best_miou
    last = run.load_weights("last")
    assert all(torch.equal(last[name], tensor) for name, tensor in network.state_dict().items())
    assert parse_config(RetrainConfig, run.configuration, "run") == config


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path):
    config = _config(epochs=1)
    _retrain(tmp_path / "a", config)
    torch.rand(7)  # regardless of earlier random numbers
    _retrain(tmp_path / "b", config)
    _assert_same_run(tmp_path / "a", tmp_path / "b")
    with _run(tmp_path / "c", config, seed=6) as run:
        retrain(Tiny(), _data(), run, config, device="cpu")
    assert _lasting(tmp_path / "c") != _lasting(tmp_path / "a")


def test_it_learns(tmp_path):
    config = _config(epochs=12, learning_rate=0.2, batch_size=4, ohem_threshold=None, augmentation=AugmentationConfig())
    result = _retrain(tmp_path, config, data=_data(train=16, val=4))
    losses = [record["loss"] for record in RunFolder.open(tmp_path).records("epoch")]
    assert losses[-1] < 0.7 * losses[0]
    assert result.best_miou > 0.15


def test_the_teacher_is_followed_and_left_as_it_was(tmp_path):
    teacher = Tiny(seed=3)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = _config(epochs=1, distillation_weight=0.5)
    _retrain(tmp_path / "run", config, teacher=teacher)
    assert not teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for record in RunFolder.open(tmp_path / "run").records("step"):
        expected = record["loss_segmentation"] + 0.5 * record["loss_distillation"]
        assert record["loss"] == pytest.approx(expected)
        assert record["loss_distillation"] > 0


def test_auxiliary_heads_are_weighed_and_trained(tmp_path):
    config = _config(epochs=1, auxiliary_weights=(0.4, 0.2))
    network = Tiny(heads=2)
    before = [head.weight.clone() for head in network.auxiliary]
    _retrain(tmp_path / "run", config, network=network)
    assert not any(torch.equal(head.weight, old) for head, old in zip(network.auxiliary, before, strict=True))
    assert all(
        record["loss"] > record["loss_segmentation"] for record in RunFolder.open(tmp_path / "run").records("step")
    )
    with pytest.raises(UserError, match="given 2, the network has 0 auxiliary heads"):
        _retrain(tmp_path / "other", config, network=Tiny())


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "bf16"},
        {"channels_last": True, "gradient_clipping": 0.1},
        {
            "schedule": "cosine",
            "workers": 1,
            "validation_batch_size": 2,
            "augmentation": AugmentationConfig(crop=(16, 16), brightness=0.3, on_device=True),
        },
        {"schedule": "exponential", "decay_norms_and_biases": True},
        {"ema_decay": 0.9, "ema_every": 2},
        {"optimizer": "adamw", "learning_rate": 1e-3, "class_weights": "enet", "ohem_threshold": None},
        {
            "sampling": SamplingConfig(rule="class_uniform"),
            "augmentation": AugmentationConfig(crop=(16, 16), rand_augment=RandAugmentConfig()),
            "accumulate": 3,
            "ema_decay": 0.9,
            "ema_warm_up": False,
            "freeze_norms": True,
        },
        {
            "sampling": SamplingConfig(rule="class_balanced"),
            "ohem_loss": 0.3,
            "label_smoothing": 0.1,
            "region_loss": "lovasz",
            "region_weight": 0.5,
        },
    ],
)
def test_options_resume_to_the_same_end(tmp_path, values):
    config = _config(epochs=2, **values)
    _retrain(tmp_path / "whole", config)
    with _run(tmp_path / "parts", config) as run, pytest.raises(Interrupted, match=r"1 of 2 epochs are saved"):
        retrain(Tiny(), _data(), run, config, device="cpu", progress=_InterruptAt(5))
    _retrain(tmp_path / "parts", config, resume=True)
    _assert_same_run(tmp_path / "whole", tmp_path / "parts")


class _InterruptAt(NoProgress):
    """Simulates Ctrl-C once, after a number of training steps."""

    def __init__(self, step):
        self.left = step
        self.messages = []

    def advance(self, steps=1, **figures):
        if "learning_rate" in figures:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    def message(self, text):
        self.messages.append(text)


MOMENTS = [
    ("truncate_log", 1, 0),  # before the first step
    ("log", 7, 1),  # in the middle of the second epoch and of a log line
    ("save_weights", 3, 1),  # between the second epoch's record and its weights
    ("save_state", 3, 2),  # after everything of the last epoch is written except the state
]
"""(method of the run folder, its how manieth call is the last, epochs finished by then)"""

CHILD = """
import os, signal, sys
import torch
sys.path.insert(0, {folder!r})
torch.set_num_threads({threads})
from dnas.runs import RunFolder
from dnas.training import end_processes
import test_retrain as tests

def run_until_killed(moment, count):
    original, calls = getattr(RunFolder, moment), []

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) == count:
            if moment == "log":
                with (self.path / "log.jsonl").open("a") as stream:
                    stream.write('{{"kind": "step", "ep')
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    setattr(RunFolder, moment, killed)
    tests._retrain(os.path.join({path!r}, moment), tests._config(), teacher=tests.Tiny(seed=3))

# Forked before torch has started threads: the imports take longer than the runs.
for moment, count, _ in tests.MOMENTS:
    child = os.fork()
    if child == 0:
        run_until_killed(moment, count)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, moment

# What torchrun does: two processes that find each other by their environment.
def run_together(rank):
    names = {{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": {port}}}
    os.environ.update({{name: str(value) for name, value in names.items()}}, MASTER_ADDR="127.0.0.1")
    tests._retrain(os.path.join({path!r}, "together"), tests._shared_config(batch_size=2), network=tests.Plain())
    end_processes()

children = []
for rank in range(2):
    child = os.fork()
    if child == 0:
        run_together(rank)
        sys.stdout.flush()
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    _retrain(path, _config(), teacher=Tiny(seed=3))
    return path


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """A folder with runs of other processes: one for each of MOMENTS, and "together"."""
    path = tmp_path_factory.mktemp("children")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    threads = torch.get_num_threads()
    child = CHILD.format(folder=str(Path(__file__).parent), path=str(path), threads=threads, port=port)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run([sys.executable, "-c", child], capture_output=True, timeout=120, env=environment)
    assert ended.returncode == 0, ended.stderr.decode()
    return path


@pytest.mark.parametrize(("moment", "count", "finished"), MOMENTS)
def test_a_killed_run_resumes_to_the_same_end(children, whole, moment, count, finished):
    state = RunFolder.open(children / moment).load_state()
    assert (0 if state is None else state["epoch"]) == finished
    _retrain(children / moment, _config(), resume=True, teacher=Tiny(seed=3))
    _assert_same_run(whole, children / moment)


def test_resuming_a_finished_run_changes_nothing(whole):
    files = {
        file.name: file.read_bytes() for file in whole.iterdir() if file.suffix in (".pt", ".jsonl", ".safetensors")
    }
    result = _retrain(whole, _config(), resume=True, network=Tiny(seed=9), teacher=Tiny(seed=3))
    assert {name: (whole / name).read_bytes() for name in files} == files
    epochs = RunFolder.open(whole).records("epoch")
    assert result.best_miou == max(record["miou"] for record in epochs)


def test_the_state_of_another_network_is_refused(whole):
    with pytest.raises(UserError, match="weights are of another network"):
        _retrain(whole, _config(), resume=True, network=nn.Conv2d(3, CLASSES, 1))


def test_divergence_names_the_epoch_and_the_step(tmp_path):
    config = _config(learning_rate=1e30, warm_up_steps=0)
    with pytest.raises(UserError, match=r"in epoch 1, step \d: training has diverged; .* learning rate below 1e\+30"):
        _retrain(tmp_path, config)
    assert not (tmp_path / "state.pt").exists()


def test_mistakes_are_named(tmp_path):
    config = _config(batch_size=10)
    with pytest.raises(UserError, match=r"9 images are fewer than the 10 .*smaller batch"):
        _retrain(tmp_path / "a", config)
    with pytest.raises(UserError, match=r"predicts 4 classes, the dataset has 6"):
        _retrain(tmp_path / "b", _config(), network=Tiny(classes=4))
    with pytest.raises(UserError, match=r"teacher predicts 4 classes and the student 6"):
        _retrain(tmp_path / "c", _config(), teacher=Tiny(classes=4))
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        _retrain(tmp_path / "d", _config(precision="fp16"))
    with pytest.raises(UserError, match=r"epochs: given 0.*; learning_rates: unknown key, known keys: epochs"):
        parse_config(RetrainConfig, {"epochs": 0, "learning_rates": 1}, "preset")


def test_a_batch_of_single_values_is_one_clear_line(tmp_path):
    class Pooled(Tiny):
        def forward(self, images):
            pooled = self.norm(nn.functional.adaptive_avg_pool2d(self.stem(images), 1))
            return self.head(pooled).expand(-1, -1, *images.shape[-2:])

    with pytest.raises(
        UserError, match=r"a batch of 1 image of 16x16 pixels .* use a larger batch_size, or a larger crop"
    ):
        _retrain(tmp_path / "run", _config(batch_size=1), network=Pooled())


def test_data_without_a_labelled_pixel_are_refused(tmp_path):
    train, val = _data()

    class Ignored:
        """A split whose pixels are all ignored."""

        def __init__(self, original):
            self._original = original

        def __getattr__(self, name):
            return getattr(self._original, name)

        def __len__(self):
            return len(self._original)

        def __getitem__(self, index):
            image, mask = self._original[index]
            return image, torch.full_like(mask, 255)

    with pytest.raises(UserError, match=r"no pixel of the training images of epoch 1 has a class"):
        _retrain(tmp_path / "a", _config(), data=(Ignored(train), val))
    with pytest.raises(UserError, match=r"rectangles val: no pixel of the 3 images has a class"):
        _retrain(tmp_path / "b", _config(), data=(train, Ignored(val)))


def test_the_last_batch_of_one_image_is_dropped(tmp_path):
    """BatchNorm over one value per channel is an error in torch."""

    class Pooled(Tiny):
        def forward(self, images):
            pooled = self.norm(self.stem(images).mean((2, 3), keepdim=True))
            return self.head(pooled).expand(-1, -1, *images.shape[2:])

    _retrain(tmp_path, _config(epochs=1), network=Pooled(), data=_data(train=5))
    assert len(RunFolder.open(tmp_path).records("step")) == 2


def test_the_log_is_plain_json_lines(whole):
    lines = (whole / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == 3 * [*4 * ["step"], "epoch"]


class Noise(SegmentationDataset):
    """Images of random pixels and labels, all of them valid."""

    def __init__(self, count, split="train"):
        labels = Labels(tuple("abcdef"), tuple((index, index, index) for index in range(CLASSES)))
        super().__init__(name="noise", split=split, labels=labels, count=count, size=(8, 8), cache=False)

    def _read(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator)
        return image, torch.randint(0, CLASSES, (8, 8), dtype=torch.uint8, generator=generator)

    def file_name(self, index):
        return str(index)

    def _native_size(self, index):
        return 8, 8


def test_accumulated_gradients_are_those_of_a_large_batch(tmp_path):
    ends = []
    for accumulate in (1, 2):
        network = Plain().double()
        network.register_forward_pre_hook(lambda _, images: images[0].double())
        config = _config(
            epochs=3,
            batch_size=4 // accumulate,
            accumulate=accumulate,
            ohem_threshold=None,
            augmentation=AugmentationConfig(),
            ema_decay=0.9,
        )
        _retrain(tmp_path / str(accumulate), config, network=network, data=(Noise(8), Noise(1, "val")))
        ends.append(RunFolder.open(tmp_path / str(accumulate)).load_weights("last"))
    assert ends[0]["layers.0.weight"].dtype == torch.float64
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-10, atol=1e-12)


def test_the_last_step_of_an_epoch_may_have_fewer_batches(tmp_path):
    config = _config(epochs=2, accumulate=3, ohem_threshold=None, warm_up_steps=0)
    _retrain(tmp_path, config, network=Plain(), data=(Noise(8), Noise(1, "val")))
    rates = [record["learning_rate"] for record in RunFolder.open(tmp_path).records("step")]
    assert rates == [pytest.approx(0.05 * (1 - update / 4) ** 0.9) for update in (0, 0, 0, 1, 2, 2, 2, 3)]


def test_frozen_norms_stay_as_they_were(tmp_path):
    network = Tiny()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _retrain(tmp_path, _config(epochs=1, freeze_norms=True), network=network)
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("norm"))
    assert not torch.equal(after["stem.weight"], before["stem.weight"])


class Plain(nn.Module):
    """No BatchNorm and no dropout: one process and two processes compute the same for a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, CLASSES, 1))

    def forward(self, images):
        return self.layers(images)


def _shared_config(batch_size):
    return _config(epochs=2, batch_size=batch_size, ohem_threshold=None)


def test_two_processes_do_the_work_of_one(tmp_path, children):
    _retrain(tmp_path, _shared_config(batch_size=4), network=Plain())
    records, shared = _lasting(tmp_path), _lasting(children / "together")
    for figure in ("loss", "loss_segmentation", "learning_rate", "miou", "pixel_accuracy"):
        values, others = ([record[figure] for record in log if figure in record] for log in (records, shared))
        assert others == pytest.approx(values, rel=1e-3), figure
    weights = RunFolder.open(tmp_path).load_weights("last")
    for name, tensor in RunFolder.open(children / "together").load_weights("last").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-5)


def test_an_infinite_loss_in_fp16_is_left_to_the_scaler_until_its_scale_is_used_up(tmp_path, monkeypatch):
    """The scaler is a stand-in, as there is none on a CPU."""

    class Scaler:
        scale_now, skipped = 2.0, 0

        def is_enabled(self):
            return True

        def get_scale(self):
            return self.scale_now

        def scale(self, loss):
            self.finite = bool(loss.isfinite())
            return loss

        def step(self, optimizer):
            if self.finite:
                optimizer.step()

        def update(self):
            if not self.finite:
                self.skipped += 1
                self.scale_now /= 2

        def state_dict(self):
            return {}

    scaler = Scaler()
    monkeypatch.setattr(sys.modules["dnas.training.retrain"], "make_scaler", lambda device, precision: scaler)
    overflowing = iter([False, True, False])
    plain = Objective.__call__

    def loss(self, outputs, images, labels):
        found = plain(self, outputs, images, labels)
        return dataclasses.replace(found, total=found.total * torch.inf) if next(overflowing, True) else found

    monkeypatch.setattr(Objective, "__call__", loss)
    config = _config(epochs=1)
    run = RunFolder.create(tmp_path / "run", "retrain", to_mapping(config), 0, False, device="cpu")
    with run, pytest.raises(UserError, match="the loss is inf in epoch 1, step 5"):
        retrain(Tiny(), _data(train=24), run, config, device="cpu")
    assert scaler.skipped == 2
    assert [record["loss"] is None for record in run.records("step")] == [False, True, False, True]
