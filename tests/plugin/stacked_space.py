"""A search space of somebody else's: a stack of convolutions, each with a kernel to be chosen.

The half that a search needs; the other half is ``stacked_derive``.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from dnas.choices import mean_entropy
from dnas.config import Field, config
from dnas.latency import InventoryItem, OperatorSpec
from dnas.ops import ConvNormAct, resize
from dnas.runs import seed_everything
from dnas.search import Pass, SearchConfig
from dnas.training import RetrainConfig
from search_spaces import SearchSpace, TaskConfig

KERNELS = (1, 3, 5)
CHANNELS = 16
SCALE = 8


@config
class StackedConfig:
    """A preset: how many layers, and the rest as in every preset."""

    space: str
    task: TaskConfig
    latency_target_ms: float | None = Field(default=None, gt=0)
    layers: int = Field(default=3, ge=1, le=6)
    search: SearchConfig = Field(default_factory=SearchConfig)
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)


class Stem(nn.Sequential):
    """(N, 3, H, W) -> (N, CHANNELS, H/8, W/8)."""

    def __init__(self):
        super().__init__(ConvNormAct(3, CHANNELS, stride=2), ConvNormAct(CHANNELS, CHANNELS, stride=2), nn.AvgPool2d(2))


class Head(nn.Module):
    """(N, CHANNELS, H/8, W/8) -> logits (N, classes, H, W)."""

    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(CHANNELS, num_classes, 1)

    def forward(self, x):
        return resize(self.classifier(x), (SCALE * x.shape[-2], SCALE * x.shape[-1]))


class Supernet(nn.Module):
    """Every layer runs all kernels, weighted."""

    def __init__(self, layers, num_classes):
        super().__init__()
        self.stem, self.head = Stem(), Head(num_classes)
        self.layers = nn.ModuleList(
            nn.ModuleList(ConvNormAct(CHANNELS, CHANNELS, kernel) for kernel in KERNELS) for _ in range(layers)
        )

    def forward(self, images, weights):
        x = self.stem(images)
        for operators, row in zip(self.layers, weights, strict=True):
            x = sum(weight * operator(x) for operator, weight in zip(operators, row, strict=True))
        return self.head(x)


class StackedProblem:
    """The supernet and one row of logits a layer; a sample is their softmax."""

    def __init__(self, layers, num_classes, prices, fixed_ms):
        self.weights = Supernet(layers, num_classes)
        self._logits = nn.Parameter(1e-3 * torch.randn(layers, len(KERNELS)))
        self.architecture = nn.ModuleDict({"network": nn.ParameterDict({"kernel": self._logits})})
        self._prices, self._fixed_ms = torch.tensor(prices), fixed_ms

    def begin_epoch(self, progress):
        pass

    def weight_passes(self, phase, generator):
        return [Pass("network", self._softmax().detach())]

    def architecture_passes(self, generator):
        return [Pass("network", self._softmax())]

    def validation_passes(self):
        likeliest = F.one_hot(self._logits.argmax(-1), len(KERNELS)).float()
        return {"network": Pass("network", likeliest)}

    def outputs(self, images, forward):
        return {"logits": self.weights(images, forward.sample)}

    def latency(self, forward):
        return (forward.sample * self._prices).sum() + self._fixed_ms

    def monitor(self):
        logits = self._logits.detach()
        return {
            "latency_ms": {"network": float(self.latency(Pass("network", logits.softmax(-1))))},
            "entropy": {"network": {"kernel": mean_entropy([logits])}},
        }

    def logits(self):
        return {"network.kernel": self._logits.detach().clone()}

    def _softmax(self):
        return self._logits.softmax(-1)


def build(spec):
    """The module of a signature."""
    if spec.operator == "stacked_stem":
        return Stem()
    if spec.operator == "stacked_head":
        return Head(spec.out_channels)
    return ConvNormAct(CHANNELS, CHANNELS, dict(spec.extras)["kernel"])


class StackedSpace(SearchSpace[StackedConfig]):
    """What ``dnas search`` needs of it."""

    settings_type = StackedConfig
    steered = "network"

    @property
    def search(self):
        return self.settings.search

    def layer_signatures(self):
        """Of one layer, by kernel."""
        height, width = (side // SCALE for side in self.input_size)
        shape = ((CHANNELS, height, width),)
        return [OperatorSpec("stacked_conv", shape, CHANNELS, extras=(("kernel", kernel),)) for kernel in KERNELS]

    def end_signatures(self):
        """Stem and head."""
        height, width = self.input_size
        return [
            OperatorSpec("stacked_stem", ((3, height, width),), CHANNELS, SCALE),
            OperatorSpec("stacked_head", ((CHANNELS, height // SCALE, width // SCALE),), self.num_classes),
        ]

    def inventory(self):
        return [InventoryItem(spec, partial(build, spec)) for spec in self.end_signatures() + self.layer_signatures()]

    def problem(self, table, seed):
        seed_everything(seed)
        prices = [table.lookup(spec) for spec in self.layer_signatures()]
        fixed_ms = sum(map(table.lookup, self.end_signatures()))
        return StackedProblem(self.settings.layers, self.num_classes, prices, fixed_ms)
