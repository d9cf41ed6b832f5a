"""Beginning a training with the weights of another network, and reporting which ones fitted."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.files import read_bytes
from dnas.pickles import check_archive
from dnas.runs.checkpoint import load_weights

_NESTED = ("state_dict", "model_state", "model", "network", "weights")
"""Keys under which training programs keep the weights beside other state."""
_SHOWN = 6


@dataclass(frozen=True)
class InitialWeights:
    """What a network took from other weights, by names of its own tensors.

    taken: copied. reshaped: (name, shape there, shape here); they keep their random values, as do those in ``missing``,
    which the source does not have. unused: names in the source that the network does not have.
    """

    source: str
    taken: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        reshaped = {name: {"given": list(given), "expected": list(expected)} for name, given, expected in self.reshaped}
        return {
            "source": self.source,
            "taken": list(self.taken),
            "reshaped": reshaped,
            "missing": list(self.missing),
            "unused": list(self.unused),
        }

    def lines(self) -> list[str]:
        """A few lines for the user."""
        fresh = len(self.reshaped) + len(self.missing)
        lines = [f"initial weights from {self.source}: {len(self.taken)} of {len(self.taken) + fresh} tensors taken"]
        shapes = [f"{name} ({_size(given)} there, {_size(own)} here)" for name, given, own in self.reshaped]
        for what, names in (("of another shape", shapes), ("not there", self.missing), ("not used", self.unused)):
            if names:
                rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"  {what}: {', '.join(names[:_SHOWN])}{rest}")
        return lines


@torch.no_grad()
def take_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> InitialWeights:
    """Copy into ``network`` every tensor of ``weights`` with the same name and shape.

    Layers of the classes may thus differ. Raises :class:`UserError` if no parameter fits.
    """
    own: dict[str, Tensor] = dict(network.state_dict())
    reshaped, taken = [], []
    for name, tensor in own.items():
        if name not in weights:
            continue
        if weights[name].shape != tensor.shape:
            reshaped.append((name, tuple(weights[name].shape), tuple(tensor.shape)))
            continue
        tensor.copy_(weights[name])
        taken.append(name)
    if not {name for name, _ in network.named_parameters()} & set(taken):
        example = f"for example {next(iter(weights))}" if weights else "it is empty"
        raise UserError(f"{source}: none of its weights fits the network ({example}); they are of another network")
    missing = tuple(name for name in own if name not in weights)
    unused = tuple(name for name in weights if name not in own)
    return InitialWeights(source, tuple(taken), tuple(reshaped), missing, unused)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a PyTorch file that holds them, under their names.

    In a PyTorch file they may be nested as training programs do it; the prefix ``module.`` of data-parallel networks is
    removed. Nothing in the file is executed. Raises :class:`UserError` for a file without weights.
    """
    if path.suffix == ".safetensors":
        return load_weights(path)
    content = read_bytes(path, "weights file")
    try:
        check_archive(content)
        values: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file can raise almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a file of weights that can be read safely ({reason})") from None
    while isinstance(values, Mapping) and not any(isinstance(value, Tensor) for value in values.values()):
        inner = next((values[key] for key in _NESTED if isinstance(values.get(key), Mapping)), None)
        if inner is None:
            break
        values = inner
    found = _tensors(values)
    if not found:
        raise UserError(f"{path}: holds no weights; expected names and tensors, or {', '.join(_NESTED)} with them")
    return found


def _tensors(values: Any) -> dict[str, Tensor]:
    if not isinstance(values, Mapping):
        return {}
    found = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
