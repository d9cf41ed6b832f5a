"""The command line: parsing of arguments and printing of results."""

from dnas.cli.main import main

__all__ = ["main"]
