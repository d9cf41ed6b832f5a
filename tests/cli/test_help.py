"""The help of every command, written to a real standard output."""

import subprocess
import sys

import click
import pytest
import typer

from dnas.cli.main import app


def paths(command, path=()):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from paths(inner, (*path, name))


@pytest.mark.parametrize("path", sorted(paths(typer.main.get_command(app))), ids=" ".join)
def test_every_command_has_help(path):
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    with click.Context(command, info_name=" ".join(("dnas", *path))) as context:
        assert "Usage: dnas" in command.get_help(context)


def test_help_reaches_a_pipe():
    done = subprocess.run(
        [sys.executable, "-c", "from dnas.cli.main import main; raise SystemExit(main(['search', '--help']))"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--resume" in done.stdout
