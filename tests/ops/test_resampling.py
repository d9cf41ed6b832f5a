"""Resampling by matrices against ``F.interpolate``, forward and backward."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

from dnas.ops import resize

SIZES = [((2, 3), (3, 6)), ((4, 8), (8, 16)), ((5, 7), (9, 13)), ((12, 24), (96, 192)), ((11, 15), (90, 120))]
SIZES += [((1, 1), (2, 3)), ((9, 14), (5, 7)), ((65, 64), (130, 127))]


def library(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_values_and_gradients_are_the_librarys(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *source, dtype=torch.float64, requires_grad=True)
    found, expected = resize(x, target), library(x, target)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    (by_matrix,) = torch.autograd.grad(found, x, direction)
    (by_library,) = torch.autograd.grad(expected, x, direction)
    torch.testing.assert_close(by_matrix, by_library, rtol=0, atol=1e-12)


def test_strided_maps_and_single_precision() -> None:
    x = torch.randn(2, 8, 6, 10).to(memory_format=torch.channels_last).requires_grad_()
    for part in (x, x[:, 2:5], x[:, :, 1:, ::2]):
        torch.testing.assert_close(resize(part, (11, 20)), library(part, (11, 20)))


def test_without_gradients_it_is_the_librarys_to_the_bit() -> None:
    x = torch.randn(1, 3, 5, 7, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(resize(x, (10, 14)), library(x, (10, 14)))
    with torch.inference_mode():
        resize(torch.randn(1, 1, 7, 5), (14, 10))
    half = x.to(torch.bfloat16)
    assert torch.equal(resize(half, (10, 14)), library(half, (10, 14)))


def test_autocast_does_not_round_it() -> None:
    x = torch.randn(1, 3, 6, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize(x, (12, 14))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, library(x, (12, 14)))


def test_exported_it_is_the_librarys_operation() -> None:
    class Resize(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return resize(self.weight * x, (2 * x.shape[-2], 2 * x.shape[-1]))

    program = torch.export.export(Resize(), (torch.randn(1, 2, 5, 6),))
    assert any("upsample_bilinear2d" in str(node.target) for node in program.graph.nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: tracing is deprecated
        traced = torch.jit.trace(Resize(), torch.randn(1, 2, 5, 6))
    assert "upsample_bilinear2d" in str(traced.graph)
