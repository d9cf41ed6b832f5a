"""``dnas data init`` on the exports of annotation tools: one scene, a rectangle and a triangle, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnas.cli import main
from dnas.data import load_data_config, open_dataset
from dnas.data.discovery import InitOptions, describe_folder
from dnas.errors import UserError

HEIGHT, WIDTH = 20, 30
BOX = [(2, 3), (12, 3), (12, 10), (2, 10)]
TRIANGLE = [(15, 15), (28, 15), (28, 5)]
COUNT = 3


def expected(box: int = 1, triangle: int = 2, outside: int = 0) -> np.ndarray:
    mask = np.full((HEIGHT, WIDTH), outside)
    mask[3:11, 2:13] = box
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if 15 <= x <= 28 and 5 <= y <= 15 and (x - 15) * 10 >= (15 - y) * 13:
                mask[y, x] = triangle
    return mask


def agree(mask: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for the pixels through which the slanted edge goes."""
    return bool((mask != other).sum() <= 12)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in range(COUNT):
        path = tmp_path / "images" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), n, np.uint8)).save(path)
    return tmp_path


def write_coco(root: Path) -> None:
    flat = [float(value) for point in TRIANGLE for value in point]
    runs = np.zeros((HEIGHT, WIDTH), bool)
    runs[3:11, 2:13] = True
    column = runs.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column.astype(int), [0]])))
    counts = np.diff(np.concatenate([[0], edges, [column.size]])).tolist()
    annotations = []
    for n in range(COUNT):
        annotations += [
            {"image_id": n, "category_id": 9, "area": 65, "segmentation": [flat]},
            {"image_id": n, "category_id": 4, "area": 88, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
            {"image_id": n, "category_id": 4, "area": 0, "segmentation": []},
        ]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(COUNT)],
        "categories": [{"id": 9, "name": "triangle"}, {"id": 4, "name": "box"}],
        "annotations": annotations,
    }
    (root / "instances.json").write_text(json.dumps(content))


def write_labelme(root: Path) -> None:
    for n in range(COUNT):
        shapes = [
            {"label": "box", "points": [BOX[0], BOX[2]], "shape_type": "rectangle"},
            {"label": "triangle", "points": TRIANGLE, "shape_type": "polygon"},
            {"label": "box", "points": [[1, 1]], "shape_type": "point"},
        ]
        content = {"imagePath": f"{n}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
        (root / "images" / f"{n}.json").write_text(json.dumps(content))


def write_cvat(root: Path) -> None:
    points = ";".join(f"{x},{y}" for x, y in TRIANGLE)
    runs = f"0,{11 * 8}"
    images = "".join(
        f'<image id="{n}" name="{n}.png" width="{WIDTH}" height="{HEIGHT}">'
        f'<polygon label="triangle" points="{points}" z_order="1"/>'
        + (
            '<box label="box" xtl="2" ytl="3" xbr="12" ybr="10" z_order="0"/>'
            if n
            else f'<mask label="box" rle="{runs}" left="2" top="3" width="11" height="8" z_order="0"/>'
        )
        + "</image>"
        for n in range(COUNT)
    )
    names = "".join(f"<label><name>{name}</name></label>" for name in ("box", "triangle"))
    text = f"<annotations><meta><task><labels>{names}</labels></task></meta>{images}</annotations>"
    (root / "annotations.xml").write_text(text)


def write_label_studio(root: Path) -> None:
    def share(points):
        return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]

    size = {"original_width": WIDTH, "original_height": HEIGHT}
    box = {"x": 100 * 2 / WIDTH, "y": 100 * 3 / HEIGHT, "width": 1000 / WIDTH, "height": 700 / HEIGHT}
    results = [
        {"type": "rectanglelabels", "value": {**box, "rotation": 0, "rectanglelabels": ["box"]}, **size},
        {"type": "polygonlabels", "value": {"points": share(TRIANGLE), "polygonlabels": ["triangle"]}, **size},
    ]
    tasks = [
        {"data": {"image": f"/data/upload/1/0123abcd-{n}.png"}, "annotations": [{"result": results}]}
        for n in range(COUNT)
    ]
    (root / "project.json").write_text(json.dumps(tasks))


def write_yolo(root: Path) -> None:
    (root / "dataset.yaml").write_text("train: images\nnames: {0: box, 1: triangle}\n")
    lines = [
        " ".join([str(index), *(f"{value:.6f}" for x, y in points for value in (x / WIDTH, y / HEIGHT))])
        for index, points in enumerate((BOX, TRIANGLE))
    ]
    for n in range(COUNT):
        path = root / "labels" / f"{n}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


