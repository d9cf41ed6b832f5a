from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Cityscapes

from dnas.data import DataConfig, check_dataset, load_data_config, open_dataset
from dnas.data.layouts import cityscapes_lookup
from dnas.errors import UserError

SIZE = (8, 12)


def labels_of(dataset, index: int) -> np.ndarray:
    return dataset[index][1].numpy()


def test_camvid_with_jpeg_and_png_and_its_unlabelled_index(tmp_path: Path, write, picture):
    mask = np.arange(12, dtype=np.uint8)[None].repeat(8, 0)
    for name, suffix in (("b", ".jpg"), ("a", ".png")):
        write(tmp_path / "train" / "images" / f"{name}{suffix}", picture(0, SIZE))
        write(tmp_path / "train" / "labels" / f"{name}.png", mask)
    dataset = open_dataset(DataConfig(dataset="camvid", root=str(tmp_path)), "train")
    assert [dataset.file_name(index) for index in range(2)] == ["train/images/a.png", "train/images/b.jpg"]
    assert dataset.image_size == SIZE
    np.testing.assert_array_equal(labels_of(dataset, 0)[0], [*range(11), 255])
    np.testing.assert_array_equal(dataset[0][0].numpy(), picture(0, SIZE).transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"val.images: no such folder; CamVid is expected as .* contains train"):
        open_dataset(DataConfig(dataset="camvid", root=str(tmp_path)), "val")


