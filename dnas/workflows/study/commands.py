"""The commands that a study runs: what they write, what they need, and their command lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnas.errors import UserError
from dnas.workflows.study.references import as_text


@dataclass(frozen=True)
class Command:
    """A command of dnas.

    result: name of the file with its result in the job's folder, "" if it is the folder itself. It is given as
        ``--out`` if ``writes``, otherwise it is what the command prints with ``--json``.
    options: options that the study adds. measures: whether other work would disturb it. auto: whether it uses a GPU by
    default.
    """

    result: str
    writes: bool = True
    options: tuple[str, ...] = ()
    measures: bool = False
    auto: bool = False


PRINTED = "result.json"
"""Name of the file in a job's folder with what the command printed on standard output."""

COMMANDS = {
    "latency build": Command("table.json", options=("--resume",), measures=True),
    "latency predict": Command("table.json", measures=True),
    "latency check": Command(PRINTED, writes=False, options=("--json",), measures=True),
    "search": Command("", options=("--resume",), auto=True),
    "derive": Command("architecture.yaml", options=("--json",), auto=True),
    "retrain": Command("", options=("--resume",), auto=True),
    "evaluate": Command(PRINTED, writes=False, options=("--json",), auto=True),
    "benchmark": Command(PRINTED, writes=False, options=("--json",), measures=True),
    "export": Command("network", auto=False),
}
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "tensorrt": ".engine"}
_GIVEN = ("out", "resume", "json")


def split_command(name: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """The command at the beginning of ``words``, and its arguments; ``name`` is that of the job."""
    for length in (2, 1):
        if " ".join(words[:length]) in COMMANDS:
            return " ".join(words[:length]), list(words[length:])
    raise UserError(f"jobs.{name}: command {' '.join(words[:2])!r}: expected one of {', '.join(COMMANDS)}")


def result_name(command: str, options: Mapping[str, Any]) -> str:
    """The name of the result in the job's folder, "" for the folder itself."""
    suffix = _SUFFIXES.get(str(options.get("format", "onnx")), "") if command == "export" else ""
    return COMMANDS[command].result + suffix


def option_words(name: str, options: Mapping[str, Any]) -> list[str]:
    """The words of the options on the command line; ``name`` is that of the job."""
    words: list[str] = []
    for option, value in options.items():
        if option in _GIVEN:
            raise UserError(f"jobs.{name}: options.{option}: the study gives this option itself, remove it")
        for text in _texts(value):
            words += [f"--{option}"] if text is None else [f"--{option}", text]
    return words


def _texts(value: Any) -> list[str | None]:
    """The values of one option: none if it is off, None for a flag."""
    if value is True:
        return [None]
    if value is None or value is False:
        return []
    if isinstance(value, Mapping):
        return [f"{key}={as_text(inner)}" for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        # Of several mappings the last one with a key counts, as on the command line.
        return [text for inner in value for text in _texts(inner)]
    return [as_text(value)]


def uses_gpu(command: str, options: Mapping[str, Any]) -> bool:
    """Whether the command runs on a GPU if there is one."""
    device = str(options.get("device", "auto" if COMMANDS[command].auto else "cpu"))
    return device == "auto" or device.startswith("cuda")


def measures(command: str, options: Mapping[str, Any]) -> bool:
    """Whether the command measures latencies, which other work on the machine would disturb."""
    return COMMANDS[command].measures or bool(options.get("measure"))
