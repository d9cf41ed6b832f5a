"""Losses of semantic segmentation: cross-entropy over hard pixels, and distillation per pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.data import IGNORE_LABEL
from dnas.errors import UserError
from dnas.ops import resize

Direction = Literal["student_teacher", "teacher_student"]

TOGETHER_UP_TO_VALUES = 1 << 26
"""Up to this many resized logits, 256 MB in float32, the losses of several outputs are computed together on a GPU."""


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, classes, h, w) resized bilinearly to ``size`` (height, width); unchanged if they have that size."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return resize(logits, size)


class OhemCrossEntropy(nn.Module):
    """Cross-entropy averaged over the hard pixels: online hard example mining.

    A pixel is hard if the probability of its true class is below ``threshold``. If fewer than ``min_kept`` pixels of
    the batch are hard, the ``min_kept`` pixels with the largest losses are averaged instead. Ignored pixels are not
    counted. With ``class_weights`` the average is weighted by the true classes, as in ``nn.CrossEntropyLoss``; they do
    not decide which pixels are hard.

    With ``label_smoothing`` e, the target of a pixel is 1 - e for its true class plus e / classes for every class. It
    does not decide which pixels are hard either.

    RegSeg states the rule by losses: "averages pixel losses that are over 0.3 or averages the top 1/16 pixel losses if
    the original proportion is less than 1/16" (regseg_v3, section 4.2): use :meth:`over_loss`. FasterSeg (Appendix F),
    DWRSeg (section 4.2) and ESeg (section 4.1) name the method without numbers; the defaults here are those of
    FasterSeg's published training configuration.
    """

    def __init__(
        self,
        threshold: float | None = 0.7,
        min_kept: float = 1 / 16,
        ignore_label: int = IGNORE_LABEL,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        """``threshold`` is a probability in (0, 1], None for the plain cross-entropy of all valid pixels.

        ``min_kept`` is a number of pixels if it is an int, a fraction of the batch's valid pixels if it is a float.
        ``class_weights`` (classes,) are not part of the state. Raises ValueError for values out of range.
        """
        super().__init__()
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold is a probability in (0, 1] or None, given {threshold}")
        if min_kept < 0 or (isinstance(min_kept, float) and min_kept > 1):
            raise ValueError(f"min_kept is a count or a fraction in [0, 1], given {min_kept}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share in [0, 1), given {label_smoothing}")
        # The limit of a hard pixel's loss.
        self.hard_loss = None if threshold is None else -math.log(threshold)
        self.min_kept = min_kept
        self.ignore_label = ignore_label
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def over_loss(
        cls,
        loss: float = 0.3,
        min_kept: float = 1 / 16,
        ignore_label: int = IGNORE_LABEL,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> OhemCrossEntropy:
        """The rule by loss instead of probability: a pixel is hard if its loss exceeds ``loss``. Defaults: RegSeg's."""
        if loss < 0:
            raise ValueError(f"loss is at least 0, given {loss}")
        criterion = cls(1.0, min_kept, ignore_label, class_weights, label_smoothing)
        criterion.hard_loss = float(loss)
        return criterion

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over hard pixels, a float32 scalar even inside autocast; 0 if no pixel is valid.

        ``logits`` (N, classes, h, w) are resized to ``labels`` (N, H, W), int64. The gradient is computed together with
        the loss, so only a tensor of the size of the logits is saved for the backward pass: pass them before any
        upsampling. The gradient cannot be differentiated again.
        """
        loss: Tensor = _OhemCrossEntropy.apply(logits, labels, self, 1)
        return loss

    def mean_of(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean of the losses of several logits (N, classes, h, w) for the same labels.

        On a GPU small logits of one shape are taken together: each of them would need some 40 kernels, which take
        longer to launch than to run.
        """
        values = len(outputs) * labels.numel() * outputs[0].shape[1]
        same = all(logits.shape == outputs[0].shape for logits in outputs)
        if len(outputs) > 1 and same and outputs[0].is_cuda and values <= TOGETHER_UP_TO_VALUES:
            return self.mean_together(torch.cat(list(outputs)), labels, len(outputs))
        return torch.stack([self(logits, labels) for logits in outputs]).mean()

    def mean_together(self, logits: Tensor, labels: Tensor, groups: int) -> Tensor:
        """:meth:`mean_of` for the logits of ``groups`` outputs one after another: (groups * N, classes, h, w)."""
        loss: Tensor = _OhemCrossEntropy.apply(logits, labels, self, groups)
        return loss

    def mean_and_shares(self, losses: Tensor, labels: Tensor, smoothed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mean of the losses (N, H, W) over hard pixels, and the share of each pixel in it, of the same shape.

        Losses of several groups (groups, N, H, W) have their own hard pixels; the result is the sum of their means.
        ``smoothed``: the losses of smoothed labels, which are averaged then; ``losses`` decide which pixels are hard.
        """
        shares = self._shares(losses, labels)
        if self.class_weights is not None:
            shares = shares * self.class_weights[labels.masked_fill(labels == self.ignore_label, 0)]
            shares = shares / _sums(shares).clamp(min=torch.finfo(shares.dtype).tiny)
        # A product and not a selection, so that a NaN in any pixel shows.
        return ((losses if smoothed is None else smoothed) * shares).sum(), shares

    def _shares(self, losses: Tensor, labels: Tensor) -> Tensor:
        """The share of each pixel in the mean without class weights."""
        # The loss of ignored pixels is exactly 0: they are never hard, and last in the order of losses.
        valid = labels != self.ignore_label
        if self.hard_loss is None:
            return valid.to(losses.dtype) / valid.sum().clamp(min=1)
        hard = valid & (losses > self.hard_loss)
        if losses.is_cuda or losses.dim() > 3:
            return self._shares_without_waiting(losses, valid, hard)
        num_valid, num_hard = torch.stack([valid.sum(), hard.sum()]).tolist()
        kept = self._number_kept(num_valid)
        if num_hard >= max(kept, 1):
            return hard.to(losses.dtype).div(num_hard)
        shares = torch.zeros_like(losses)
        if kept:
            hardest = losses.flatten().topk(kept, sorted=False).indices
            shares.view(-1)[hardest] = 1 / kept
        return shares * valid

    def _shares_without_waiting(self, losses: Tensor, valid: Tensor, hard: Tensor) -> Tensor:
        """The shares on a device for which the host does not wait: both cases are computed, and one is selected.

        The number of pixels to keep is only known on the device. So the largest possible number of pixels is sorted,
        and the first ones of them are kept.
        """
        num_valid, num_hard = valid.sum(), _sums(hard)
        most = self._number_kept(valid.numel())
        if isinstance(self.min_kept, int):
            kept = num_valid.clamp(max=self.min_kept)
        elif self.min_kept > 0:
            kept = (num_valid.double() * self.min_kept).floor().long().clamp(min=1).minimum(num_valid)
        else:
            kept = torch.zeros_like(num_valid)
        flat = losses.flatten(-3)
        hardest = flat.topk(most).indices
        at_least_one = kept.clamp(min=1)
        chosen = (torch.arange(most, device=losses.device) < kept).to(losses.dtype) / at_least_one
        fewest = torch.zeros_like(flat).scatter(-1, hardest, chosen.expand_as(hardest)).view_as(losses) * valid
        return torch.where(num_hard >= at_least_one, hard.to(losses.dtype) / num_hard.clamp(min=1), fewest)

    def _number_kept(self, num_valid: int) -> int:
        if isinstance(self.min_kept, int):
            return min(self.min_kept, num_valid)
        # At least one pixel, so that a tiny crop has a gradient.
        return min(max(1, math.floor(self.min_kept * num_valid)), num_valid) if self.min_kept > 0 else 0


class _OhemCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, criterion: OhemCrossEntropy, groups: int) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            # In float32 until the scaled loss multiplies it: float16 would round it to 0.
            small = _at_least_float32(logits).detach().requires_grad_(ctx.needs_input_grad[0])
            with torch.enable_grad():
                resized = resize_logits(small, (labels.shape[-2], labels.shape[-1]))
            found = F.log_softmax(resized.detach(), dim=1)
            every = labels if groups == 1 else labels.repeat(groups, 1, 1)
            losses = _losses_of_truth(found, every, criterion.ignore_label)
            kept = 1 - criterion.label_smoothing
            smoothed = None if kept == 1 else kept * losses - (1 - kept) * found.mean(dim=1)
            if groups == 1:
                loss, shares = criterion.mean_and_shares(losses, labels, smoothed)
            else:
                by_group = losses.view(groups, *labels.shape)
                smoothed = None if smoothed is None else smoothed.view_as(by_group)
                loss, shares = criterion.mean_and_shares(by_group, labels, smoothed)
                loss, shares = loss / groups, (shares / groups).expand_as(by_group).flatten(0, 1)
            if ctx.needs_input_grad[0]:
                # The derivative of a pixel's loss by its logits: the probabilities minus the targets.
                gradient = found.exp_()
                of_truth = every.masked_fill(every == criterion.ignore_label, 0)[:, None]
                gradient.scatter_add_(1, of_truth, gradient.new_full((1, 1, 1, 1), -kept).expand_as(of_truth))
                if kept != 1:
                    gradient -= (1 - kept) / gradient.shape[1]
                gradient *= shares[:, None]
                if resized is not small:
                    (gradient,) = torch.autograd.grad(resized, small, gradient)
                ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (of_logits,) = ctx.saved_tensors
        return (of_logits * gradient).to(ctx.dtype), None, None, None


def _sums(x: Tensor) -> Tensor:
    """The sum of (N, H, W), or those of (groups, N, H, W), which can be broadcast to it."""
    return x.sum() if x.dim() == 3 else x.sum((1, 2, 3), keepdim=True)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    direction: Direction = "student_teacher",
    temperature: float = 1.0,
) -> Tensor:
    """The Kullback-Leibler divergence between the two predictions, summed over classes and averaged over valid pixels.

    ``direction`` "student_teacher" is KL(q_s || q_t) of FasterSeg Eq. 4, "teacher_student" is the usual KL(q_t || q_s).
    Logits are (N, classes, h, w); both are resized to ``labels`` (N, H, W), whose ignored pixels are left out, or
    without labels the teacher's to the student's. Both are divided by ``temperature``, and the loss is multiplied by
    its square so that the gradients keep their magnitude. The teacher gets no gradient. The result is a float32 scalar
    even inside autocast; 0 if no pixel is valid. Raises :class:`UserError` if the numbers of classes differ.
    """
    if student_logits.shape[1] != teacher_logits.shape[1]:
        raise UserError(
            f"the teacher predicts {teacher_logits.shape[1]} classes and the student {student_logits.shape[1]}: "
            "distillation needs a teacher trained on the same classes"
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        shape = student_logits.shape if labels is None else labels.shape
        size = (shape[-2], shape[-1])
        student = F.log_softmax(resize_logits(_at_least_float32(student_logits), size) / temperature, dim=1)
        teacher = resize_logits(_at_least_float32(teacher_logits.detach()), size) / temperature
        teacher = F.log_softmax(teacher, dim=1)
        first, second = (student, teacher) if direction == "student_teacher" else (teacher, student)
        divergence = (first.exp() * (first - second)).sum(dim=1) * temperature**2
        if labels is None:
            return divergence.mean()
        valid = labels != IGNORE_LABEL
        return (divergence * valid).sum() / valid.sum().clamp(min=1)


def _losses_of_truth(log_probabilities: Tensor, labels: Tensor, ignore_label: int) -> Tensor:
    """Minus the logarithm of the probability of each pixel's class, 0 for ignored pixels."""
    if log_probabilities.is_cuda and torch.are_deterministic_algorithms_enabled():
        # PyTorch refuses nll_loss there, though it is the mean that depends on the order, not the loss of a pixel.
        ignored = labels == ignore_label
        of_truth = log_probabilities.gather(1, labels.masked_fill(ignored, 0)[:, None])[:, 0]
        return -of_truth.masked_fill(ignored, 0)
    return F.nll_loss(log_probabilities, labels, ignore_index=ignore_label, reduction="none")


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
