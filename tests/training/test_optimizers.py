"""Fused SGD and clipping against torch's unfused implementations."""

import copy

import pytest
import torch

from dnas.training.optimizers import frozen, make_sgd


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)).double()


def test_the_fused_step_is_the_plain_one_when_gradients_come_late_or_not_at_all():
    plain = network()
    fused = copy.deepcopy(plain)
    options = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [make_sgd(plain, **options), make_sgd(fused, **options, fused=True)]
    x = torch.randn(6, 4, dtype=torch.float64)
    for step in range(4):
        for model, optimizer in zip((plain, fused), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            # The second layer gets its first gradient in the third step.
            (model(x) if step >= 2 else model[0](x)).square().mean().backward()
            optimizer.step()
        for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def fail_while_frozen(parameters):
    with frozen(parameters):
        assert not any(parameter.requires_grad for parameter in parameters)
        raise ZeroDivisionError


def test_frozen_parameters_thaw_even_after_an_error():
    parameters = list(network().parameters())
    with pytest.raises(ZeroDivisionError):
        fail_while_frozen(parameters)
    assert all(parameter.requires_grad for parameter in parameters)
