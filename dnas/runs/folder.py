"""The run folder: configuration, environment, log, state and weights of one search or retraining."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import filelock
import torch
from torch import Tensor
from typing_extensions import Self

from dnas.environment import describe_environment, process_count, process_rank
from dnas.errors import UserError
from dnas.files import dump_yaml, parse_yaml, read_json, read_yaml, remove_temporary, write_json, write_text
from dnas.json_lines import append_record, repair
from dnas.runs import checkpoint, log
from dnas.runs.tensorboard import TensorBoardMirror

_CONFIGURATION = "configuration.yaml"
_ENVIRONMENT = "environment.json"
_LOG = "log.jsonl"
_STATE = "state.pt"
_LOCK = ".lock"
_DECIDES_BITS = ("threads", "device", "cpu_capability", "torch", "torchvision", "numpy", "processes")
"""Entries of the environment with which the same run may compute other bits."""

_RESUME_PATIENCE = 8.0
"""Seconds to wait for the lock when resuming: data workers of a killed run hold it for a few seconds."""


class RunFolder:
    """One run on disk; make it with :meth:`create` or :meth:`open`.

    ``configuration.yaml`` (the full configuration), ``environment.json`` (kind, seed, versions, device, commit, command
    line; written last, so its presence makes the folder a run), ``log.jsonl`` (one JSON object per line), ``state.pt``
    (to resume from) and ``NAME.safetensors`` (weights). Files are replaced atomically, so a process that is killed at
    any moment leaves a folder that can be resumed. A created folder is locked until :meth:`close`; use it in ``with``.

    With torchrun every process creates the same folder: rank 0 owns it, the others write nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        role: Literal["owner", "follower", "reader"],
        configuration: Mapping[str, Any],
        environment: Mapping[str, Any],
        lock: filelock.BaseFileLock | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.path = path
        self.configuration = dict(configuration)
        self.environment = dict(environment)
        self.kind = str(environment["kind"])
        self.seed = int(environment["seed"])
        self._identity = environment.get("id")
        self._role = role
        self._lock = lock
        self._tensorboard = tensorboard
        self._mirror: TensorBoardMirror | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        kind: str,
        configuration: Mapping[str, Any],
        seed: int,
        resume: bool = False,
        *,
        device: str | torch.device | None = None,
        tensorboard: bool = False,
        upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        other_environment: bool = False,
        free: Collection[str] = (),
    ) -> RunFolder:
        """Begin a run of ``kind`` ("search" or "retrain") in ``path``, or resume the one there.

        With ``resume`` a folder without a run begins one (the process may have been killed before it was created).
        ``upgrade`` converts a run's configuration that an earlier version wrote to the current format.
        ``free``: dotted keys that do not decide the result and may differ from the run that is resumed.
        ``other_environment`` allows to resume with another number of threads, device or version, which may change the
        result. Raises :class:`UserError` when the folder holds a run and ``resume`` is false; when the run there is of
        another kind, seed, configuration (names the first dotted key that differs) or environment; when another process
        uses it.
        """
        path = Path(path)
        wanted = _plain_configuration(configuration)
        if process_rank() > 0:
            environment = {"kind": kind, "seed": seed, **describe_environment(device)}
            return cls(path, role="follower", configuration=wanted, environment=environment)
        if _holds_run(path) and not resume:
            raise UserError(f"{path}: contains a run already; continue it with --resume, or give another folder")
        lock = _lock(path, patience=_RESUME_PATIENCE if resume else 0.0)
        try:
            remove_temporary(path)
            if _holds_run(path):
                environment = _continue(path, kind, wanted, seed, device, upgrade, free, other_environment)
            else:
                environment = _begin(path, kind, wanted, seed, device)
        except BaseException:
            lock.release()
            raise
        return cls(
            path, role="owner", configuration=wanted, environment=environment, lock=lock, tensorboard=tensorboard
        )

    @classmethod
    def open(cls, path: str | Path, kind: str | None = None) -> RunFolder:
        """Open a run for reading, finished or not.

        Raises :class:`UserError` if ``path`` is not a run folder, or not one of ``kind``.
        """
        path = Path(path)
        if not _holds_run(path):
            raise UserError(
                f"{path}: no run folder ({_ENVIRONMENT} is missing); "
                f"expected a folder that dnas {kind or 'search or dnas retrain'} has written"
            )
        environment = _read_environment(path)
        if kind is not None and environment["kind"] != kind:
            raise UserError(f"{path}: the run there is a {environment['kind']}, expected a {kind}")
        configuration = read_yaml(path / _CONFIGURATION, "configuration of a run")
        return cls(path, role="reader", configuration=configuration, environment=environment)

    @property
    def is_owner(self) -> bool:
        """Whether this process writes to the folder."""
        return self._role == "owner"

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._role == "owner":
            self._role = "reader"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record; NaN or an infinity in it raises :class:`UserError` that names its dotted path."""
        if not self._writes():
            return
        record = log.plain(record)
        if self._tensorboard and self._mirror is None:
            self._mirror = TensorBoardMirror(self.path / "tensorboard", self.records())
        append_record(self.path / _LOG, record)
        if self._mirror is not None:
            self._mirror.write(record)

    def truncate_log(self, epoch: int) -> None:
        """Drop the records of ``epoch`` and later, which the resumed run writes again.

        Raises :class:`UserError` if records of earlier epochs are missing.
        """
        if not self._writes():
            return
        log.keep_records(self.path / _LOG, lambda record: record.get("epoch", -1) < epoch)
        logged = {record["epoch"] for record in self.records("epoch")}
        if logged and len(logged) < epoch:
            missing = next(number for number in range(epoch) if number not in logged)
            raise UserError(
                f"{self.path / _LOG}: the record of epoch {missing + 1} is missing, but the state has {epoch} finished "
                "epochs; restore the log, or start again"
            )

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The records of the log in their order, all or those of one kind ("step" or "epoch")."""
        records = log.read_records(self.path / _LOG)
        return records if kind is None else [record for record in records if record.get("kind") == kind]

    def save_state(self, state: Mapping[str, Any], epoch: int) -> None:
        """Replace ``state.pt``: ``epoch`` epochs are finished, and ``state`` is what the next one needs.

        Log the epoch before: a process that is killed in between repeats the epoch and, after ``truncate_log`` with the
        epoch of the state, logs it once.
        """
        if self._writes():
            own = {} if self._identity is None else {"run": self._identity}
            checkpoint.save_state(self.path / _STATE, {**state, "epoch": epoch, **own})

    def load_state(self, epochs: int | None = None) -> dict[str, Any] | None:
        """The last saved state and, under "epoch", the number of finished epochs; None if no epoch was finished.

        ``epochs``: how many the run has. Tensors are on the CPU. A damaged file, one that would execute code, one of
        another run, and one of more or fewer epochs than the log has raise :class:`UserError`.
        """
        path = self.path / _STATE
        state = checkpoint.load_state(path)
        if state is None:
            return None
        finished, owner = state.get("epoch"), state.pop("run", None)
        if type(finished) is not int:
            raise UserError(f"{path}: not the state of a run: the number of finished epochs is missing")
        if owner != self._identity and self._role != "follower":
            raise UserError(f"{path}: the state of another run; restore that of this run, or start again")
        if finished < 0 or (epochs is not None and not 1 <= finished <= epochs):
            raise UserError(
                f"{path}: gives {finished} finished epochs, expected 1 to {epochs or 'the number of the run'}"
            )
        return state

    def save_weights(self, name: str, state_dict: Mapping[str, Tensor]) -> None:
        """Replace ``NAME.safetensors``."""
        if self._writes():
            checkpoint.save_weights(self._weights_file(name), state_dict)

    def has_weights(self, name: str) -> bool:
        """Whether there is a file ``NAME.safetensors``."""
        return self._weights_file(name).exists()

    def load_weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of ``NAME.safetensors``, on the CPU; :class:`UserError` if it is missing or damaged."""
        path = self._weights_file(name)
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in self.path.glob("*.safetensors"))) or "none yet"
            raise UserError(f"{self.path}: contains no weights named {name}; known: {known}")
        return checkpoint.load_weights(path)

    def _weights_file(self, name: str) -> Path:
        if Path(name).name != name:
            raise ValueError(f"the name of weights is a plain name, not {name!r}")
        return self.path / f"{name}.safetensors"

    def _writes(self) -> bool:
        if self._role == "reader":
            raise RuntimeError(f"{self.path} was opened for reading (or closed)")
        return self._role == "owner"


def _holds_run(path: Path) -> bool:
    return (path / _ENVIRONMENT).exists()


def _plain_configuration(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """``configuration`` as it is read back from YAML, so that it compares equal to a stored one."""
    plain: dict[str, Any] = parse_yaml(dump_yaml(json.loads(json.dumps(configuration))), _CONFIGURATION)
    return plain


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write a run there: {error.strerror or error}") from None


def _lock(path: Path, patience: float) -> filelock.BaseFileLock:
    with _file_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError("the folder is read-only")
        lock = filelock.FileLock(path / _LOCK)
        try:
            lock.acquire(timeout=patience)
        except filelock.Timeout:
            raise UserError(
                f"{path}: another process is using this run; wait until it has finished, or end it"
            ) from None
        except NotImplementedError:
            raise UserError(f"{path}: this file system has no locks; put the run on a local disk") from None
    return lock


def _begin(path: Path, kind: str, configuration: dict[str, Any], seed: int, device: Any) -> dict[str, Any]:
    described = {**describe_environment(device), "processes": process_count()}
    environment = {"kind": kind, "seed": seed, "id": secrets.token_hex(8), **described, "resumed": []}
    for name in (_LOG, _STATE):
        if (path / name).exists():
            raise UserError(
                f"{path}: contains a {name} but no {_ENVIRONMENT}, so it is not a run; give an empty folder"
            )
    with _file_errors(path):
        write_text(path / _CONFIGURATION, dump_yaml(configuration))
        write_json(path / _ENVIRONMENT, environment)
    return environment


def _continue(
    path: Path,
    kind: str,
    configuration: dict[str, Any],
    seed: int,
    device: Any,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None,
    free: Collection[str],
    other_environment: bool,
) -> dict[str, Any]:
    environment = _read_environment(path)
    now = {**describe_environment(device), "processes": process_count()}
    if not other_environment:
        _check_environment(path, environment, now)
    stored = read_yaml(path / _CONFIGURATION, "configuration of a run")
    stored = stored if upgrade is None else upgrade(stored)
    if environment["kind"] != kind:
        raise UserError(f"{path}: the run there is a {environment['kind']}, it cannot be resumed as a {kind}")
    for before, wanted in (({"seed": environment["seed"]}, {"seed": seed}), (stored, configuration)):
        difference = _first_difference(before, wanted, free)
        if difference is not None:
            raise UserError(
                f"{path}: cannot resume with another configuration: {difference}; "
                "give the values of the run, or another folder"
            )
    with _file_errors(path):
        repair(path / _LOG, log.WHAT)
        write_text(path / _CONFIGURATION, dump_yaml(configuration))
        environment["resumed"] = [*environment.get("resumed", []), now]
        write_json(path / _ENVIRONMENT, environment)
    return environment


def _read_environment(path: Path) -> dict[str, Any]:
    environment = read_json(path / _ENVIRONMENT, "environment of a run")
    if not (
        isinstance(environment, dict)
        and isinstance(environment.get("kind"), str)
        and type(environment.get("seed")) is int
        and isinstance(environment.get("resumed", []), list)
        and all(isinstance(environment.get(key), (str, type(None))) for key in ("id", "command", "git_commit"))
    ):
        raise UserError(f"{path / _ENVIRONMENT}: not the environment of a run: its kind and seed are missing")
    return environment


def _check_environment(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if something that decides the bits of a result has changed since the run began."""
    changed = [name for name in _DECIDES_BITS if name in before and before[name] != now.get(name)]
    if changed:
        texts = ", ".join(f"{name} {before[name]} in the run, now {now.get(name)}" for name in changed)
        raise UserError(
            f"{path}: would not resume to the same result: {texts}; restore that, or accept another result with "
            "--other-environment"
        )


def _first_difference(before: Any, now: Any, free: Collection[str], name: str = "") -> str | None:
    """The first dotted key at which two configurations differ, with both values; None when they are equal.

    The values of ``free`` keys are not compared.
    """
    if name in free:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            if inner in free:
                continue
            if key not in now or key not in before:
                here, there = ("the run", "this call") if key in before else ("this call", "the run")
                return f"{inner} is set in {here} but not in {there}"
            difference = _first_difference(before[key], now[key], free, inner)
            if difference is not None:
                return difference
        return None
    same = before is now if type(before) is bool or type(now) is bool else before == now
    return None if same else f"{name} is {json.dumps(before)} in the run, now {json.dumps(now)}"