WRITERS = {
    "COCO": write_coco,
    "labelme": write_labelme,
    "CVAT": write_cvat,
    "Label Studio": write_label_studio,
    "YOLO": write_yolo,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_polygons_become_masks(root: Path, kind: str):
    WRITERS[kind](root)
    found = describe_folder(root, root / "out", InitOptions(val_share=0.34))
    assert found.classes == ("background", "box", "triangle")
    assert found.images == {"train": 2, "val": 1}
    assert f"{kind} annotations of 3 images were drawn as masks" in found.notes
    dataset = open_dataset(load_data_config(str(found.data_file)), "train")
    for index in range(2):
        image, mask = dataset[index]
        assert image.unique().tolist() == [int(Path(dataset.file_name(index)).stem)]
        assert agree(mask.numpy(), expected())


def test_outside_of_polygons_may_be_ignored_or_a_class_of_its_own(root: Path):
    write_labelme(root)
    found = describe_folder(root, root / "out", InitOptions(outside="ignore"))
    assert found.classes == ("box", "triangle")
    mask = open_dataset(load_data_config(str(found.data_file)), "train")[0][1].numpy()
    assert agree(mask, expected(0, 1, 255))
    path = root / "images" / "0.json"
    content = json.loads(path.read_text())
    content["shapes"][0]["label"] = "_background_"
    path.write_text(json.dumps(content))
    assert describe_folder(root, root / "again", InitOptions()).classes == ("_background_", "box", "triangle")


def test_what_does_not_fit_is_named(root: Path):
    write_labelme(root)
    for path in (root / "images").glob("*.json"):
        path.write_text(path.read_text().replace(f'"imageHeight": {HEIGHT}', '"imageHeight": 99'))
    with pytest.raises(UserError, match=r"0\.png: annotated at 30x99 pixels, but the image is 30x20"):
        describe_folder(root, root / "out", InitOptions())
    write_coco(root)
    with pytest.raises(UserError, match="contains annotations of COCO and labelme; expected one kind"):
        describe_folder(root, root / "out", InitOptions())
    for path in (root / "images").glob("*.json"):
        path.unlink()
    text = (root / "instances.json").read_text()
    (root / "instances.json").write_text(text.replace('"counts": [', '"counts": "PYo0", "old": ['))
    with pytest.raises(UserError, match=r"annotation None: run lengths of [0-9]+ pixels, expected 600"):
        describe_folder(root, root / "out", InitOptions())
    for gone in ("gone.png", "9" * 900):  # the second is longer than a file name may be
        (root / "instances.json").write_text(text.replace("0.png", gone))
        found = describe_folder(root, root.with_name(f"out{len(gone)}"), InitOptions())
        assert "1 images that are not there are left out" in found.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1 0.1", "a box of object detection, expected a polygon"),
        ("7 0.1 0.1 0.2 0.2 0.3 0.1", "expected a class index below 2"),
        ("box 0.1 0.1", "expected a class index and numbers"),
    ],
)
def test_lines_that_are_no_polygons(root: Path, line: str, message: str):
    write_yolo(root)
    (root / "labels" / "1.txt").write_text(line)
    with pytest.raises(UserError, match=rf"1\.txt: line 1: {message}"):
        describe_folder(root, root / "out", InitOptions())


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_a_table_of_the_datasets_library(root: Path, form: str, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    masks = [Image.fromarray(expected().astype(np.uint8)) for _ in range(COUNT)]
    images = [str(path) for path in sorted((root / "images").iterdir())]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": images, "label": masks}, features=features)
    folder = root / "table"
    if form == "disk":
        datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(str(folder))
    else:
        folder.mkdir()
        table.to_parquet(str(folder / "train-00000-of-00001.parquet"))
        table.to_parquet(str(folder / "validation-00000-of-00001.parquet"))
    found = describe_folder(folder, root / "out", InitOptions())
    assert found.images == {"train": COUNT, "val": COUNT}
    image, mask = open_dataset(load_data_config(str(found.data_file)), "val")[1]
    assert image.unique().tolist() == [1]
    np.testing.assert_array_equal(mask.numpy(), expected())


def test_the_command_says_what_was_decided_and_what_comes_next(root: Path, capsys):
    write_cvat(root)
    assert main(["data", "init", str(root), "--out", str(root / "out"), "--val-share", "0.34"]) == 0
    printed = capsys.readouterr().err
    assert "2 train, 1 val; 3 classes. Next: dnas data check" in printed
    assert "pixels outside of all polygons are 'background'" in printed
    assert main(["data", "check", str(root / "out" / "data.yaml")]) == 0
    assert "triangle" in capsys.readouterr().out
    assert main(["data", "init", str(root), "--outside", "nothing"]) == 2
    assert "expected background or ignore" in capsys.readouterr().err
