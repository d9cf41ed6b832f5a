"""Exported files are first-class: metadata, end-to-end, scores by names, latency and mIoU in one table."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from dnas.cli import main
from dnas.data import open_dataset
from dnas.errors import UserError
from dnas.export import EndToEnd, benchmark, open_file, read_onnx
from dnas.training import evaluate
from dnas.workflows.comparing import measure_artefact, table_lines
from dnas.workflows.evaluating import open_scored
from dnas.workflows.exporting import ExportRequest, export_run

SIZE, NAMES, COLOURS = (32, 48), ("red", "green", "blue"), ((200, 0, 0), (0, 200, 0), (0, 0, 200))
E2E = {"end_to_end": EndToEnd()}


def scores(path, dataset, **options):
    return open_scored(path, dataset).evaluate(**options)


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def truth(reader, data):
    """The scores of the PyTorch network."""
    return evaluate(reader.network, open_dataset(data, "val"), reader.augmentation)


def test_metadata_and_card_say_what_a_user_of_the_file_needs(exported):
    path = exported("plain.onnx", licence="CC-BY-4.0")
    _, found = read_onnx(path)
    assert (found.class_names, found.colours, found.input_size) == (NAMES, COLOURS, SIZE)
    assert (found.mean, found.std, found.licence) == ((0.4,) * 3, (0.25,) * 3, "CC-BY-4.0")
    assert found.commit is None or len(found.commit) >= 40
    parity = exported.results["plain.onnx"].parity
    assert (parity.real, parity.images) == (True, 3)
    card = Path(f"{path}.md").read_text()
    assert card.startswith("---\nlicense: CC-BY-4.0\n")
    assert "| 1 | green | 0, 200, 0 |" in card
    assert "on 3 images" in card


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("plain.onnx", {"licence": "CC-BY-4.0"}),
        ("plain.pt2", {"file_format": "torch", "dynamic_size": True, "dynamic_batch": True}),
        ("whole.onnx", E2E),
        ("whole.pt2", {"file_format": "torch", **E2E}),
        ("nhwc.onnx", {"end_to_end": EndToEnd(layout="nhwc"), "batch": 2}),
    ],
)
def test_a_file_scores_what_the_network_scores(exported, data, reordered, truth, name, request_):
    """In the order of the data's classes too: names decide."""
    path = exported(name, **request_)
    assert truth.miou > 0.75
    assert scores(path, open_dataset(data, "val"), batch_size=3) == truth
    other = scores(path, open_dataset(reordered, "val"), batch_size=3)
    assert other.miou > 0.75
    assert tuple(other.iou) == NAMES


def test_other_class_names_are_refused(exported, images_of, tmp_path):
    config = images_of(tmp_path / "data", ("red", "green"), splits=())
    (tmp_path / "data" / "classes.yaml").write_text(
        "classes: [{name: red, colour: [1, 0, 0]}, {name: grass, colour: [2, 0, 0]}, {name: blue, colour: [3, 0, 0]}]"
    )
    for kind in ("images", "labels"):
        (tmp_path / "data" / "val" / kind).mkdir(parents=True)
        Image.new("L", (48, 32)).save(tmp_path / "data" / "val" / kind / "0.png")
    with pytest.raises(UserError, match=r"missing green; not expected grass"):
        open_scored(exported("plain.onnx", licence="CC-BY-4.0"), open_dataset(config, "val"))


def test_an_end_to_end_file_needs_nothing_but_a_runtime(exported, reader, data):
    path = exported("whole.onnx", **E2E)
    image = np.asarray(Image.open(Path(data.root) / "val" / "images" / "0.png"))
    classes = session(path).run(None, {"images": image.transpose(2, 0, 1)[None]})[0]
    assert (classes.dtype, classes.shape) == (np.uint8, (1, *SIZE))
    values = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 - 0.4) / 0.25
    with torch.no_grad():
        np.testing.assert_array_equal(classes, reader.network(values).argmax(1))


def operators(path):
    return {node.op_type for node in read_onnx(path)[0].graph.node}


