from __future__ import annotations

import types
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.config import Field, apply_overrides, config, parse_config, to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml, parse_yaml


@config
class Colour:
    name: str
    rgb: tuple[int, int, int] = (0, 0, 0)


@config
class Schedule:
    epochs: int = Field(default=3, ge=1)
    rate: float = Field(default=0.1, gt=0)
    shuffle: bool = True
    crop: tuple[int, int] | None = None


@config
class Whole:
    title: str = "untitled"
    schedule: Schedule = Schedule()
    spare: Schedule | None = None
    classes: tuple[Colour, ...] = ()
    named: dict[str, Colour] = Field(default_factory=dict)
    counts: dict[Literal["train", "val"], int] = Field(default_factory=dict)
    mode: Literal["solved", "none"] | tuple[float, float, float] = "solved"
    either: Schedule | Colour | None = None


@config
class Rates:
    rates: tuple[Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)], ...] = Field(min_length=1)


integers = st.integers(-(2**70), 2**70)
floats = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
colours = st.builds(Colour, name=st.text(), rgb=st.tuples(integers, integers, integers))
schedules = st.builds(
    Schedule,
    epochs=st.integers(1, 10**20),
    rate=positive,
    shuffle=st.booleans(),
    crop=st.none() | st.tuples(integers, integers),
)
wholes = st.builds(
    Whole,
    title=st.text(),
    schedule=schedules,
    spare=st.none() | schedules,
    classes=st.lists(colours, max_size=3).map(tuple),
    named=st.dictionaries(st.text(), colours, max_size=2),
    counts=st.dictionaries(st.sampled_from(["train", "val"]), integers),
    mode=st.sampled_from(["solved", "none"]) | st.tuples(floats, floats, floats),
    either=st.none() | schedules | colours,
)


@given(wholes)
def test_a_configuration_survives_mapping_and_yaml(value: Whole):
    mapping = to_mapping(value)
    assert parse_config(Whole, mapping, "mapping") == value
    assert parse_config(Whole, parse_yaml(dump_yaml(mapping), "yaml"), "yaml") == value


def test_what_is_left_out_takes_its_default():
    assert parse_config(Whole, {}, "empty") == Whole()
    assert parse_config(Whole, {"schedule": {"epochs": 7}}, "x").schedule == Schedule(epochs=7)


def test_an_integer_passes_for_a_float_and_a_list_for_a_tuple():
    value = parse_config(Whole, {"schedule": {"rate": 1, "crop": [3, 4]}}, "x").schedule
    assert value.crop == (3, 4)
    assert value.rate == 1.0
    assert isinstance(value.rate, float)


