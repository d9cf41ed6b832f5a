"""Inspection of pickles, without executing them, for structures that would keep the reader busy for ever.

Code in a pickle is refused by the readers. What they do not notice are tuples of tuples that share their parts: as the
key of a dictionary, 40 of them take 2**40 steps.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from typing import Any

from dnas.limits import MAX_DEPTH, check_graph

_PARTS_PER_VALUE = 20
_LEGACY_PICKLES = 5
_BUILDS = {"LIST", "TUPLE", "DICT", "FROZENSET", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_SET", "TUPLE1",
           "TUPLE2", "TUPLE3"}  # fmt: skip
_ADDS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


def check_archive(content: bytes) -> None:
    """Check all pickles in a file that ``torch.save`` has written, in the current or the earlier format.

    Raises :class:`ValueError` for one that is damaged or would expand beyond all bounds.
    """
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".pkl"):
                    if info.file_size > len(content):
                        raise ValueError("a compressed pickle")
                    check_pickle(archive.read(info))
        return
    stream = io.BytesIO(content)
    for _ in range(_LEGACY_PICKLES):  # the tensors follow
        if stream.tell() < len(content):
            check_pickle(stream)


def check_pickle(content: bytes | io.BytesIO) -> None:
    """Check one pickle; from a stream one is read, and the stream stands behind it."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(content):
        machine.step(opcode, argument)
    size = _PARTS_PER_VALUE * machine.count + 1000
    check_graph(machine.everything, lambda value: value, depth=10 * MAX_DEPTH, size=size)


class _Machine:
    """The stack of a pickle, with every value as the list of its parts."""

    def __init__(self) -> None:
        self.everything: list[Any] = []
        self.count = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Execute one instruction."""
        name = opcode.name
        self.count += 1
        if name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "STOP":
            self.everything = [self._stack.pop()]
        else:
            self._other(opcode)

    def _other(self, opcode: pickletools.OpcodeInfo) -> None:
        taken = self._take(opcode.stack_before)
        if opcode.name in _ADDS:
            taken[0].extend(taken[1:])
            self._stack.append(taken[0])
        elif opcode.name in _BUILDS or opcode.stack_after:
            self._stack.append(taken)

    def _take(self, wanted: list[pickletools.StackObject]) -> list[Any]:
        """The values that an instruction takes from the stack, in their order."""
        if pickletools.markobject in wanted:
            before = wanted.index(pickletools.markobject)
            start = self._marks.pop() - before
            if start < 0:
                raise ValueError("the stack is empty")
        else:
            start = len(self._stack) - len(wanted)
            if start < 0 or (self._marks and start < self._marks[-1]):
                raise ValueError("the stack is empty")
        taken = self._stack[start:]
        del self._stack[start:]
        return taken