def test_where_the_resize_sits_is_a_choice(exported, data, truth):
    """Without a bilinear one in the graph the class map has the stride of the network, or is enlarged by nearest."""
    outside = exported("outside.onnx", end_to_end=EndToEnd(resize="none"))
    inside = exported("inside.onnx", end_to_end=EndToEnd(resize="nearest", image_size=(64, 96)))
    assert "Resize" not in operators(outside)
    modes = [
        attribute.s
        for node in read_onnx(inside)[0].graph.node
        for attribute in node.attribute
        if attribute.name == "mode"
    ]
    assert modes == [b"nearest", b"nearest"]
    images = np.zeros((1, 3, *SIZE), np.uint8)
    assert session(outside).run(None, {"images": images})[0].shape == (1, SIZE[0] // 2, SIZE[1] // 2)
    for path in (outside, inside):
        scored = open_scored(path, open_dataset(data, "val"))
        assert scored.evaluate().miou > 0.9 * truth.miou
    assert "resized to its input size 64x96" in scored.notes[0]


def test_a_file_of_dynamic_size_takes_the_size_asked_for(exported, data, truth):
    path = exported("plain.pt2", file_format="torch", dynamic_size=True, dynamic_batch=True)
    assert benchmark(path, seconds=0.01)["input_size"] == list(SIZE)
    assert benchmark(path, (64, 40), seconds=0.01, batch=2)["input_size"] == [64, 40]
    dataset = open_dataset(data, "val")
    assert open_scored(path, dataset, size=(64, 96)).evaluate().miou > truth.miou - 0.1
    with pytest.raises(UserError, match="exported for input size 32x48, given 64x96"):
        open_scored(exported("plain.onnx", licence="CC-BY-4.0"), dataset, size=(64, 96))


def test_a_file_without_metadata_is_refused_where_it_would_be_guessed(exported, data, tmp_path):
    import onnx

    for name, options, missing in (
        ("plain.onnx", {"licence": "CC-BY-4.0"}, "mean"),
        ("whole.onnx", E2E, "class names"),
    ):
        model = onnx.load(exported(name, **options))
        del model.metadata_props[:]
        onnx.save(model, tmp_path / name)
        with pytest.raises(UserError, match=f"holds no {missing}"):
            scores(tmp_path / name, open_dataset(data, "val"))


def test_opset_and_options_of_other_formats(reader, data, tmp_path):
    export_run(reader, tmp_path / "a.onnx", ExportRequest(opset=22, data=data, images=0))
    assert read_onnx(tmp_path / "a.onnx")[0].opset_import[0].version == 22
    for request, message in (
        (ExportRequest(opset=17, data=data), "opset 17: expected 18 to"),
        (ExportRequest(opset=20, file_format="torch", data=data), "--opset is for onnx"),
        (ExportRequest(file_format="bmp", data=data), "expected onnx, torch or tensorrt"),
    ):
        with pytest.raises(UserError, match=message):
            export_run(reader, tmp_path / "b", request)
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="needs a resize in the graph"):
        EndToEnd(resize="none", image_size=(64, 64))


def test_one_table_holds_miou_and_latency_of_the_same_file(exported, data, truth):
    paths = [str(exported("plain.onnx", licence="CC-BY-4.0")), str(exported("whole.onnx", **E2E))]
    rows = [measure_artefact(path, dataset=open_dataset(data, "val"), seconds=0.01) for path in paths]
    assert [row["miou"] for row in rows] == [truth.miou] * 2
    lines = list(table_lines(rows))
    assert len(lines) == 3
    assert f"{100 * truth.miou:.2f} %" in lines[1]


def test_the_commands_take_files(exported, data, capsys):
    path = str(exported("whole.onnx", **E2E))
    assert main(["evaluate", path, "--data", f"folder:{data.root}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["backend"], found["file"]) == (3, "onnxruntime", path)
    options = ["--data", f"folder:{data.root}", "--seconds", "0.01", "--json"]
    assert main(["benchmark", path, str(exported("plain.onnx", licence="CC-BY-4.0")), *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [round(row["miou"], 6) for row in rows] == [round(found["miou"], 6)] * 2


def test_a_file_is_opened_with_what_it_takes(exported):
    file = open_file(exported("nhwc.onnx", end_to_end=EndToEnd(layout="nhwc"), batch=2))
    assert (file.shape, file.dtype, file.channels_last, file.image_size) == ((2, *SIZE, 3), torch.uint8, True, SIZE)
