"""State and weights on disk, written atomically and read without executing any code in the file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.files import read_bytes, write_atomically
from dnas.pickles import check_archive


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write plain containers and tensors, atomically; anything else raises TypeError, as it could not be read back."""
    _require_plain(state, "state")
    write_atomically(path, lambda stream: torch.save(dict(state), stream))


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what :func:`save_state` wrote, tensors on the CPU; None when there is no such file.

    Raises :class:`UserError` for any other file; a pickle that would execute code is refused.
    """
    if not path.exists():
        return None
    data = read_bytes(path, "training state")
    try:
        # torch does not verify the checksums that it writes, so it would not notice a flipped bit in a weight.
        intact = zipfile.ZipFile(io.BytesIO(data)).testzip() is None
        check_archive(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True) if intact else None
    except Exception:  # unpickling a damaged file can raise almost anything
        state = None
    if not isinstance(state, dict):
        raise UserError(
            f"{path}: not a readable training state, it is damaged or was not written by dnas; "
            "remove the run folder and start again, or restore the file from a copy"
        )
    return state


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically."""
    # Copied and contiguous: safetensors refuses tensors that share memory or have another layout.
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    data = safetensors.torch.save(tensors)
    write_atomically(path, lambda stream: stream.write(data))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors on the CPU; a missing or damaged file raises :class:`UserError`."""
    data = read_bytes(path, "weights file")
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the reader of a damaged header can raise almost anything
        raise UserError(f"{path}: not a readable safetensors file ({error}); it is damaged, recreate it") from None


def load_into(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``weights`` into ``module``; :class:`UserError` names the first name or shape that does not match."""
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise UserError(f"{source}: given a {type(weights).__name__}, expected named tensors")
    own = cast("dict[str, Tensor]", module.state_dict())
    missing = [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    if missing or unknown:
        which = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown to it"
        raise UserError(f"{source}: the weights are of another network: {which} ({len(missing) + len(unknown)} differ)")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            expected, given = tuple(tensor.shape), tuple(weights[name].shape)
            raise UserError(f"{source}: the weights are of another network: {name} is {given}, expected {expected}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # tensors of another kind, such as sparse ones
        raise UserError(f"{source}: the weights cannot be loaded: {str(error).strip().splitlines()[-1]}") from None


def _require_plain(value: Any, name: str) -> None:
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        for key, inner in value.items():
            _require_plain(key, f"a key of {name}")
            _require_plain(inner, f"{name}.{key}")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            _require_plain(inner, f"{name}.{index}")
    elif value is not None and type(value) not in (str, int, float, bool, Tensor, nn.Parameter):
        raise TypeError(f"a training state holds plain containers and tensors, {name} is a {type(value).__name__}")
