"""The command line: the one place that knows the engine, the search spaces and the derivation together."""

from dnas.cli.main import main

__all__ = ["main"]
