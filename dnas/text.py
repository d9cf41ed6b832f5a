"""Text from files and paths, made safe to show."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: a terminal would obey them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the order of the text
    "\u2028\u2029\ufeff\ud800-\udfff]"  # line separators, and halves of characters, which cannot be encoded
)


def printable(text: str) -> str:
    """``text`` with every character that a terminal would not print as such replaced by its escape (``\\x1b``)."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def encodable(text: str) -> str:
    """``text`` with what UTF-8 cannot encode, as parts of odd paths, replaced by its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(text: str, length: int) -> str:
    """``text``, with its middle left out if it is longer than ``length``."""
    if len(text) <= length:
        return text
    return f"{text[: length - length // 4]} ... {text[-(length // 4) :]}"
