from __future__ import annotations

from dnas.presets import preset_files, read_preset


def test_presets_are_the_yaml_files_of_all_folders_by_name(tmp_path):
    for name in ("one/b.yaml", "one/readme.md", "two/a.yaml", "two/c.d.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"name: {name}\n")
    found = preset_files(tmp_path / "one", tmp_path / "two")
    assert list(found) == ["a", "b", "c.d"]
    assert read_preset(found["b"]) == {"name": "one/b.yaml"}
