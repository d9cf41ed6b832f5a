"""Losses of semantic segmentation: cross-entropy over hard pixels, and distillation per pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.data import IGNORE_LABEL
from dnas.errors import UserError
from dnas.ops import resample

Direction = Literal["student_teacher", "teacher_student"]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, classes, h, w) resized bilinearly to ``size`` (height, width); unchanged when they have that size."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return resample(logits, size)


class OhemCrossEntropy(nn.Module):
    """Cross-entropy averaged over the hard pixels: online hard example mining.

    A pixel is hard when the probability of its true class is below ``threshold``. When fewer than ``min_kept`` pixels
    of the batch are hard, the ``min_kept`` pixels with the largest losses are averaged instead. Ignored pixels count
    nowhere.

    RegSeg states the rule by losses: "averages pixel losses that are over 0.3 or averages the top 1/16 pixel losses if
    the original proportion is less than 1/16" (regseg_v3, section 4.2): use :meth:`over_loss`. FasterSeg (Appendix F),
    DWRSeg (section 4.2) and ESeg (section 4.1) name the method without numbers; the defaults here are those of
    FasterSeg's published training configuration.
    """

    def __init__(
        self, threshold: float | None = 0.7, min_kept: float = 1 / 16, ignore_label: int = IGNORE_LABEL
    ) -> None:
        """``threshold`` is a probability in (0, 1], None for the plain cross-entropy of all valid pixels.

        ``min_kept`` is a number of pixels when it is an int, a fraction of the batch's valid pixels when it is a float.
        Raises ValueError for values out of range.
        """
        super().__init__()
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold is a probability in (0, 1] or None, given {threshold}")
        if min_kept < 0 or (isinstance(min_kept, float) and min_kept > 1):
            raise ValueError(f"min_kept is a count or a fraction in [0, 1], given {min_kept}")
        self.threshold = threshold
        self.min_kept = min_kept
        self.ignore_label = ignore_label

    @classmethod
    def over_loss(cls, loss: float = 0.3, min_kept: float = 1 / 16) -> OhemCrossEntropy:
        """The rule by loss instead of probability, a pixel is hard when its loss exceeds ``loss``; RegSeg's values."""
        return cls(math.exp(-loss), min_kept)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over hard pixels, a scalar in float32 even inside autocast; 0 when no pixel is valid.

        ``logits`` (N, classes, h, w) are resized to ``labels`` (N, H, W), int64. Give them as small as they are: then
        nothing of the size of the labels is kept for the backward pass (which cannot be differentiated again).
        """
        if logits.shape[-2:] == labels.shape[-2:] or not (logits.requires_grad and torch.is_grad_enabled()):
            return self._mean_loss(logits, labels)
        loss: Tensor = _WithGradient.apply(logits, lambda values: self._mean_loss(values, labels))
        return loss

    def _mean_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = resize_logits(_at_least_float32(logits), (labels.shape[-2], labels.shape[-1]))
            losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_label, reduction="none")
            # Ignored pixels have loss 0, exactly: they are never hard, and last in the order of losses.
            valid = labels != self.ignore_label
            if self.threshold is None:
                return losses.sum() / valid.sum().clamp(min=1)
            hard = valid & (losses.detach() > -math.log(self.threshold))
            num_valid, num_hard = torch.stack([valid.sum(), hard.sum()]).tolist()
            kept = self._number_kept(num_valid)
            if num_hard >= max(kept, 1):
                # A product rather than a selection, so that a NaN anywhere is not hidden.
                hard_mean: Tensor = (losses * hard).sum() / num_hard
                return hard_mean
            if kept == 0:
                return losses.sum() * 0.0
            hardest: Tensor = losses.flatten().topk(kept, sorted=False).values
            return hardest.mean()

    def _number_kept(self, num_valid: int) -> int:
        if isinstance(self.min_kept, int):
            return min(self.min_kept, num_valid)
        # At least one pixel, so that a tiny crop still teaches something.
        return min(max(1, math.floor(self.min_kept * num_valid)), num_valid) if self.min_kept > 0 else 0


class _WithGradient(torch.autograd.Function):
    """A scalar of a tensor whose gradient is found at once: that, and nothing on the way to it, is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            # In float32 until it is multiplied: scaled losses are there because float16 would round it to 0.
            leaf = _at_least_float32(values).detach().requires_grad_()
            result = function(leaf)
        ctx.dtype = values.dtype
        ctx.save_for_backward(*torch.autograd.grad(result, leaf))
        return result.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (of_values,) = ctx.saved_tensors
        return (of_values * gradient).to(ctx.dtype), None


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
    its square so that the gradients keep their size. The teacher gets no gradient. A float32 scalar even inside
    autocast; 0 when no pixel is valid. Raises :class:`UserError` when the class counts differ.
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


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
