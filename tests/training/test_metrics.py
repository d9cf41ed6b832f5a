from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import tv_tensors

from dnas.data import AugmentationConfig, Labels, SegmentationDataset, eval_transform
from dnas.data.decode import resize_image
from dnas.errors import UserError
from dnas.training import InferenceConfig, SegmentationMetrics, evaluate

NAMES = ("sky", "road", "car", "pole", "sign")
LABELS = Labels(names=NAMES, colours=tuple((index, index, index) for index in range(5)))


class Pictures(SegmentationDataset):
    """Images of the given sizes whose red channel encodes the class of each pixel."""

    def __init__(self, sizes, seed=0):
        super().__init__(name="pictures", split="val", labels=LABELS, count=len(sizes), size=None, cache=False)
        self._sizes, self._seed = sizes, seed

    def file_name(self, index):
        return f"{index}.png"

    def _native_size(self, index):
        return self._sizes[index]

    def _read(self, index):
        generator = torch.Generator().manual_seed(self._seed + index)
        mask = torch.randint(4, self._sizes[index], generator=generator, dtype=torch.uint8)
        image = torch.randint(256, (3, *self._sizes[index]), generator=generator, dtype=torch.uint8)
        mask[torch.rand(mask.shape, generator=generator) < 0.1] = 255
        return tv_tensors.Image(image), tv_tensors.Mask(mask)


class Guess(nn.Module):
    """Coarse logits that depend on the image."""

    def __init__(self, classes=5):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, classes, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(classes)

    def forward(self, images):
        return self.norm(self.conv(images))


def _by_numpy(pairs):
    """IoU of each class (NaN when absent) and the accuracy, from a confusion matrix counted pixel by pixel."""
    matrix = np.zeros((5, 5), dtype=np.int64)
    for predicted, label in pairs:
        valid = label != 255
        np.add.at(matrix, (label[valid], predicted[valid]), 1)
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hits
    with np.errstate(invalid="ignore"):
        return hits / union, hits.sum() / matrix.sum()


def _check(evaluation, pairs):
    iou, accuracy = _by_numpy(pairs)
    assert evaluation.miou == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert evaluation.pixel_accuracy == pytest.approx(accuracy, rel=1e-12)
    for name, value in zip(NAMES, iou, strict=True):
        assert evaluation.iou[name] == (None if np.isnan(value) else pytest.approx(value, rel=1e-12))


def test_miou_equals_a_numpy_confusion_matrix_with_absent_classes():
    generator = torch.Generator().manual_seed(2)
    metrics, pairs = SegmentationMetrics(NAMES), []
    for count in (3, 1):
        # Class 3 occurs only in the labels, 2 only in the predictions, 4 in neither; some pixels are ignored.
        predictions = torch.tensor([0, 1, 2])[torch.randint(3, (count, 9, 7), generator=generator)]
        labels = torch.tensor([0, 1, 3, 255])[torch.randint(4, (count, 9, 7), generator=generator)]
        metrics.update(predictions, labels)
        pairs.append((predictions.numpy(), labels.numpy()))
    evaluation = metrics.result()
    _check(evaluation, pairs)
    assert evaluation.images == 4
    assert evaluation.iou["sign"] is None
    assert evaluation.iou["car"] == evaluation.iou["pole"] == 0
    assert evaluation.to_mapping() == {
        "miou": evaluation.miou,
        "iou": evaluation.iou,
        "pixel_accuracy": evaluation.pixel_accuracy,
        "images": 4,
    }


def test_logits_are_upsampled_before_the_class_is_chosen():
    logits, labels = torch.randn(2, 5, 4, 5), torch.randint(5, (2, 16, 21))
    metrics = SegmentationMetrics(NAMES)
    metrics.update(logits, labels)
    predicted = F.interpolate(logits, size=(16, 21), mode="bilinear").argmax(1)
    _check(metrics.result(), [(predicted.numpy(), labels.numpy())])


