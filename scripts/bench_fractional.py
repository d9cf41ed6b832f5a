"""Time and peak memory of the fractional-dilation convolution against an integer convolution, as ratios.

Forward plus backward with the gradients of input, weight and rate, at a fractional and for comparison at the nearest
whole rate. The forms run in turn, round by round, so that a busy machine slows all of them; the figures are medians.
On a busy CPU, ``--clock cpu`` with ``--threads 1`` counts only the time that the process itself was running.

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

#: Feature maps of Cityscapes at 1/16 and of CamVid, and small ones as in a search on 160x160 and 256x256 images.
SHAPES = ("1x256x64x128", "2x128x64x128", "2x128x45x60", "8x64x20x20", "8x64x32x32")
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One convolution: tensors that want gradients, the gradient that comes back, the rate and the groups."""

    x: Tensor
    weight: Tensor
    dilation: Tensor
    passed: Tensor
    groups: int

    @classmethod
    def make(cls, shape: str, width: int, rate: float, device: torch.device, kind: torch.dtype) -> Case:
        """Random tensors for a shape such as 1x256x64x128, with groups of ``width`` channels."""
        sizes = [int(size) for size in shape.split("x")]
        torch.manual_seed(0)
        x = torch.randn(sizes, device=device, dtype=kind)
        weight = torch.randn(sizes[1], width, 3, 3, device=device, dtype=kind)
        dilation = torch.tensor(rate, device=device)
        wanted = [tensor.requires_grad_() for tensor in (x, weight, dilation)]
        return cls(*wanted, torch.randn_like(x), sizes[1] // width)

    @property
    def whole(self) -> int:
        """The nearest whole rate."""
        return round(self.dilation.item())

    def integer(self) -> object:
        """The integer convolution of the nearest rate."""
        out = F.conv2d(self.x, self.weight, None, 1, self.whole, self.whole, self.groups)
        return torch.autograd.grad(out, (self.x, self.weight), self.passed)

    def automatic(self, method: str = "exact") -> object:
        """What the library does by default, or by the deformable convolution."""
        out = fractional_conv2d(self.x, self.weight, self.dilation, None, 1, self.groups, method)
        return torch.autograd.grad(out, (self.x, self.weight, self.dilation), self.passed)

    def unfused(self) -> object:
        """Interpolation and matrix products, on CUDA devices too."""
        with torch.no_grad():
            rate = self.dilation.item()
            out = separable_conv2d(self.x, self.weight, None, rate, 1, self.groups)
            return out, separable_gradients(self.passed, self.x, self.weight, rate, 1, self.groups)

    def four(self) -> object:
        """The identity of four integer convolutions, written down plainly."""
        n = math.floor(self.dilation.item())
        f = self.dilation - n
        factors = {(n, n): (1 - f) ** 2, (n, n + 1): f * (1 - f), (n + 1, n): f * (1 - f), (n + 1, n + 1): f * f}
        out = sum(k.to(self.x) * F.conv2d(self.x, self.weight, None, 1, d, d, self.groups) for d, k in factors.items())
        return torch.autograd.grad(out, (self.x, self.weight, self.dilation), self.passed)

    def forms(self) -> dict[str, Work | None]:
        """All forms by name, None for one that is not available here."""
        return {
            "integer": self.integer,
            "exact": self.unfused if is_triton_supported(self.x) else self.automatic,
            "fused": self.automatic if is_triton_supported(self.x) else None,
            "four convolutions": self.four,
            "deformable": lambda: self.automatic("deformable"),
        }


class Clock:
    """Times a piece of work in ms, waiting for the device."""

    def __init__(self, device: torch.device, kind: str) -> None:
        self.device = device
        self.now = time.process_time if kind == "cpu" else time.perf_counter

    def __call__(self, work: Work) -> float:
        """How long ``work`` takes, in ms."""
        self._wait()
        start = self.now()
        work()
        self._wait()
        return 1e3 * (self.now() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(works: dict[str, Work], clock: Clock, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Times in ms of every form and its peak memory in MB above what lay there before."""
    memory = {}
    for name, work in works.items():
        work()  # warm-up; on CUDA it compiles and chooses algorithms
        memory[name] = peak_above(work, clock.device)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(clock(work))
    return times, memory


def peak_above(work: Work, device: torch.device) -> float:
    """Peak memory in MB that ``work`` adds."""
    _give_memory_back()
    _, before = with_peak_memory(device, lambda: None)
    _, peak = with_peak_memory(device, work)
    return peak - before


def _give_memory_back() -> None:
    """Return freed memory to the system, so that work that takes it again is seen to do so (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def report(case: Case, shape: str, clock: Clock, rounds: int) -> None:
    forms = case.forms()
    times, memory = measure({name: work for name, work in forms.items() if work is not None}, clock, rounds)
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{shape}, {case.groups} groups, rate {case.dilation.item():g}, {case.x.dtype}")
    print(f"  {'':18} {'ms':>9} {'time':>7} {'10..90 %':>13} {'MB':>8} {'memory':>7}   (time, memory: integer = 1)")
    for name, work in forms.items():
        if work is None:
            print(f"  {name:18} not available on {case.x.device.type}")
            continue
        ratios = sorted(one / base for one, base in zip(times[name], times["integer"], strict=True))
        spread = f"{ratios[len(ratios) // 10]:.2f}..{ratios[-1 - len(ratios) // 10]:.2f}"
        share = memory[name] / memory["integer"] if memory["integer"] else math.nan
        print(
            f"  {name:18} {middle[name]:9.2f} {middle[name] / middle['integer']:7.2f} {spread:>13} "
            f"{memory[name]:8.1f} {share:7.2f}"
        )
    print(f"  exact is {middle['deformable'] / middle['exact']:.1f} times faster than deformable")
    print_floor(case)


def print_floor(case: Case) -> None:
    """Operations and bytes that forward and backward cannot do without, and what the exact form does, counted."""
    macs = case.x.numel() * case.weight[0].numel()
    values, size = case.x.numel(), case.x.element_size()
    print(
        f"  floor: {3 * macs / 1e9:.3f} G multiply-adds of products (output and two gradients), as integer; "
        f"{5 * values * size / 1e6:.1f} MB read or written: input twice, output, two gradients"
    )
    own = (3 + 2 / 3) * macs / 1e9
    print(
        f"  exact: {own:.3f} G (2/3 of a product is the rate's) + {interpolations(values) / 1e9:.3f} G interpolation; "
        f"the four convolutions have {12 * macs / 1e9:.3f} G, distinct taps only {3 * macs * 25 / 9 / 1e9:.3f} G"
    )


def interpolations(values: int) -> int:
    """Multiply-adds of interpolating on both sides of a 3x3 kernel's product, two in each interpolation of a value."""
    forward = 2 * (2 + 2)  # above and below; then left and right
    backward = 2 * (2 + 2 + 2) + 2  # above and below again, adjoint of left and right, of above and below; differences
    slopes = 2 * 2  # the rate's sums over the rows' maps
    return values * (forward + backward + slopes)


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
