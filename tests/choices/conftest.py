"""A small network with every kind of choice."""

import pytest
import torch
from torch import nn

from dnas.choices import (
    ChoiceConv2d,
    ChoiceConvNorm,
    ChoiceGroupConvNorm,
    ChoiceNetwork,
    InputChoice,
    Lazy,
    OperatorChoice,
    RateChoice,
    RepeatChoice,
    WidthChoice,
)


class Residual(nn.Module):
    """An inverted residual block with a kernel, an expanded width and a rate to be chosen."""

    def __init__(self, width, hidden, upper=None):
        super().__init__()
        rate = 1 if upper is None else RateChoice(upper, 1.5)
        self.expand = ChoiceConvNorm(width, hidden)
        self.spatial = OperatorChoice(
            {"k3": ChoiceGroupConvNorm(hidden, 3, dilation=rate), "k5": ChoiceGroupConvNorm(hidden, 5)}
        )
        self.project = ChoiceConvNorm(hidden, width, activation=None)

    def forward(self, x):
        return x + self.project(self.spatial(self.expand(x)))


class Everything(nn.Module):
    """Stem, blocks that are repeated, two paths of which one is read, and a head."""

    def __init__(self, classes=5):
        super().__init__()
        width = WidthChoice((4, 8), name="width")
        hidden = WidthChoice((8, 12), name="hidden")
        self.stem = ChoiceConvNorm(3, width, 3, 2)
        self.blocks = RepeatChoice([Residual(width, hidden, 3.0), Residual(width, hidden)], 0, name="depth")
        self.fine = ChoiceConvNorm(width, 8, 3)
        self.coarse = nn.Sequential(ChoiceConvNorm(width, 8, 3), nn.MaxPool2d(3, 1, 1))
        self.path = InputChoice(("fine", "coarse"), name="path")
        self.classifier = ChoiceConv2d(8, classes, bias=True)

    def forward(self, images):
        x = self.blocks(self.stem(images))
        x = self.path([Lazy(lambda: self.fine(x)), Lazy(lambda: self.coarse(x))])
        return nn.functional.interpolate(self.classifier(x), size=images.shape[-2:], mode="bilinear")


@pytest.fixture
def network():
    """With statistics that differ by channel and width, in float64 and evaluation mode."""
    torch.manual_seed(0)
    return settled(ChoiceNetwork(Everything())).double().eval()


def settled(network):
    """Running statistics as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network