def test_nothing_valid_scores_zero():
    metrics = SegmentationMetrics(NAMES)
    metrics.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255))
    evaluation = metrics.result()
    assert (evaluation.miou, evaluation.pixel_accuracy, evaluation.images) == (0, 0, 1)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluate_mixes_odd_sizes_and_batches(batch_size, channels_last):
    dataset = Pictures([(64, 65), (64, 65), (71, 64), (64, 65), (64, 65), (64, 65), (64, 65)])
    network = Guess()
    augmentation = AugmentationConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))
    evaluation = evaluate(network, dataset, augmentation, batch_size=batch_size, channels_last=channels_last)
    assert network.training
    assert int(network.norm.num_batches_tracked) == 0
    network.eval()
    pairs = []
    for image, mask in (dataset[index] for index in range(len(dataset))):
        pixels = image.as_subclass(torch.Tensor).float()[None] / 255
        pixels = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1)
        with torch.no_grad():
            logits = F.interpolate(network(pixels), size=mask.shape[-2:], mode="bilinear")
        pairs.append((logits.argmax(1)[0].numpy(), mask.numpy()))
    assert evaluation.images == 7
    _check_nearly(evaluation, pairs)


def _check_nearly(evaluation, pairs):
    """Convolutions round differently for other batch sizes and layouts: the class of a few pixels may change."""
    iou, accuracy = _by_numpy(pairs)
    assert evaluation.miou == pytest.approx(np.nanmean(iou), abs=2e-3)
    assert evaluation.pixel_accuracy == pytest.approx(accuracy, abs=2e-3)


def test_shares_of_several_processes_add_up():
    dataset = Pictures([(64, 64)] * 3)
    scores = [evaluate(Guess(), dataset, AugmentationConfig(), rank=rank, world=4).images for rank in range(4)]
    assert scores == [1, 1, 1, 0]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="has no images"):
        evaluate(Guess(), Pictures([]), AugmentationConfig())
    with pytest.raises(UserError, match="predicts 4 classes, the dataset has 5"):
        evaluate(Guess(classes=4), Pictures([(64, 64)]), AugmentationConfig())


def test_the_confusion_matrix_and_the_miou_without_some_classes():
    labels, predicted = torch.randint(5, (2, 9, 9)), torch.randint(5, (2, 9, 9))
    metrics = SegmentationMetrics(NAMES)
    metrics.update(predicted, labels)
    evaluation = metrics.result()
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (labels.numpy(), predicted.numpy()), 1)
    np.testing.assert_array_equal(evaluation.confusion, expected)
    kept = [evaluation.iou[name] for name in ("sky", "car")]
    assert evaluation.miou_without(["road", "pole", "sign"]) == pytest.approx(np.mean(kept))
    assert evaluation.reduced_miou is None
    with pytest.raises(UserError, match="no class 'bus', expected some of sky, road"):
        evaluation.miou_without(["bus"])
    with pytest.raises(UserError, match="all classes are left out"):
        evaluation.miou_without(NAMES)


def test_the_reduced_miou_leaves_truck_bus_and_train_out():
    """RegSeg v1, section 4.3."""
    names = ("road", "truck", "bus", "train")
    metrics = SegmentationMetrics(names)
    metrics.update(torch.tensor([[[0, 0, 1, 2, 3, 0]]]), torch.tensor([[[0, 0, 1, 2, 3, 3]]]))
    evaluation = metrics.result()
    assert evaluation.reduced_miou == evaluation.to_mapping()["reduced_miou"] == evaluation.iou["road"] == 2 / 3


def test_a_smaller_input_is_scored_at_the_size_of_the_labels():
    """Images are those of a dataset of that size, pixel for pixel; labels are the original ones, of two sizes."""
    dataset, network = Pictures([(64, 96), (64, 96), (48, 64)]), Guess().eval()
    inference = InferenceConfig(input_size=(32, 48))
    evaluation = evaluate(network, dataset, AugmentationConfig(), batch_size=3, inference=inference)
    pairs = []
    for image, mask in (dataset[index] for index in range(3)):
        small = resize_image(image, (32, 48))
        pixels, _ = eval_transform(AugmentationConfig())(tv_tensors.Image(small), mask)
        with torch.no_grad():
            logits = F.interpolate(network(pixels[None]), size=mask.shape[-2:], mode="bilinear")
        pairs.append((logits.argmax(1)[0].numpy(), mask.numpy()))
    _check_nearly(evaluation, pairs)
    assert sum(map(sum, evaluation.confusion)) == sum(int((label != 255).sum()) for _, label in pairs)
