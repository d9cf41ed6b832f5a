"""Measuring a bundle on a device that is reached by ssh: sent there, run, and its results fetched."""

from __future__ import annotations

import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from dnas.errors import UserError
from dnas.files import write_atomically
from dnas.latency.remote.bundle import MANIFEST
from dnas.latency.remote.collect import RESULTS, read_manifest
from dnas.progress import NoProgress, Progress

_UNPACK = (
    "import os, sys, tarfile; folder = os.path.expanduser('~/' + sys.argv[1]); os.makedirs(folder, exist_ok=True); "
    "tarfile.open(fileobj=sys.stdin.buffer, mode='r|gz').extractall(folder)"
)
_FETCH = (
    "import os, sys; path = os.path.expanduser('~/' + sys.argv[1]); "
    "sys.stdout.buffer.write(open(path, 'rb').read() if os.path.exists(path) else b'')"
)
_RUN = (
    "import os, runpy, sys; folder = os.path.expanduser('~/' + sys.argv[1]); os.chdir(folder); "
    "sys.argv = ['run.py'] + sys.argv[2:]; runpy.run_path(os.path.join(folder, 'run.py'), run_name='__main__')"
)
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:]+\])(?::(?P<port>\d{1,5}))?/?"
)


@dataclass(frozen=True, kw_only=True)
class Host:
    """A device that is reached by ssh, and the Python there.

    ``ssh`` is the command, by default ``ssh`` with the user's configuration; it must not ask for a password.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    ssh: tuple[str, ...] = ("ssh",)

    @classmethod
    def parse(cls, address: str, *, python: str = "python3", ssh: str = "ssh") -> Self:
        """The host of ``ssh://[USER@]HOST[:PORT]``; anything else is a :class:`UserError`."""
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise UserError(f"address {address!r}: expected ssh://HOST, ssh://USER@HOST or ssh://USER@HOST:PORT")
        port = None if match["port"] is None else int(match["port"])
        return cls(
            host=match["host"].strip("[]"), user=match["user"], port=port, python=python, ssh=tuple(shlex.split(ssh))
        )

    def command(self, code: str, *arguments: str) -> list[str]:
        """The command line that runs Python ``code`` there."""
        place = ["-p", str(self.port)] if self.port is not None else []
        target = f"{self.user}@{self.host}" if self.user else self.host
        there = shlex.join([self.python, "-c", code, *arguments])
        return [*self.ssh, "-o", "BatchMode=yes", *place, "--", target, there]


def measure_on_host(
    bundle: Path, host: Host, *, arguments: Sequence[str] = (), progress: Progress | None = None
) -> None:
    """Send ``bundle`` to ``host``, run its ``run.py`` there with ``arguments``, and fetch the results into ``bundle``.

    The host needs Python with what ``run.py`` needs. The folder there stays, so that an interrupted measurement, also
    one whose connection broke, continues with the next call. Raises :class:`UserError` if the host cannot be reached
    or ``run.py`` fails; what it has measured is fetched all the same.
    """
    folder = f".cache/dnas-bundles/{read_manifest(bundle)['id']}"
    progress = progress or NoProgress()
    progress.begin(f"sending the bundle to {host.host}")
    _send(bundle, host, folder)
    progress.begin(f"measuring on {host.host}")
    try:
        _run(host, folder, arguments, progress)
    finally:
        results = _call(host.command(_FETCH, f"{folder}/{RESULTS}"), host)
        if results:
            write_atomically(bundle / RESULTS, lambda stream: stream.write(results))


def _send(bundle: Path, host: Host, folder: str) -> None:
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name in (MANIFEST, "run.py", "operators"):
                archive.add(bundle / name, name)
        packed.seek(0)
        _call(host.command(_UNPACK, folder), host, stdin=packed)


def _run(host: Host, folder: str, arguments: Sequence[str], progress: Progress) -> None:
    with (
        tempfile.TemporaryFile("w+") as errors,
        _started(host.command(_RUN, folder, *arguments), stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                match = re.match(r"(\d+)/(\d+) (.*)", line)
                if match is not None:
                    progress.update(int(match[1]), int(match[2]), item=match[3].strip())
        except BaseException:
            process.terminate()
            raise
        status = process.wait()
        errors.seek(0)
        if status != 0:
            raise _failed(host, errors.read())


def _call(command: list[str], host: Host, stdin: Any = subprocess.DEVNULL) -> bytes:
    with _started(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate()
    if process.returncode != 0:
        raise _failed(host, errors.decode(errors="replace"))
    return bytes(output)


def _started(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    try:
        return subprocess.Popen(command, **{"stdin": subprocess.DEVNULL, **options})
    except OSError as error:
        raise UserError(
            f"cannot start {command[0]}: {error.strerror or error}; install it, or give another --ssh"
        ) from None


def _failed(host: Host, errors: str) -> UserError:
    lines = [line for line in errors.splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "no message"
    if "No module named" in reason:
        reason += f"; install it for {host.python} there (run.py says what it needs), or give another --python"
    return UserError(f"{host.host}: {reason[:300]}")
