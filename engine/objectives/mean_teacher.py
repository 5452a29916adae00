"""Mean Teacher: a student agrees with the moving average of its own weights, the teacher, on another view.

Source: Tarvainen and Valpola 2017, "Mean teachers are better role models" (arXiv 1703.01780), section 2 and
appendix B for the ramps; the authors' implementations (github.com/CuriousAI/mean-teacher) for the divisor of
the class loss, which the paper does not state.

Shapes: B labelled rows and N rows in all (labelled and unlabelled) of this rank, C classes. Every term is a
sum over rows divided by N, which is the same on every rank, so that DistributedDataParallel's average is the
mean over all ranks.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from engine.choices import Distance
from engine.objectives.cross_entropy import label_loss
from engine.objectives.precision import at_least_float32


def consistency_loss(student_logits: Tensor, teacher_logits: Tensor, distance: Distance = "mse") -> Tensor:
    """Return the distance of the student's class probabilities from the teacher's.

    Args:
        student_logits: [N, C].
        teacher_logits: [N, C], from the averaged weights on another view; no gradient flows back.
        distance: "mse" is the squared difference of probabilities, averaged over classes and rows; "kl" is
            KL(teacher || student), summed over classes, averaged over rows.

    Raises:
        ValueError: the logits differ in shape, or are the same tensor, for which the loss is always zero.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"consistency: expected logits of one shape, got {list(student_logits.shape)} and "
            f"{list(teacher_logits.shape)}"
        )
    if student_logits is teacher_logits:
        raise ValueError("consistency: expected the logits of two networks, got the same tensor twice")
    teacher = at_least_float32(teacher_logits.detach())
    if distance == "mse":
        return F.mse_loss(at_least_float32(student_logits).softmax(1), teacher.softmax(1))
    student = at_least_float32(student_logits).log_softmax(1)
    return F.kl_div(student, teacher.log_softmax(1), reduction="batchmean", log_target=True)


def class_loss(
    logits_labeled: Tensor, labels: Tensor, num_rows: int, class_weights: Tensor | None = None
) -> Tensor:
    """Return the summed cross-entropy of the labelled rows, divided by the number of all rows.

    The consistency weight of 100 in the authors' code assumes this divisor: a mean over the labelled rows
    alone would be N / B times as large.

    Args:
        logits_labeled: [B, C].
        labels: int64 [B], or shares of the classes, see `label_loss`.
        num_rows: N.
        class_weights: see `label_loss`.

    Source: the authors' code in PyTorch (`main.py`, `train`), which divides by the size of the minibatch, and
        in TensorFlow (`model.py`, `classification_costs`), which does the same.
    """
    if class_weights is not None or labels.is_floating_point():
        return label_loss(logits_labeled, labels, class_weights) * len(labels) / num_rows
    return F.cross_entropy(at_least_float32(logits_labeled), labels, reduction="sum") / num_rows


def ramp_up(step: int, ramp_steps: int) -> float:
    """Return exp(-5 (1 - t)^2) with t = min(1, step / ramp_steps), or t = 1 if `ramp_steps` is 0.

    The weight of the consistency loss follows this ramp, since the teacher is useless at first.
    """
    t = min(1.0, step / ramp_steps) if ramp_steps > 0 else 1.0
    return math.exp(-5.0 * (1.0 - t) ** 2)


def teacher_decay(step: int, ramp_steps: int, early: float = 0.99, late: float = 0.999) -> float:
    """Return the decay of the teacher's moving average: `early` during the ramp, `late` afterwards.

    The student improves fast at first; a long memory would hold the teacher back.
    """
    return early if step < ramp_steps else late