def test_any_mapping_will_do():
    values = types.MappingProxyType({"schedule": types.MappingProxyType({"epochs": 5})})
    assert parse_config(Whole, values, "x").schedule.epochs == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"titel": "x"},
            "titel: unknown key, known keys: title, schedule, spare, classes, named, counts, mode, either",
        ),
        ({"schedule": {"epoch": 1}}, "schedule.epoch: unknown key, known keys: epochs, rate, shuffle, crop"),
        ({"spare": {"epoch": 1}}, "spare.epoch: unknown key, known keys: epochs, rate, shuffle, crop"),
        ({"classes": [{"name": "a", "color": 1}]}, "classes.0.color: unknown key, known keys: name, rgb"),
        ({"named": {"a b": {"name": "a", "color": 1}}}, "named.a b.color: unknown key, known keys: name, rgb"),
        ({"classes": [{"name": "a"}, {"rgb": [1, 2, 3]}]}, "classes.1.name: missing, it has no default"),
        ({"classes": [{"name": "a", "rgb": [1, 2]}]}, "classes.0.rgb.2: missing, it has no default"),
        ({"classes": [{"name": "a", "rgb": [1, 2, 3.5]}]}, "classes.0.rgb.2: given 3.5, expected a valid integer"),
        ({"schedule": {"epochs": True}}, "schedule.epochs: given true, expected a valid integer"),
        ({"schedule": {"rate": True}}, "schedule.rate: given true, expected a valid number"),
        ({"schedule": {"rate": "1e-3"}}, 'schedule.rate: given "1e-3", expected a valid number'),
        ({"schedule": {"epochs": 2.0}}, "schedule.epochs: given 2.0, expected a valid integer"),
        ({"schedule": {"shuffle": 1}}, "schedule.shuffle: given 1, expected a valid boolean"),
        ({"schedule": {"epochs": 0}}, "schedule.epochs: given 0, expected greater than or equal to 1"),
        ({"schedule": {"rate": float("nan")}}, "schedule.rate: given nan, expected a finite number"),
        ({"schedule": {"crop": [1, float("-inf")]}}, "schedule.crop.1: given -inf, expected a finite number"),
        ({"schedule": 3}, "schedule: given 3, expected a mapping"),
        ({"classes": {}}, "classes: given {}, expected a list"),
        ({"title": None}, "title: given null, expected a valid string"),
        ({"title": {1}}, "title: given a set, expected a number, text, a list or a mapping"),
        ({"named": {b"a": 1}}, "named: given a key that is a bytes, expected text"),
        ({"counts": {"test": 1}}, "counts.test: given \"test\", expected 'train' or 'val'"),
        ({"counts": {"val": "x"}}, 'counts.val: given "x", expected a valid integer'),
        ({"mode": "solvd"}, "mode: given \"solvd\", expected 'solved' or 'none'"),
        ({"mode": [1, 2]}, "mode.2: missing, it has no default"),
        ({"either": {"epochs": 1, "x": 2}}, "either.x: unknown key, known keys: epochs, rate, shuffle, crop"),
        ({"either": {"name": "a", "x": 2}}, "either.x: unknown key, known keys: name, rgb"),
    ],
)
def test_every_mistake_is_named_by_its_dotted_path(values: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        parse_config(Whole, values, "some.yaml")
    source, _, problems = str(caught.value).partition(": ")
    assert source == "some.yaml"
    assert message in problems.split("; ")


def test_all_mistakes_are_told_at_once_on_one_line():
    with pytest.raises(UserError) as caught:
        parse_config(Whole, {"title": 1, "schedule": {"epochs": "a\nb", "speed": 1}}, "f")
    assert str(caught.value) == (
        'f: title: given 1, expected a valid string; schedule.epochs: given "a\\nb", expected a valid integer; '
        "schedule.speed: unknown key, known keys: epochs, rate, shuffle, crop"
    )


@pytest.mark.parametrize(
    ("rates", "problems"),
    [
        ([[1, 0]], "rates.0.1: given 0, expected greater than or equal to 1"),
        ([[0]], "rates.0.0: given 0, expected greater than or equal to 1"),
        ([], "rates: given [], expected at least 1 item, not 0"),
        ([[1], []], "rates.1: given [], expected at least 1 item, not 0"),
        (
            [[1], [0], []],
            "rates.1.0: given 0, expected greater than or equal to 1; "
            "rates.2: given [], expected at least 1 item, not 0",
        ),
    ],
)
def test_a_list_with_a_refused_entry_is_not_too_short_as_well(rates: list[list[int]], problems: str):
    with pytest.raises(UserError) as caught:
        parse_config(Rates, {"rates": rates}, "f")
    assert str(caught.value) == f"f: {problems}"


def test_a_long_value_is_shortened():
    with pytest.raises(UserError, match=r'given "x{56}\.\.\., expected a valid integer'):
        parse_config(Whole, {"schedule": {"epochs": "x" * 1000}}, "f")


def test_a_list_is_no_configuration():
    with pytest.raises(UserError, match=r"^f: the whole: given \[1\], expected a mapping$"):
        parse_config(Whole, [1], "f")  # type: ignore[arg-type]


def test_configurations_do_not_change():
    with pytest.raises(AttributeError):
        Whole().title = "other"  # type: ignore[misc]


def test_overrides_are_read_as_yaml_and_leave_the_original_alone():
    values = {"schedule": {"epochs": 1}, "classes": [{"name": "a"}]}
    changed = apply_overrides(values, ["schedule.rate=1e-3", "spare.crop=[3, 4]", "title=a=b", "schedule.epochs=2"])
    assert changed["schedule"] == {"epochs": 2, "rate": 0.001}
    assert changed["spare"] == {"crop": [3, 4]}
    assert changed["title"] == "a=b"
    assert values == {"schedule": {"epochs": 1}, "classes": [{"name": "a"}]}
    assert parse_config(Whole, changed, "x").schedule.rate == 0.001


@given(st.text(), integers | floats | st.booleans() | st.none() | st.text())
def test_overriding_with_a_dumped_value_sets_that_value(title: str, value: object):
    text = dump_yaml({"key": value})
    assert apply_overrides({"title": title}, [f"a.b={text.partition(':')[2]}"]) == {"title": title, "a": {"b": value}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set epochs: expected KEY=VALUE, for example search.epochs=3"),
        ("=3", "--set =3: expected KEY=VALUE, for example search.epochs=3"),
        ("title.length=3", "--set title.length=3: title is a value, not a group of keys"),
        ("title=[1", "--set title: line 1 not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_meant(override: str, message: str):
    with pytest.raises(UserError) as caught:
        apply_overrides({"title": "x"}, [override])
    assert str(caught.value).startswith(message)
