from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.errors import UserError
from dnas.files import (
    dump_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
    remove_temporary,
    write_atomically,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 1 << 20

# fmt: off
lookalikes = st.sampled_from([
    "1e-3", "1E5", "-1e+3", "yes", "No", "null", "~", "=", "<<", "1:30", "0x1F", "010", "1_0", ".inf", ".nan",
    "\x85", "\u2028", "2020-01-01", "#", "!x", "&a", "*a", "%", "@", "`", "{", "[", "|", ">", "-", "?", "",
    "- a", "a: b", "? ",
])
# fmt: on
numberish = st.from_regex(r"[-+]?[0-9_.:]{0,4}([eE][-+]?[0-9]{0,3})?", fullmatch=True)
spaced = st.text(alphabet=" \n\t\r\x85\u2028\ufeff:#-'\"\\ab", max_size=200)
texts = st.text() | lookalikes | numberish | spaced
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(texts, plain, max_size=4))
def test_yaml_gives_back_every_plain_value(value: dict[str, Any]):
    back = parse_yaml(dump_yaml(value), "text")
    assert repr(back) == repr(value)  # types, signs of zero and NaN included


def test_the_order_of_keys_stays_and_nothing_is_a_reference():
    shared = [1, 2]
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n- 1\n- 2\na:\n- 1\n- 2\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("1_000e1", 10000.0),
        ("0.5", 0.5),
        ("3", 3),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e-3x", "1e-3x"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
    ],
)
def test_numbers_as_people_write_them(text: str, value: object):
    read = parse_yaml(text, "text")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml: line 3 not valid YAML: the key 'a' occurs twice"),
        ("x:\n  a: 1\n  a: 1", "the key 'a' occurs twice"),
        ("a: [1", "f.yaml: line 1 not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("? [1]\n: 2", "found unhashable key"),
        ("[" * 5000, "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_broken_yaml_is_one_clear_error(text: str, message: str):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "f.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "3", "just text", "1: 2"])
def test_a_yaml_file_must_hold_a_mapping_of_names(tmp_path: Path, text: str):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=r"f\.yaml: expected a mapping of names to values"):
        read_yaml(tmp_path / "f.yaml")


@given(plain)
def test_json_gives_back_every_finite_value_and_refuses_the_rest(tmp_path_factory: pytest.TempPathFactory, value: Any):
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.unlink(missing_ok=True)
    if _finite(value):
        write_json(path, value)
        assert repr(read_json(path)) == repr(value)
    else:
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, value)
        assert not path.exists()


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list) else True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[Infinity]", "Infinity is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("[1e999]", "1e999 is too large for a number"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' occurs twice"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[1] [2]", "Extra data"),
    ],
)
def test_broken_json_is_one_clear_error(tmp_path: Path, text: str, message: str):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_json(path, "latency table")
    assert str(caught.value).startswith(f"{path}: not a valid latency table (")
    assert message in str(caught.value)


def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path: Path):
    path = tmp_path / "f.json"
    text = json.dumps({"format": "x", "entries": {"a": [1.5, None], "b": {"c": "d"}}}, indent=2)
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(UserError, match="may be truncated"):
            read_json(path)


def test_a_file_that_cannot_be_read_says_what_it_should_be(tmp_path: Path):
    (tmp_path / "latin").write_bytes("ö".encode("latin-1"))
    for name, message in (
        ("missing", "no such recipe"),
        (".", "is a folder, expected a recipe"),
        ("latin", "not a text file (not UTF-8), expected a recipe"),
        ("latin/below", "cannot read this recipe: Not a directory"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / name}: {message}")):
            read_text(tmp_path / name, "recipe")


def test_writing_makes_folders_and_replaces(tmp_path: Path):
    path = tmp_path / "a" / "b" / "f.txt"
    write_text(path, "öne")
    write_text(str(path), "two")
    assert read_text(path) == "two"
    assert [file.name for file in path.parent.iterdir()] == ["f.txt"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "ours", "")
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_content(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "f"
    write_text(path, "old")

    def fail(stream: Any) -> None:
        stream.write(b"half of the n")
        raise error

    with pytest.raises(error):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_system_refuses_is_one_clear_error(tmp_path: Path):
    write_text(tmp_path / "file", "x")
    (tmp_path / "folder").mkdir()

    def full_disk(stream: Any) -> None:
        raise OSError(28, "No space left on device")

    for path, reason in (
        (tmp_path / "file" / "below", ""),
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{path}: cannot write this file: {reason}")):
            write_text(path, "new")
    with pytest.raises(UserError, match="file: cannot write this file: No space left on device"):
        write_atomically(tmp_path / "file", full_disk)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert read_text(tmp_path / "file") == "x"


def test_devices_pipes_and_links_to_them_are_neither_replaced_nor_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name, what in (("pipe", "it is a pipe"), ("link", "it is a device")):
        with pytest.raises(UserError, match=rf"{name}.*cannot write this file: {what}"):
            write_text(tmp_path / name, "x")
        with pytest.raises(UserError, match=rf"{name}: {what}, expected a table"):
            read_text(tmp_path / name, "table")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.mark.parametrize("hidden", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_a_writer_hides_in_a_runtime_error_comes_out(tmp_path: Path, hidden: BaseException):
    def write(stream: Any) -> None:
        try:
            raise hidden
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(UserError if isinstance(hidden, OSError) else KeyboardInterrupt):
        write_atomically(tmp_path / "state.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path):
    for name in (".state.pt.0123abcd.tmp", ".a.json.89abcdef.tmp", ".note.tmp", "x.tmp", ".lock"):
        (tmp_path / name).touch()
    remove_temporary(tmp_path, "state.pt")
    assert not (tmp_path / ".state.pt.0123abcd.tmp").exists()
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".note.tmp", "x.tmp"]


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "expands to more than"),
        ("a: &a [*a]", "contains itself"),
        ("".join(f"k{i}: 1\n" for i in range(40_000)), "characters, expected at most"),
        ("a: " + "9" * 6000, "a number of 6000 digits"),
        ("a: " + "1:" * 3000 + "1", "digits"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
    ],
    ids=["aliases", "cycle", "size", "digits", "sexagesimal", "timestamp", "int", "bool"],
)
def test_yaml_that_would_take_for_ever_or_breaks_the_reader_is_refused(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_yaml(text, "f.yaml")


def test_json_is_checked_in_linear_time():
    keys = ", ".join(f'"k{i}": 1' for i in range(60_000))
    assert len(parse_json("{" + keys + "}")) == 60_000
    for text, message in (
        ("{" + keys + ', "k7": 1}', "the key 'k7' occurs twice"),
        ('{"a": ' + "9" * 6000 + "}", "a number of 6000 digits"),
        ("[" * 300 + "]" * 300, "nested more than"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_json(text)


WRITE_FOR_EVER = f"""
import sys
from dnas.files import write_atomically

def write(stream):
    for _ in range(8):
        stream.write(letter * {MEGABYTE})

for count in range(1_000_000):
    letter = b"ab"[count % 2:count % 2 + 1]
    write_atomically(sys.argv[1], write)
    print(count, flush=True)
"""


def test_killed_in_the_middle_of_writing_the_file_is_old_or_new(tmp_path: Path):
    path = tmp_path / "big"
    for milliseconds in range(0, 30, 3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # the first content is there
            time.sleep(milliseconds / 1000)
            process.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert content in (b"a" * 8 * MEGABYTE, b"b" * 8 * MEGABYTE)
