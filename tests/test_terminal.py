from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dnas.errors import UserError
from dnas.progress import RichProgress
from dnas.terminal import Output

ROOT = Path(__file__).resolve().parents[1]


class Lost(io.StringIO):
    """A stream that fails like one that is full or that nobody reads."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_control_characters_are_written_as_escapes_but_lines_and_tabs_stay():
    stream = io.StringIO()
    print("a\tb\nc \x1b[31mred\x07 \x9b2J \u202etxt\r\n\x85\udcff", file=Output(stream, optional=False))
    assert stream.getvalue() == "a\tb\nc \\x1b[31mred\\x07 \\x9b2J \\u202etxt\\r\n\\x85\\udcff\n"


def test_what_the_encoding_lacks_is_replaced():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("Straße", file=Output(stream, optional=False), flush=True)
    assert stream.buffer.getvalue() == b"Stra\\xdfe\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed")])
def test_a_lost_optional_stream_is_ignored_and_another_is_an_error(error: Exception):
    errors = Output(Lost(error), optional=True)
    print("one", file=errors)
    print("two", file=errors, flush=True)
    with pytest.raises(BrokenPipeError if isinstance(error, BrokenPipeError) else UserError):
        print("one", file=Output(Lost(error), optional=False))
    print("", file=Output(None, optional=False))


def test_progress_goes_on_without_standard_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Lost(BrokenPipeError()))
    with RichProgress() as progress:
        progress.begin("epoch", 2)
        progress.message("one \x1b[31m")
        progress.advance(loss=1.0)
        progress.message("two")


COMMAND = """
import sys
from dnas.cli import main
from dnas.cli.main import app

@app.command("wait")
def wait() -> None:
    import signal, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    print("ready", flush=True)
    time.sleep(60)

@app.command("say")
def say() -> None:
    print("x" * 10000)

sys.exit(main(sys.argv[1:]))
"""


def _start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", COMMAND, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)])
def test_signals_end_a_command_with_one_line_and_their_status(number: int, status: int):
    with _start("wait", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(number)
        said = process.stderr.read()
    assert (process.returncode, said.count(b"\n")) == (status, 1)
    assert said.startswith(b"dnas: ")


def test_a_full_standard_output_is_one_line():
    with Path("/dev/full").open("wb") as full, _start("say", stdout=full) as process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert said == b"dnas: standard output: cannot write: No space left on device\n"
    assert process.returncode == 2
