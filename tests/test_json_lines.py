from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.json_lines import append_record, read_lines, repair

values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
records = st.lists(st.dictionaries(st.text(), values | st.lists(values) | st.dictionaries(st.text(), values)))


def read(path):
    return [line.record for line in read_lines(path, "file")]


@given(records, st.data())
def test_a_file_cut_anywhere_keeps_its_complete_lines_and_is_continued(tmp_path_factory, written, data):
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    assert read(path) == []
    for index, record in enumerate(written):
        append_record(path, record, sync=index % 2 == 0)
    assert read(path) == written
    content = path.read_bytes() if written else b""
    assert b"".join(line.content for line in read_lines(path, "file")) == content
    cut = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(cut)
    complete = written[: cut.count(b"\n")]
    assert read(path) == complete
    repair(path, "file")
    assert path.read_bytes() == cut[: cut.rfind(b"\n") + 1]
    append_record(path, {"new": 1})
    assert read(path) == [*complete, {"new": 1}]


@pytest.mark.parametrize("damage", [b"\0\0\0", b"[1]", b'{"a": ', b"", b"[" * 100_000, b"\xff"])
def test_a_damaged_line_is_marked_and_at_the_end_left_out(tmp_path, damage):
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 2}\n')
    assert read(path) == [{"a": 1}, None, {"a": 2}]
    path.write_bytes(b'{"a": 1}\n' + damage + b"\n")
    assert read(path) == [{"a": 1}]
    repair(path, "file")
    assert path.read_bytes() == b'{"a": 1}\n'


def test_what_json_does_not_have_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "file.jsonl"
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            append_record(path, {"a": value})
    assert not path.exists()
    repair(path, "file")
    assert not path.exists()
