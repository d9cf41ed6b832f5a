"""Time and peak memory of the fractional-dilation convolution relative to an integer convolution.

Measures forward and backward pass with the gradients of input, weight and rate; the integer convolution has the nearest
integer rate. The implementations run in interleaved rounds, so that other work on the machine slows all of them; the
figures are medians. On a busy CPU, use ``--clock cpu`` with ``--threads 1`` to count only the CPU time of this process.

    python scripts/bench_fractional.py --device cpu --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dnas.export.memory import with_peak_memory
from dnas.ops import fractional_conv2d
from dnas.ops.fractional.separable import separable_conv2d, separable_gradients
from dnas.ops.fractional.triton_launch import is_triton_supported

#: Feature maps of Cityscapes at 1/16 and of CamVid, and small maps as in a search on 160x160 and 256x256 images.
SHAPES = ("1x256x64x128", "2x128x64x128", "2x128x45x60", "8x64x20x20", "8x64x32x32")
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One convolution: input, weight and rate, which require gradients, the gradient of the output, and the groups."""

    x: Tensor
    weight: Tensor
    dilation: Tensor
    gradient: Tensor
    groups: int

    @classmethod
    def make(cls, shape: str, width: int, rate: float, device: torch.device, kind: torch.dtype) -> Case:
        """Random tensors for a shape such as 1x256x64x128, with groups of ``width`` channels."""
        sizes = [int(size) for size in shape.split("x")]
        torch.manual_seed(0)
        x = torch.randn(sizes, device=device, dtype=kind)
        weight = torch.randn(sizes[1], width, 3, 3, device=device, dtype=kind)
        dilation = torch.tensor(rate, device=device)
        inputs = [tensor.requires_grad_() for tensor in (x, weight, dilation)]
        return cls(*inputs, torch.randn_like(x), sizes[1] // width)

    @property
    def integer_rate(self) -> int:
        """The nearest integer rate."""
        return round(self.dilation.item())

    def integer(self) -> object:
        """The integer convolution with the nearest rate."""
        out = F.conv2d(self.x, self.weight, None, 1, self.integer_rate, self.integer_rate, self.groups)
        return torch.autograd.grad(out, (self.x, self.weight), self.gradient)

    def automatic(self, method: str = "exact") -> object:
        """The default of the library, or the deformable convolution."""
        out = fractional_conv2d(self.x, self.weight, self.dilation, None, 1, self.groups, method)
        return torch.autograd.grad(out, (self.x, self.weight, self.dilation), self.gradient)

    def unfused(self) -> object:
        """Interpolation and matrix products, also on CUDA devices."""
        with torch.no_grad():
            rate = self.dilation.item()
            out = separable_conv2d(self.x, self.weight, None, rate, 1, self.groups)
            return out, separable_gradients(self.gradient, self.x, self.weight, rate, 1, self.groups)

    def four(self) -> object:
        """The naive sum of four integer convolutions."""
        n = math.floor(self.dilation.item())
        f = self.dilation - n
        factors = {(n, n): (1 - f) ** 2, (n, n + 1): f * (1 - f), (n + 1, n): f * (1 - f), (n + 1, n + 1): f * f}
        out = sum(k.to(self.x) * F.conv2d(self.x, self.weight, None, 1, d, d, self.groups) for d, k in factors.items())
        return torch.autograd.grad(out, (self.x, self.weight, self.dilation), self.gradient)

    def implementations(self) -> dict[str, Work | None]:
        """All implementations by name, None if not available on this device."""
        return {
            "integer": self.integer,
            "exact": self.unfused if is_triton_supported(self.x) else self.automatic,
            "fused": self.automatic if is_triton_supported(self.x) else None,
            "four convolutions": self.four,
            "deformable": lambda: self.automatic("deformable"),
        }


class Clock:
    """Measures the time of a function call in ms, synchronising with the device."""

    def __init__(self, device: torch.device, kind: str) -> None:
        self.device = device
        self.now = time.process_time if kind == "cpu" else time.perf_counter

    def __call__(self, work: Work) -> float:
        """The time of ``work`` in ms."""
        self._wait()
        start = self.now()
        work()
        self._wait()
        return 1e3 * (self.now() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(works: dict[str, Work], clock: Clock, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Times in ms of every implementation, and the peak memory in MB that it adds."""
    memory = {}
    for name, work in works.items():
        work()  # warm-up; on CUDA this compiles kernels and selects algorithms
        memory[name] = added_peak(work, clock.device)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(clock(work))
    return times, memory


def added_peak(work: Work, device: torch.device) -> float:
    """Peak memory in MB that ``work`` adds."""
    _release_memory()
    _, before = with_peak_memory(device, lambda: None)
    _, peak = with_peak_memory(device, work)
    return peak - before


def _release_memory() -> None:
    """Return freed memory to the system, so that its reuse counts as an allocation (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def report(case: Case, shape: str, clock: Clock, rounds: int) -> None:
    implementations = case.implementations()
    available = {name: work for name, work in implementations.items() if work is not None}
    times, memory = measure(available, clock, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{shape}, {case.groups} groups, rate {case.dilation.item():g}, {case.x.dtype}")
    print(f"  {'':18} {'ms':>9} {'time':>7} {'10..90 %':>13} {'MB':>8} {'memory':>7}   (time, memory: integer = 1)")
    for name, work in implementations.items():
        if work is None:
            print(f"  {name:18} not available on {case.x.device.type}")
            continue
        ratios = sorted(one / base for one, base in zip(times[name], times["integer"], strict=True))
        spread = f"{ratios[len(ratios) // 10]:.2f}..{ratios[-1 - len(ratios) // 10]:.2f}"
        share = memory[name] / memory["integer"] if memory["integer"] else math.nan
        print(
            f"  {name:18} {medians[name]:9.2f} {medians[name] / medians['integer']:7.2f} {spread:>13} "
            f"{memory[name]:8.1f} {share:7.2f}"
        )
    print(f"  exact is {medians['deformable'] / medians['exact']:.1f} times faster than deformable")
    print_operation_counts(case)


def print_operation_counts(case: Case) -> None:
    """Print the minimal operations and memory traffic of forward and backward pass, and those of the exact method."""
    macs = case.x.numel() * case.weight[0].numel()
    values, size = case.x.numel(), case.x.element_size()
    print(
        f"  minimum: {3 * macs / 1e9:.3f} G multiply-adds (output and two gradients), as for integer rates; "
        f"{5 * values * size / 1e6:.1f} MB read or written: input twice, output, two gradients"
    )
    products, interpolation = (3 + 2 / 3) * macs / 1e9, interpolations(values) / 1e9
    print(
        f"  exact: {products:.3f} G (2/3 of a product for the rate) + {interpolation:.3f} G interpolation; "
        f"four convolutions take {12 * macs / 1e9:.3f} G, or {3 * macs * 25 / 9 / 1e9:.3f} G with distinct taps only"
    )


def interpolations(values: int) -> int:
    """Multiply-adds of the interpolations around the products with a 3x3 kernel, two per interpolated value."""
    forward = 2 * (2 + 2)  # vertical, then horizontal
    backward = 2 * (2 + 2 + 2) + 2  # vertical again, the adjoints of both; differences
    rate_gradient = 2 * 2  # sums over the maps of the kernel rows
    return values * (forward + backward + rate_gradient)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="NxCxHxW")
    parser.add_argument("--group-width", type=int, default=16)
    parser.add_argument("--rate", type=float, default=4.3)
    parser.add_argument("--precision", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = Clock(device, options.clock)
    print(f"{device}, torch {torch.__version__}, {options.threads} threads, {options.clock} clock")
    for shape in options.shapes:
        case = Case.make(shape, options.group_width, options.rate, device, getattr(torch, options.precision))
        report(case, shape, clock, options.rounds)


if __name__ == "__main__":
    main()
