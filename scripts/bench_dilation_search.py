"""Time of one training step of a network whose dilation rates are searched, by several ways to search them.

- integer: the network as it is; no rate is searched.
- exact: `make_fractional`, a mixture of integer convolutions.
- deformable: the same rates as offsets of a deformable convolution, the form in which RegSeg v3 writes them.
- three rates: the local search of RF-Next (Gao et al. 2022): every convolution runs at its rate and at a smaller and a
  larger one with the same weights, weighted by a softmax. Written here from the paper.
- DCLS: learned spacings (Khalfaoui-Hassani et al. 2023), if the package `DCLS` is installed.

All run step by step in turn in one process, on random images. Printed are medians, and ratios of adjacent steps.

    python scripts/bench_dilation_search.py [--networks dwrseg_b,torchvision:lraspp_mobilenet_v3_large]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.library_settings import missing_settings
from dnas.networks import network_by_name
from dnas.ops import fractional_layers, make_fractional

CLASSES = 11
NETWORKS = "dwrseg_b,torchvision:lraspp_mobilenet_v3_large"


class ThreeRates(nn.Module):
    """A convolution at three neighbouring rates with shared weights, weighted by a softmax."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        rate = conv.dilation[0]
        self.rates = (max(1, rate - 1), rate, rate + 1)
        self.scores = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        conv, half = self.conv, self.conv.kernel_size[0] // 2
        weights = self.scores.softmax(0).unbind()
        outs = [
            weight * F.conv2d(x, conv.weight, conv.bias, conv.stride, rate * half, rate, conv.groups)
            for weight, rate in zip(weights, self.rates, strict=True)
        ]
        return torch.stack(outs).sum(0)


def three_rates(network: nn.Module) -> nn.Module:
    """A copy whose dilated convolutions are :class:`ThreeRates`."""
    return replaced(network, ThreeRates)


def learned_spacings(network: nn.Module) -> nn.Module:
    """A copy whose dilated convolutions are DCLS's, with as many elements in a kernel of the same extent."""
    from DCLS.construct.modules import Dcls2d

    def make(conv: nn.Conv2d) -> nn.Module:
        extent = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
        layer: nn.Module = Dcls2d(
            conv.in_channels,
            conv.out_channels,
            kernel_count=conv.kernel_size[0] ** 2,
            stride=conv.stride,
            padding=extent // 2,
            dilated_kernel_size=extent,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        return layer

    return replaced(network, make)


def replaced(network: nn.Module, make: Callable[[nn.Conv2d], nn.Module]) -> nn.Module:
    """A copy with the layers replaced that make_fractional would make searchable."""
    result = copy.deepcopy(network)
    for name in fractional_layers(make_fractional(network)):
        parent, _, last = name.rpartition(".")
        conv = result.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        setattr(result.get_submodule(parent), last, make(conv))
    return result


@torch.no_grad()
def fractional(network: nn.Module) -> nn.Module:
    """A copy with fractional rates, between two integers as in a search (at an integer one convolution is enough)."""
    result = make_fractional(network)
    for layer in fractional_layers(result).values():
        layer.dilation.sub_(0.4)
    return result


def deformable(network: nn.Module) -> nn.Module:
    """The fractional network in its deformable form."""
    result = fractional(network)
    for layer in fractional_layers(result).values():
        layer.method = "deformable"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.update(missing_settings(os.environ))
    torch.set_num_threads(options.threads)
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "integer": copy.deepcopy,
        "exact": fractional,
        "deformable": deformable,
        "three rates": three_rates,
    }
    if importlib.util.find_spec("DCLS") is not None:
        ways["DCLS"] = learned_spacings
    print("| network | layers | way | wall (s) | CPU (s) | CPU, ratio to integer |\n|---|---|---|---|---|---|")
    for name in options.networks.split(","):
        torch.manual_seed(0)
        network = network_by_name(name, CLASSES)
        searched = len(fractional_layers(make_fractional(network)))
        networks = {way: make(network).train() for way, make in ways.items()}
        found = timed(networks, options)
        for way, steps in found.items():
            walls, cpus = zip(*steps, strict=True)
            ratio = statistics.median(one[1] / base[1] for one, base in zip(steps, found["integer"], strict=True))
            figures = f"{statistics.median(walls):.2f} | {statistics.median(cpus):.2f} | {ratio:.2f}"
            print(f"| {name} | {searched} | {way} | {figures} |", flush=True)


def timed(networks: dict[str, nn.Module], options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU time of every step, by way."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, *options.size, generator=generator)
    labels = torch.randint(CLASSES, (options.batch, *options.size), generator=generator)
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(options.warm_up + options.steps):
        for way, network in networks.items():
            begun = time.perf_counter(), time.process_time()
            network.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            if number >= options.warm_up:
                found.setdefault(way, []).append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return found


if __name__ == "__main__":
    main()
