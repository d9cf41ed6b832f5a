from __future__ import annotations

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dnas.errors import UserError
from dnas.training import OhemCrossEntropy, distillation_loss, resize_logits

IGNORE = 255


def _example(seed: int, ignored: float = 0.2, classes: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 6, 7, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (2, 6, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE
    return logits, labels


def _ohem_by_loop(logits: torch.Tensor, labels: torch.Tensor, threshold: float, min_kept: float) -> float:
    """The rule of regseg_v3, section 4.2, pixel by pixel."""
    losses = []
    for n, y, x in torch.cartesian_prod(*(torch.arange(size) for size in labels.shape)).tolist():
        label = int(labels[n, y, x])
        if label == IGNORE:
            continue
        scores = [math.exp(value) for value in logits[n, :, y, x].tolist()]
        losses.append(-math.log(scores[label] / sum(scores)))
    if not losses:
        return 0.0
    kept = min_kept if isinstance(min_kept, int) else max(1, math.floor(min_kept * len(losses)))
    kept = min(kept, len(losses))
    hard = [loss for loss in losses if math.exp(-loss) < threshold]
    chosen = hard if len(hard) >= kept else sorted(losses)[-kept:]
    return sum(chosen) / len(chosen)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    threshold=st.floats(0.01, 1.0),
    min_kept=st.one_of(st.floats(0.01, 1.0), st.integers(1, 200)),
    ignored=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
)
def test_ohem_equals_a_plain_loop(seed, threshold, min_kept, ignored):
    logits, labels = _example(seed, ignored)
    loss = OhemCrossEntropy(threshold, min_kept)(logits, labels)
    assert float(loss) == pytest.approx(_ohem_by_loop(logits, labels, threshold, min_kept), rel=1e-10, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    threshold=st.floats(0.01, 1.0),
    min_kept=st.one_of(st.floats(0.0, 1.0), st.integers(0, 200)),
    ignored=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
)
def test_the_shares_of_a_gpu_are_those_of_a_cpu(seed, threshold, min_kept, ignored):
    logits, labels = _example(seed, ignored)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    criterion, valid = OhemCrossEntropy(threshold, min_kept), labels != IGNORE
    found = criterion._shares_without_waiting(losses, valid, valid & (losses > -math.log(threshold)))
    torch.testing.assert_close(found, criterion._shares(losses, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("threshold", [None, 0.3, 1e-6])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": torch.arange(1.0, 6.0).double()}])
@pytest.mark.parametrize("ignored", [0.2, 1.0])
def test_the_losses_of_several_outputs_together_are_those_of_each(threshold, options, ignored):
    """A GPU computes the first, a CPU the second."""
    _, labels = _example(3, ignored)
    outputs = torch.randn(3, 2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    criterion = OhemCrossEntropy(threshold, 1 / 8, **options)
    each = criterion.mean_of(outputs.unbind(), labels)
    together = criterion.mean_together(outputs.flatten(0, 1), labels, 3)
    torch.testing.assert_close(together, each, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad(2 * loss, outputs)[0] for loss in (together, each))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.3, 1e-6])
@pytest.mark.parametrize("ignored", [0.2, 1.0])
def test_its_gradient_is_that_of_the_written_out_rule(threshold, ignored):
    _, labels = _example(11, ignored)
    for size in ((2, 3), (6, 7)):
        logits = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
        criterion = OhemCrossEntropy(threshold, 1 / 8)
        resized = F.interpolate(logits, size=(6, 7), mode="bilinear", align_corners=False)
        losses = F.cross_entropy(resized, labels, ignore_index=IGNORE, reduction="none")
        valid = labels != IGNORE
        kept = int(valid.sum()) // 8
        if threshold is None:
            expected = losses.sum() / valid.sum().clamp(min=1)
        elif (hard := losses[valid & (losses > -math.log(threshold))]).numel() >= max(kept, 1):
            expected = hard.mean()
        else:
            expected = losses.flatten().topk(kept).values.mean() if kept else losses.sum() * 0
        loss = criterion(logits, labels)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        found, wanted = (torch.autograd.grad(3 * value, logits)[0] for value in (loss, expected))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_small_logits_keep_nothing_of_the_size_of_the_labels():
    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    alive = weakref.WeakSet()

    def keep(tensor):
        alive.add(kept := Kept(tensor))
        return kept

    logits = torch.randn(1, 5, 4, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        loss = OhemCrossEntropy()(2 * logits, torch.zeros(1, 32, 64, dtype=torch.int64))
    assert [kept.tensor.numel() for kept in alive] == [logits.numel()]
    loss.backward()


def test_a_scaled_loss_reaches_small_half_precision_logits():
    logits = torch.zeros(1, 2, 8, 8, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, 512, 512, dtype=torch.int64)
    loss = OhemCrossEntropy(None)(logits, labels)
    (1e-6 * loss * 2**16 * 2**8).backward()  # the gradient of each pixel is below the smallest float16
    assert logits.grad is not None
    assert logits.grad.dtype == torch.float16
    assert torch.allclose(logits.grad.sum(dim=(2, 3))[0], torch.tensor([-0.5, 0.5]).half() * 16.777, atol=0.05)


def test_regseg_rule_keeps_losses_over_its_limit_or_the_top_sixteenth():
    labels = torch.zeros(1, 4, 8, dtype=torch.int64)
    # Two classes, so that a margin m gives the loss log(1 + exp(-m)).
    margins = torch.full((1, 4, 8), 5.0, dtype=torch.float64)
    margins[0, 0, :4] = torch.tensor([0.5, -1.0, 0.2, -2.0])
    logits = torch.stack([margins, torch.zeros_like(margins)], dim=1)
    losses = torch.log1p(torch.exp(-margins)).flatten()
    over = losses[losses > 0.3]
    assert len(over) == 4
    assert float(OhemCrossEntropy.over_loss()(logits, labels)) == pytest.approx(float(over.mean()))
    margins[0, 0, :3] = 5.0  # one of 32 pixels is hard, the top 2 are averaged
    logits = torch.stack([margins, torch.zeros_like(margins)], dim=1)
    expected = torch.log1p(torch.exp(-margins)).flatten().topk(2).values.mean()
    assert float(OhemCrossEntropy.over_loss()(logits, labels)) == pytest.approx(float(expected))


def test_ohem_without_a_threshold_is_cross_entropy():
    logits, labels = _example(3)
    assert torch.allclose(OhemCrossEntropy(None)(logits, labels), F.cross_entropy(logits, labels, ignore_index=IGNORE))


def test_ohem_gradient_reaches_only_the_hard_pixels():
    logits, labels = _example(4)
    logits.requires_grad_()
    OhemCrossEntropy(0.4, 1)(logits, labels).backward()
    true = logits.detach().softmax(1).gather(1, labels.clamp(max=4)[:, None])[:, 0]
    hard = (labels != IGNORE) & (true < 0.4)
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(1) > 0, hard)


@pytest.mark.parametrize("threshold", [0.7, None])
def test_ohem_of_nothing_valid_is_zero_with_a_graph(threshold):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = OhemCrossEntropy(threshold)(logits, torch.full((1, 4, 4), IGNORE))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_ohem_does_not_hide_nan():
    logits, labels = _example(5, ignored=0)
    logits[0, :, 0, 0] = math.nan
    assert OhemCrossEntropy(0.7)(logits, labels).isnan()


def test_losses_are_float32_inside_autocast():
    logits, labels = _example(6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = logits.bfloat16()
        ohem = OhemCrossEntropy(0.7)(half, labels)
        distillation = distillation_loss(half, half.roll(1, 0), labels)
    assert ohem.dtype == distillation.dtype == torch.float32
    assert torch.equal(ohem, OhemCrossEntropy(0.7)(half.float(), labels))
    assert torch.equal(distillation, distillation_loss(half.float(), half.float().roll(1, 0), labels))


def test_logits_are_upsampled_to_the_labels():
    logits, _ = _example(7)
    labels = torch.randint(5, (2, 13, 15))
    upsampled = F.interpolate(logits, size=(13, 15), mode="bilinear", align_corners=False)
    assert torch.equal(resize_logits(logits, (13, 15)), upsampled)
    assert torch.equal(OhemCrossEntropy()(logits, labels), OhemCrossEntropy()(upsampled, labels))
    teacher = logits.flip(0)[..., ::2, ::2]
    expected = distillation_loss(upsampled, F.interpolate(teacher, size=(13, 15), mode="bilinear"), labels)
    assert torch.equal(distillation_loss(logits, teacher, labels), expected)


@pytest.mark.parametrize("threshold", [0, 1.5, -0.1])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match="probability"):
        OhemCrossEntropy(threshold)


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_equals_torch_distributions(direction, temperature):
    student, labels = _example(8)
    teacher, _ = _example(9)
    first = torch.distributions.Categorical(logits=student.movedim(1, -1) / temperature)
    second = torch.distributions.Categorical(logits=teacher.movedim(1, -1) / temperature)
    if direction == "teacher_student":
        first, second = second, first
    divergence = torch.distributions.kl_divergence(first, second)
    expected = temperature**2 * divergence[labels != IGNORE].mean()
    given = distillation_loss(student, teacher, labels, direction=direction, temperature=temperature)
    assert torch.allclose(given, expected)
    everywhere = distillation_loss(student, teacher, direction=direction, temperature=temperature)
    assert torch.allclose(everywhere, temperature**2 * divergence.mean())


def test_distillation_is_a_mean_over_pixels_alone():
    """The published code also divides by the number of classes, which is 19 times too weak on Cityscapes."""
    student, _ = _example(10)
    teacher, _ = _example(11)
    by_torch = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True) / (2 * 6 * 7)
    assert torch.allclose(distillation_loss(student, teacher, direction="teacher_student"), by_torch)


def test_distillation_leaves_the_teacher_alone_and_survives_extremes():
    student = torch.tensor([[[[200.0]], [[-200.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[-200.0]], [[200.0]]]], requires_grad=True)
    loss = distillation_loss(student, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None
    labels = torch.full((1, 1, 1), IGNORE)
    assert float(distillation_loss(student.detach(), teacher, labels)) == 0


def test_distillation_between_other_classes_is_refused():
    with pytest.raises(UserError, match="teacher predicts 4 classes and the student 3"):
        distillation_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_smoothed_labels_are_pytorchs(threshold):
    logits, labels = _example(3)
    logits.requires_grad_()
    plain = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    smoothed = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none", label_smoothing=0.1)
    hard = (labels != IGNORE) if threshold is None else (plain > -math.log(threshold))
    expected = smoothed[hard].mean()
    loss = OhemCrossEntropy(threshold, 0.0, label_smoothing=0.1)(logits, labels)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    found, wanted = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_rule_by_loss_compares_with_the_loss_itself():
    logits, labels = _example(5)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    limit = losses[labels != IGNORE].sort().values[20].item()  # a loss that occurs is not over itself
    loss = OhemCrossEntropy.over_loss(limit, 0.0)(logits, labels)
    assert float(loss) == pytest.approx(float(losses[losses > limit].mean()), rel=1e-12)
    with pytest.raises(ValueError, match="at least 0"):
        OhemCrossEntropy.over_loss(-1.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        OhemCrossEntropy(label_smoothing=1.0)
