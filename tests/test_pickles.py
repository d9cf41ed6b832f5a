from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnas.pickles import check_archive, check_pickle

keys = st.recursive(st.integers() | st.text() | st.none(), lambda inner: st.tuples(inner, inner), max_leaves=5)
values = st.recursive(
    keys | st.floats() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner) | st.frozensets(keys),
    max_leaves=20,
)


@given(values, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_ordinary_pickles_pass(value: Any, protocol: int):
    check_pickle(pickle.dumps(value, protocol=protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_shared_tuples_that_would_never_end_are_refused_without_hashing_them(protocol: int):
    value: Any = ()
    for _ in range(60):
        value = (value, value)
    with pytest.raises(ValueError, match="expands to more than"):
        check_pickle(pickle.dumps({"key": [value]}, protocol=protocol))


def test_lists_that_share_and_hold_themselves_are_refused():
    outer: list[Any] = []
    inner = outer
    for _ in range(50):
        inner.extend([[]] * 2)
        inner = inner[0]
    with pytest.raises(ValueError, match="expands to more than"):
        check_pickle(pickle.dumps(outer))
    outer[0].append(outer)
    with pytest.raises(ValueError, match="contains itself"):
        check_pickle(pickle.dumps(outer))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_pass_in_both_formats(zipped: bool):
    stream = io.BytesIO()
    network = torch.nn.Linear(2, 2)
    torch.save({"a": network.state_dict(), "b": [torch.Size([2])]}, stream, _use_new_zipfile_serialization=zipped)
    check_archive(stream.getvalue())
