"""Loading a search space by name or from a file."""

import pytest

from dnas.errors import UserError
from dnas.files import dump_yaml
from search_spaces import load_space, preset_names

TEXT = "space: fasterseg\ntask: {input_size: [64, 128], num_classes: 3}\nnetwork: {layers: 4, ratios: [1, 2]}\n"


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    space = load_space(str(path), ["network.layers=5", "search.learning_rate=1e-3"])
    assert space.settings.network.layers == 5
    assert space.search.learning_rate == 1e-3
    path.write_text(dump_yaml(space.configuration()))
    assert load_space(str(path)).settings == space.settings


def test_a_file_needs_no_suffix(tmp_path):
    path = tmp_path / "mine"
    path.write_text(TEXT)
    assert load_space(str(path)).num_classes == 3


def test_unknown_names_list_the_presets(tmp_path):
    for name in ("fasterset", "", str(tmp_path), "a/b"):
        with pytest.raises(
            UserError, match=f"unknown search space, expected a YAML file or one of {preset_names()[0]}"
        ):
            load_space(name)
    with pytest.raises(UserError, match="no such search space"):
        load_space(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize("override", ["layers", "=3", "space.kind=2", "network.layers=[", "network.layers=0"])
def test_bad_overrides_are_errors(tmp_path, override):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    with pytest.raises(UserError):
        load_space(str(path), [override])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n",
        "space: [fasterseg]\n",
        "space: fasterseg\n",
        "space: fasterseg\ntarget: &a [*a]\n",
        "space: !!binary aGVsbG8=\n",
        "space: !!set {a, b}\n",
        "space: !!python/object/apply:os.system ['true']\n",
        "space: fasterseg\ntask: {input_size: [64, 64], num_classes: .nan}\n",
        "space: fasterseg\nspace: fasterseg\n",
        "space: fasterseg\ntarget: {1: 2}\n",
        "\tspace: x",
        "space: fasterseg\ntask: {input_size: [64, 2024-01-01], num_classes: 2}\n",
    ],
)
def test_hostile_files_are_one_clear_line(tmp_path, text):
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"hostile\.yaml") as caught:
        load_space(str(path))
    assert "\n" not in str(caught.value)
