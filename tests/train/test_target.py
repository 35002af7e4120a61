"""What a step is held to: a teacher's answers are as good a target as labels, and nothing else is asked of either."""

from __future__ import annotations

import pytest
import torch

from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.train.config import Distillation
from dovit_deploy.train.masked import TrainingOutput
from dovit_deploy.train.target import Labels, TeacherAnswers, answered_shares
from tests.tiny import tiny_spec

RULE = Distillation(teacher="checkpoint", features=0.5, pixels=2.0)
VOID = torch.full((2, 32, 48), IGNORE, dtype=torch.uint8)


def answer(seed: int, *, classes: int = 5) -> TrainingOutput:
    draw = torch.Generator().manual_seed(seed)
    return TrainingOutput(torch.randn(2, classes, 4, 6, generator=draw), torch.randn(2, 6, 8, generator=draw))


def test_a_teacher_is_all_that_is_asked_where_there_are_no_labels() -> None:
    target, student, teacher = TeacherAnswers.of(5), answer(0), answer(1)
    wanted, found = teacher.logits.log_softmax(1), student.logits.log_softmax(1)
    divergence = (wanted.exp() * (wanted - found)).sum(1).mean()
    expected = 2 * divergence + 0.5 * (student.features - teacher.features).square().mean()
    torch.testing.assert_close(target.loss(student, VOID, teacher, RULE), expected)
    assert target.loss(teacher, VOID, teacher, RULE).abs() < 1e-6
    # It takes the place of labels, and is not counted beside them a second time.
    assert not target.with_labels and Labels.of([0.2] * 5, _config()).with_labels
    with pytest.raises(ValueError, match="no teacher"):
        target.loss(student, VOID, None, RULE)


def test_gates_see_what_the_teacher_answers_in_their_patch() -> None:
    teacher, spec = answer(2), tiny_spec(classes=5)
    shares = TeacherAnswers.of(5).shares(VOID, teacher, spec)
    assert shares.shape == (2, 6, 5)
    torch.testing.assert_close(shares.sum(2), torch.ones(2, 6))
    for token in range(6):
        row, column = divmod(token, 3)
        cell = teacher.logits[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].softmax(0)
        torch.testing.assert_close(shares[1, token], cell.mean((1, 2)))


def test_answers_of_queries_are_sums_that_are_shared_out() -> None:
    sums = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    torch.testing.assert_close(answered_shares(sums, (1, 1), queries=True), torch.tensor([[[0.75, 0.25]]]))


def _config():
    from tests.train.test_fitted import config_of

    return config_of()
