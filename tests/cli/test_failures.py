from __future__ import annotations

import signal

import pytest

from dnas.cli import main
from dnas.cli.failures import describe
from dnas.errors import Interrupted, UserError


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (UserError("wrong\x1b[31m"), r"wrong\x1b[31m", 2),
        (KeyboardInterrupt(), "interrupted", 130),
        (Interrupted("stopped in epoch 2", signal.SIGTERM), "stopped in epoch 2", 143),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied", 2),
        (OSError(28, "No space left on device"), "No space left on device", 2),
        (MemoryError(), "not enough memory", 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), "not enough memory", 2),
        (OverflowError("Python int too large to convert to C long: overflow"), "not enough memory", 2),
    ],
)
def test_errors_that_are_no_fault_of_the_program_are_one_line(error: BaseException, message: str, status: int):
    found = describe(error)
    assert found is not None
    assert message in found[0]
    assert found[1] == status


def test_an_interruption_that_a_library_has_hidden_is_one():
    error = RuntimeError("unexpected position in the archive")
    error.__context__ = KeyboardInterrupt()
    assert describe(error) == ("interrupted", 130)
    assert describe(RuntimeError("a mistake of the program")) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["latency", "show", "x" * 300],
        ["latency", "show", "/dev/null"],
        ["latency", "show", "/dev/zero"],
        ["benchmark", "regseg_small", "--size", "9" * 6000 + "x9"],
        ["benchmark", "regseg_small", "--size", "64x64", "--classes", "9" * 6000],
        ["derive", "x", "--out", "y", "--branches", "9" * 6000],
        ["search", "x\x1b[31m", "--data", "streets", "--out", "y"],
        ["evaluate", "x\udcff", "--data", "streets"],
        ["search", "regseg_demo", "--data", "folder:/x\udcff", "--out", "y"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40].encode("ascii", "replace").decode(),
)
def test_hostile_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("dnas: ")
    assert printed.err.count("\n") == 1
    assert "\x1b" not in printed.err
