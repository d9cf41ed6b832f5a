"""A network that reads classes off colours, and images of coloured blocks: good scores without training."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dnas.data import AugmentationConfig, DataConfig, Labels
from dnas.workflows.exporting import ExportRequest, export_run
from dnas.workflows.networks import LoadedNetwork

SIZE = (32, 48)
NAMES = ("red", "green", "blue")
COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


class ColourReader(nn.Module):
    """The logit of a class is the mean of its channel over 2x2 pixels, upsampled bilinearly."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(3)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2) / 4)

    def forward(self, images):
        logits = self.norm(self.convolution(images))
        return nn.functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def write_images(root, names, size=SIZE, splits=("train", "val")):
    """A ``folder`` dataset of 8x8 blocks in the colours of the classes, which have the order of ``names``."""
    root.mkdir(parents=True)
    entries = [f"  - {{name: {name}, colour: {list(COLOURS[NAMES.index(name)])}}}" for name in names]
    (root / "classes.yaml").write_text("\n".join(["classes:", *entries]))
    generator = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(3):
            blocks = generator.integers(0, 3, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
            image = np.array([COLOURS[NAMES.index(name)] for name in names], np.uint8)[blocks]
            Image.fromarray(image).save(root / split / "images" / f"{index}.png")
            Image.fromarray(blocks.astype(np.uint8)).save(root / split / "labels" / f"{index}.png")
    return DataConfig(dataset="folder", root=str(root))


@pytest.fixture(scope="session")
def images_of():
    """``images_of(root, names)`` writes images whose classes have the order of ``names``."""
    return write_images


@pytest.fixture(scope="session")
def reader():
    """The network as if it were loaded from a run."""
    return LoadedNetwork(
        name="reader",
        network=ColourReader().eval(),
        num_classes=3,
        input_size=SIZE,
        labels=Labels(NAMES, COLOURS),
        augmentation=AugmentationConfig(mean=(0.4, 0.4, 0.4), std=(0.25, 0.25, 0.25)),
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Images whose classes are in the order of the network."""
    return write_images(tmp_path_factory.mktemp("images") / "ordered", NAMES)


@pytest.fixture(scope="session")
def reordered(tmp_path_factory):
    """The same images, whose classes have another order."""
    return write_images(tmp_path_factory.mktemp("images") / "reordered", ("blue", "red", "green"))


@pytest.fixture(scope="session")
def exported(reader, data, tmp_path_factory):
    """``exported(name, **request)``: the path of a file that is exported once a session."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def export(name, **request):
        if name not in done:
            done[name] = export_run(reader, folder / name, ExportRequest(data=data, **request))
        return folder / name

    export.results = done
    return export
