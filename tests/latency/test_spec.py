import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.errors import UserError
from dnas.latency import OperatorSpec

numbers = st.integers(1, 5000)
names = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)
specs = st.builds(
    OperatorSpec,
    operator=names,
    inputs=st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=3).map(tuple),
    out_channels=numbers,
    stride=st.integers(1, 4),
    extras=st.dictionaries(names.filter(lambda name: name not in ("in", "out", "stride")), st.integers(0, 999)).map(
        lambda extras: tuple(sorted(extras.items()))
    ),
)


def test_key_is_the_documented_text():
    spec = OperatorSpec("conv_x2", ((32, 128, 256),), 64, 2)
    assert spec.key == "conv_x2 in=32x128x256 out=64 stride=2"
    fused = OperatorSpec("fuse", ((32, 8, 9), (16, 4, 5)), 8, extras=(("dilation", 2), ("groups", 16)))
    assert fused.key == "fuse in=32x8x9+16x4x5 out=8 stride=1 dilation=2 groups=16"


@given(specs)
def test_key_and_back(spec):
    assert OperatorSpec.from_key(spec.key) == spec


@given(specs, specs)
def test_equal_keys_mean_equal_specs(one, other):
    assert (one.key == other.key) == (one == other)


@given(st.text(max_size=40) | specs.map(lambda spec: spec.key + " "))
def test_other_text_is_no_key(text):
    with pytest.raises(UserError, match="no operator key"):
        OperatorSpec.from_key(text)


@given(specs, st.data())
def test_a_key_is_canonical(spec, data):
    """A changed character gives another spec or an error; no two texts give the same spec."""
    at = data.draw(st.integers(0, len(spec.key) - 1))
    changed = spec.key[:at] + data.draw(st.characters(min_codepoint=32, max_codepoint=126)) + spec.key[at + 1 :]
    with contextlib.suppress(UserError):
        assert OperatorSpec.from_key(changed).key == changed


@pytest.mark.parametrize(
    "values",
    [
        {"operator": "Conv 2"},
        {"inputs": ()},
        {"inputs": ((3, 4),)},
        {"inputs": ((3, 0, 4),)},
        {"out_channels": True},
        {"stride": 0},
        {"extras": (("b", 1), ("a", 1))},
        {"extras": (("out", 1),)},
        {"extras": (("a", -1),)},
    ],
)
def test_wrong_values_are_refused(values):
    with pytest.raises(ValueError):  # noqa: PT011 - each names its field
        OperatorSpec(**{"operator": "conv", "inputs": ((3, 4, 5),), "out_channels": 8, **values})