@pytest.fixture
def cityscapes(tmp_path: Path, write, picture) -> Path:
    ids = np.arange(34, dtype=np.uint8)[None].repeat(4, 0)
    for city, count in (("ulm", 2), ("aachen", 1)):
        for index in range(count):
            stem = f"{city}_{index:06d}_000019"
            write(tmp_path / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png", picture(index, (4, 34)))
            write(tmp_path / "gtFine" / "val" / city / f"{stem}_gtFine_labelIds.png", ids)
    return tmp_path


def test_cityscapes_raw_ids_become_train_ids(cityscapes: Path):
    dataset = open_dataset(DataConfig(dataset="cityscapes", root=str(cityscapes)), "val")
    assert len(dataset) == 3
    assert dataset.file_name(0).startswith("leftImg8bit/val/aachen/")
    train_ids = {entry.id: 255 if entry.ignore_in_eval else entry.train_id for entry in Cityscapes.classes}
    np.testing.assert_array_equal(labels_of(dataset, 0)[0], [train_ids[index] for index in range(34)])
    assert set(np.unique(labels_of(dataset, 2))) == {*range(19), 255}


def test_the_cityscapes_lookup_covers_every_id_and_no_other():
    lookup = cityscapes_lookup()
    assert lookup.dtype == torch.int32
    assert (lookup[:34] >= 0).all()
    assert (lookup[34:255] == -1).all()
    assert lookup[255] == 255


def test_cityscapes_problems_are_one_clear_error(cityscapes: Path, write):
    config = DataConfig(dataset="cityscapes", root=str(cityscapes))
    with pytest.raises(UserError, match=r"leftImg8bit.train: no such folder; unpack"):
        open_dataset(config, "train")
    with pytest.raises(UserError, match="not public, use val"):
        open_dataset(config, "test")
    mask = next((cityscapes / "gtFine").rglob("aachen*_labelIds.png"))
    write(mask, np.full((4, 34), 77, np.uint8))
    with pytest.raises(UserError, match=r"labelIds\.png: 136 pixels have label 77.* expected 0 to 33, 255"):
        open_dataset(config, "val")[0]
    mask.unlink()
    with pytest.raises(UserError, match=r"image without a mask; expected .*labelIds"):
        open_dataset(config, "val")
    (cityscapes / "leftImg8bit" / "val" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="not a complete Cityscapes folder"):
        open_dataset(config, "val")
    shutil.rmtree(cityscapes / "gtFine")
    with pytest.raises(UserError, match="gtFine"):
        open_dataset(config, "val")


@pytest.mark.parametrize("older", [False, True])
def test_bdd100k_in_both_layouts(tmp_path: Path, write, picture, older: bool):
    images = tmp_path / "images" / ("train" if older else "10k/train")
    masks = tmp_path / "labels" / ("train" if older else "sem_seg/masks/train")
    mask = np.array([[*range(19), 255]] * 4, np.uint8)
    for name in ("x1", "x2"):
        write(images / f"{name}.jpg", picture(0, (4, 20)))
        write(masks / (f"{name}_train_id.png" if older else f"{name}.png"), mask)
        if older:
            write(masks / f"{name}_train_color.png", picture(0, (4, 20)))
    dataset = open_dataset(DataConfig(dataset="bdd100k", root=str(tmp_path)), "train")
    assert (len(dataset), dataset.labels.num_classes) == (2, 19)
    np.testing.assert_array_equal(labels_of(dataset, 1), mask)
    with pytest.raises(UserError, match="BDD100K is expected as"):
        open_dataset(DataConfig(dataset="bdd100k", root=str(tmp_path)), "val")


@pytest.mark.parametrize("masks", ["labels", "masks"])
def test_folder_with_index_and_colour_masks(make_folder, write, masks: str):
    root = make_folder(masks=masks)
    indices = np.array([[0, 1, 2, 9, 255] * 2 + [0] * 4] * 10, np.uint8)
    write(root / "train" / masks / "im0.png", indices)
    write(root / "train" / masks / "im1.png", indices, mode="P")
    colours = np.zeros((10, 14, 3), np.uint8)
    colours[:, 2:4], colours[:, 4:9] = (0, 255, 0), (255, 0, 0)
    write(root / "train" / masks / "im2.png", colours)
    dataset = open_dataset(load_data_config(f"folder:{root}"), "train")
    assert dataset.labels.names == ("a", "b", "c")
    for index in (0, 1):
        np.testing.assert_array_equal(labels_of(dataset, index), np.where(indices == 9, 255, indices))
    np.testing.assert_array_equal(labels_of(dataset, 2)[0], [255] * 2 + [1] * 2 + [0] * 5 + [255] * 5)
    assert check_dataset(dataset) == ()


def test_a_folder_without_val_says_what_to_do(make_folder):
    root = make_folder(splits=("train",))
    with pytest.raises(UserError, match=r"there is no val split, only train; move some of the images"):
        open_dataset(load_data_config(f"folder:{root}"), "val")


def test_folders_that_are_not_there(tmp_path: Path, make_folder):
    with pytest.raises(UserError, match="no such folder"):
        open_dataset(load_data_config(f"folder:{tmp_path / 'none'}"), "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        open_dataset(load_data_config(f"folder:{tmp_path / 'file'}"), "train")
    with pytest.raises(UserError, match="contains none of the folders train, val and test"):
        open_dataset(load_data_config(f"folder:{tmp_path}"), "train")
    root = make_folder()
    (root / "classes.yaml").unlink()
    with pytest.raises(UserError, match=r"classes\.yaml: no such classes file"):
        open_dataset(load_data_config(f"folder:{root}"), "train")
    shutil.rmtree(root / "train" / "labels")
    with pytest.raises(UserError, match=r"train.labels: no such folder"):
        open_dataset(load_data_config(f"folder:{root}"), "train")


def test_broken_pairs_are_found_at_opening(make_folder, write, picture):
    root = make_folder()
    config = load_data_config(f"folder:{root}")
    write(root / "train" / "labels" / "lonely.png", np.zeros((10, 14), np.uint8))
    with pytest.raises(UserError, match=r"lonely\.png: mask without an image"):
        open_dataset(config, "train")
    write(root / "train" / "images" / "lonely.JPG.jpeg", picture(0, (10, 14)))
    with pytest.raises(UserError, match=r"lonely\.JPG\.jpeg: image without a mask"):
        open_dataset(config, "train")
    write(root / "val" / "images" / "im0.jpg", picture(0, (10, 14)))
    with pytest.raises(UserError, match=r"im0\.png: same name as im0\.jpg"):
        open_dataset(config, "val")
    for path in (root / "val" / "images").iterdir():
        path.unlink()
    (root / "val" / "images" / ".hidden.png").write_text("")
    with pytest.raises(UserError, match="contains no images"):
        open_dataset(config, "val")


def test_what_was_seen_and_skipped_is_said(make_folder, write, picture):
    root = make_folder()
    config = load_data_config(f"folder:{root}")
    images, labels = root / "train" / "images", root / "train" / "labels"
    for path in labels.iterdir():
        path.rename(labels / f"{path.stem}_mask.png")
    with pytest.raises(UserError, match=r"im0\.png: image without a mask \(and 2 more\).* it contains im0_mask\.png"):
        open_dataset(config, "train")
    for path in labels.iterdir():
        path.rename(labels / f"{path.stem.removesuffix('_mask')}.svg")
    with pytest.raises(UserError, match=r"image without a mask .*im0\.svg, whose name or kind differs"):
        open_dataset(config, "train")
    for path in list(labels.iterdir()):
        path.unlink()
    (labels / "masks.mat").write_text("")
    with pytest.raises(UserError, match=r"it contains 1 \.mat files, which are not read: dnas data init"):
        open_dataset(config, "train")
    (images / "street").mkdir()
    for path in images.glob("*.png"):
        path.rename(images / "street" / path.name)
    (images / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"contains no images.*3 images in subfolders \(street\), 1 \.txt files"):
        open_dataset(config, "train")


def test_gif_and_npy_masks_are_read(make_folder, write):
    root = make_folder(count=2)
    labels = root / "train" / "labels"
    values = np.arange(140, dtype=np.uint8).reshape(10, 14) % 3
    for path in labels.iterdir():
        path.unlink()
    write(labels / "im0.gif", values)
    np.save(labels / "im1.npy", values)
    dataset = open_dataset(load_data_config(f"folder:{root}"), "train")
    for index in range(2):
        np.testing.assert_array_equal(labels_of(dataset, index), values)


def test_large_files_and_files_of_many_channels_are_not_called_corrupt(make_folder, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    root = make_folder(count=2)
    images = root / "train" / "images"
    config = load_data_config(f"folder:{root}")
    (images / "im1.png").unlink()
    bands = np.random.default_rng(0).integers(0, 256, (10, 14, 5), dtype=np.uint8)
    tifffile.imwrite(images / "im1.tif", bands, planarconfig="contig", extrasamples=["unspecified"] * 4)
    with pytest.raises(UserError, match=r"im1\.tif: an image of 5 channels, expected 3; set channels: 5"):
        open_dataset(config, "train")[1]
    five = load_data_config(f"folder:{root}", ["channels=5"])
    np.testing.assert_array_equal(open_dataset(five, "train")[1][0].numpy(), bands.transpose(2, 0, 1))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"a TIFF file of 5 channels with 8 bits each, which needs tifffile"):
        open_dataset(config, "train")[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(UserError, match=r"im0\.png: an image of 0 megapixels, expected at most 0, .* into tiles"):
        open_dataset(config, "train")[0]


def test_bad_content_is_found_when_read_and_check_dataset_collects_it(make_folder, write):
    root = make_folder(count=6)
    labels = root / "train" / "labels"
    bad = np.zeros((10, 14), np.uint8)
    bad[0, :2] = (3, 7)
    write(labels / "im0.png", bad)
    write(labels / "im1.png", np.zeros((10, 13), np.uint8))
    (root / "train" / "images" / "im2.png").write_bytes(b"\x89PNG")
    write(labels / "im3.png", np.full((10, 14, 3), 17, np.uint8))
    write(labels / "im4.png", np.full((10, 14), 300, np.uint16))
    dataset = open_dataset(load_data_config(f"folder:{root}"), "train")
    problems = check_dataset(dataset)
    assert len(problems) == 5
    for problem, parts in zip(
        problems,
        (
            ("im0.png: 2 pixels have label 3, 7", "expected 0 to 2, 9, 255"),
            ("labels/im1.png: the mask is 13x10 pixels, but its image im1.png is 14x10",),
            ("images/im2.png: not a readable image",),
            ("im3.png: 140 pixels have a colour that is not a class, the first [17, 17, 17]",),
            ("im4.png: 140 pixels have label 300",),
        ),
        strict=True,
    ):
        assert all(part in problem for part in parts), problem
        assert str(root) in problem


def test_a_colour_mask_where_indices_are_expected_is_refused(tmp_path: Path, write, picture):
    write(tmp_path / "train" / "images" / "a.png", picture(0, SIZE))
    write(tmp_path / "train" / "labels" / "a.png", picture(1, SIZE))
    with pytest.raises(UserError, match="a colour mask, expected class indices"):
        open_dataset(DataConfig(dataset="camvid", root=str(tmp_path)), "train")[0]


def test_a_size_resizes_image_and_mask_and_the_cache_changes_nothing(make_folder):
    root = make_folder()
    plain = open_dataset(DataConfig(dataset="folder", root=str(root), size=(16, 24)), "train")
    cached = open_dataset(DataConfig(dataset="folder", root=str(root), size=(16, 24), cache=True), "train")
    for _ in range(2):
        for index in range(3):
            image, mask = cached[index]
            assert torch.equal(image, plain[index][0])
            assert torch.equal(mask, plain[index][1])
            image.zero_()  # returned images are copies
            mask.zero_()
    shutil.rmtree(root / "train")
    assert cached[0][0].any()


def test_real_camvid_reads():
    root = Path(__file__).parents[2].parent / "shared" / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("the real CamVid is not beside the checkout")
    config = load_data_config(f"camvid:{root}")
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        dataset = open_dataset(config, split)
        assert len(dataset) == count
        image, mask = dataset[count // 2]
        assert tuple(image.shape) == (3, 360, 480)
        assert set(mask.unique().tolist()) <= {*range(11), 255}
        assert (mask[-40:] == dataset.labels.names.index("road")).float().mean() > 0.4
