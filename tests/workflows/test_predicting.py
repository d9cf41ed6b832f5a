"""``dnas predict``: class maps, overlays, probabilities; tiles; videos; what is skipped and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dnas.cli import main
from dnas.data import Labels
from dnas.data.decode import read_image
from dnas.errors import UserError
from dnas.export import EndToEnd
from dnas.workflows.evaluating import in_0_to_1
from dnas.workflows.pictures import Picture, Reading, find_pictures
from dnas.workflows.predicting import KINDS, Predictor, Tiles, kept_spans, load_predictor, predict_pictures

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


@pytest.fixture(scope="module")
def plain(exported):
    return str(exported("plain.onnx", licence="CC-BY-4.0"))


def test_a_file_predicts_class_maps_overlays_and_probabilities(plain, data, tmp_path, capsys):
    images = Path(data.root) / "val" / "images"
    out = tmp_path / "out"
    assert main(["predict", plain, str(images), "--out", str(out), "--probabilities", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 3
    assert 0 < found["fps"] <= found["network_fps"]
    for index in range(3):
        truth = np.asarray(Image.open(Path(data.root) / "val" / "labels" / f"{index}.png"))
        classes = Image.open(out / "classes" / f"{index}.png")
        assert classes.mode == "P"
        indices = np.asarray(classes)
        assert (indices == truth).mean() > 0.85
        np.testing.assert_array_equal(np.asarray(classes.convert("RGB")), np.array(COLOURS, np.uint8)[indices])
        shares = np.load(out / "probabilities" / f"{index}.npy")
        assert (shares.shape, shares.dtype) == ((3, *truth.shape), np.float16)
        np.testing.assert_allclose(shares.astype(np.float32).sum(0), 1, atol=5e-3)
        np.testing.assert_array_equal(shares.argmax(0), indices)
        overlay = np.asarray(Image.open(out / "overlays" / f"{index}.png")).astype(int)
        image = np.asarray(Image.open(images / f"{index}.png")).astype(int)
        np.testing.assert_array_equal(overlay, (image + np.array(COLOURS)[indices]) // 2)
    assert not list(out.rglob("*.tmp"))


class Blur(nn.Module):
    """Logits that depend on 9x9 pixels."""

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 9, stride=1, padding=4, count_include_pad=False)


def predictor(**options):
    labels = Labels(("a", "b", "c"), COLOURS)
    options = {"augmentation": in_0_to_1(), **options}
    return Predictor(network=Blur(), labels=labels, device=torch.device("cpu"), **options)


@pytest.mark.parametrize("overlap", [8, 11])
def test_tiles_that_overlap_by_the_field_of_view_give_the_prediction_of_the_whole_image(overlap):
    image = torch.randint(0, 256, (3, 70, 93), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    parts = {}
    for name, options in (("whole", {}), ("tiles", {"tiles": Tiles(size=(24, 40), overlap=overlap)})):
        scores = torch.zeros(3, 70, 93)
        seen = torch.zeros(70, 93)

        def keep(rows, columns, found, scores=scores, seen=seen):
            scores[:, rows, columns] = found
            seen[rows, columns] += 1

        parts[name] = predictor(**options).predict(image, keep), scores
        assert (seen == 1).all()
    torch.testing.assert_close(parts["tiles"][1], parts["whole"][1])
    np.testing.assert_array_equal(parts["tiles"][0], parts["whole"][0])


def test_tiles_partition_an_axis_and_a_small_image_fills_one():
    for length, tile, overlap in ((100, 32, 8), (33, 32, 0), (32, 32, 31), (7, 32, 4)):
        spans = kept_spans(length, tile, overlap)
        assert [first for _, first, _ in spans] == [0, *[last for _, _, last in spans][:-1]]
        assert spans[-1][2] == length
        assert all(start <= first and last <= start + tile for start, first, last in spans)
    small = torch.full((3, 5, 7), 40, dtype=torch.uint8)
    found = predictor(tiles=Tiles(size=(24, 40), overlap=8)).predict(small, lambda *_: None)
    assert found.shape == (5, 7)


def test_a_file_of_fixed_size_takes_its_own_tiles_only(plain, data, tmp_path):
    Image.new("RGB", (100, 70)).save(tmp_path / "large.png")
    large = load_predictor(plain, tiles=Tiles(size=(32, 48), overlap=8))
    predict_pictures(large, find_pictures([str(tmp_path)])[0], tmp_path / "out")
    assert np.asarray(Image.open(tmp_path / "out" / "classes" / "large.png")).shape == (70, 100)
    with pytest.raises(UserError, match="exported for input size 32x48, given 64x64"):
        load_predictor(plain, tiles=Tiles(size=(64, 64), overlap=8))
    with pytest.raises(UserError, match="expected 0 to 31"):
        Tiles(size=(32, 48), overlap=32)


def test_class_maps_have_no_probabilities(exported, data, tmp_path):
    whole = load_predictor(str(exported("whole.onnx", end_to_end=EndToEnd())))
    pictures, _ = find_pictures([f"{data.root}/val/images/*.png"])
    with pytest.raises(UserError, match="class maps, not probabilities"):
        predict_pictures(whole, pictures, tmp_path, KINDS)
    assert predict_pictures(whole, pictures, tmp_path).images == 3


def test_images_are_read_as_the_data_says(tmp_path):
    """Twelve bits in files of 16, one channel: the same pixels as the dataset reads, predicted and overlaid in grey."""
    values = np.random.default_rng(0).integers(0, 4096, (16, 24)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "0.png")
    picture = Picture(path=tmp_path / "0.png", name="0")
    reading = Reading(channels=1, value_range=(0, 4095))
    ((_, image),) = picture.frames(reading)
    assert torch.equal(image, read_image(picture.path, (0, 4095), 1))
    np.testing.assert_array_equal(image[0].numpy(), values >> 4)
    with pytest.raises(UserError, match="bit depth is not known"):
        list(picture.frames())
    grey = predictor(reading=reading, augmentation=in_0_to_1(1))
    assert predict_pictures(grey, [picture], tmp_path / "out").images == 1
    overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / "0.png"))
    np.testing.assert_array_equal(overlay[..., 1], (values >> 4) // 2)
    with pytest.raises(UserError, match="the network takes 4"):
        list(Picture(path=tmp_path / "film.mp4", name="film").frames(Reading(channels=4)))


def test_names_of_predictions(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/1.jpg", "b/notes.txt", ".hidden/2.png", "out/classes/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pictures, skipped = find_pictures([str(tmp_path)], without=tmp_path / "out")
    assert [picture.name for picture in pictures] == ["a/1", "b/1.jpg", "b/1.png"]
    assert skipped == 1
    with pytest.raises(UserError, match="several pictures are named 1"):
        find_pictures([str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png")])
    for given, message in (("b/notes.txt", "neither an image nor a video"), ("c/*.png", "no file matches")):
        with pytest.raises(UserError, match=message):
            find_pictures([str(tmp_path / given)])


def test_frames_of_a_video_are_predicted(plain, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for colour in COLOURS:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), colour, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = predict_pictures(load_predictor(plain), find_pictures([str(tmp_path / "clip.mp4")])[0], tmp_path / "out")
    assert found.images == 3
    for index in range(3):
        assert (np.asarray(Image.open(tmp_path / "out" / "classes" / "clip" / f"{index:06d}.png")) == index).all()


def test_a_broken_picture_is_named_and_the_others_are_predicted(plain, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (48, 32)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    assert main(["predict", plain, str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "1 of 2 files could not be read, the first: " in capsys.readouterr().err
    assert (tmp_path / "out" / "classes" / "a.png").exists()
