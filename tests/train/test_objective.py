"""Losses by hand: class weights, histograms of tokens, gates, distillation."""

from __future__ import annotations

import numpy as np
import torch

from dovit_deploy.datasets.dataset import IGNORE
from dovit_deploy.train.masked import GateOutput, TrainingOutput
from dovit_deploy.train.objective import gate_loss
from dovit_deploy.train.target import class_weights, distillation_loss, pixel_loss, token_histograms


def random_labels(seed, size=(2, 32, 48), classes=3):
    draw = np.random.default_rng(seed)
    values = draw.choice([*range(classes), IGNORE], size)
    return torch.from_numpy(values.astype(np.uint8))


def test_class_weights_average_to_one_over_pixels_and_skip_absent_classes():
    frequencies = torch.tensor([0.64, 0.36, 0.0], dtype=torch.float64)
    weights = class_weights(frequencies, 0.5)
    assert weights[2] == 0
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(0.8 / 0.6))
    torch.testing.assert_close((weights * frequencies).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_histograms_count_each_class_of_each_token():
    labels = random_labels(0)
    shares = token_histograms(labels, 16, 3)
    assert shares.shape == (2, 6, 3)
    for token in range(6):
        row, column = divmod(token, 3)
        cell = labels[1, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        expected = [(cell == number).float().mean() for number in range(3)]
        torch.testing.assert_close(shares[1, token], torch.stack(expected))


def test_pixel_loss_is_the_weighted_mean_over_known_pixels():
    labels, weights = random_labels(1), torch.tensor([1.0, 2.0, 0.5])
    logits = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    target = labels[:, ::2, ::2].long()
    known = target != IGNORE
    surprise = -logits.log_softmax(1).transpose(0, 1)[:, known].gather(0, target[known][None])[0]
    expected = (surprise * weights[target[known]]).sum() / weights[target[known]].sum()
    torch.testing.assert_close(pixel_loss(logits, labels, weights), expected)


def test_losses_of_nothing_but_void_are_zero_not_nan():
    labels = torch.full((1, 32, 32), IGNORE, dtype=torch.uint8)
    assert pixel_loss(torch.randn(1, 3, 16, 16), labels, torch.ones(3)) == 0
    everything = torch.ones(1, 4, dtype=torch.bool)
    gate = GateOutput(torch.randn(4, 3), everything, everything)
    assert gate_loss(gate, token_histograms(labels, 16, 3), torch.ones(3)) == 0


def test_gate_loss_is_least_where_probabilities_are_the_shares_and_only_running_tokens_count():
    shares = token_histograms(random_labels(2), 16, 3)
    running = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    exact = shares[running] / shares[running].sum(1, keepdim=True)
    best = gate_loss(GateOutput(exact.log(), running, running), shares, torch.ones(3))
    off = gate_loss(GateOutput(exact.log() + 0.3 * torch.randn(exact.shape), running, running), shares, torch.ones(3))
    entropy = -(shares[running] * exact.log()).sum() / shares[running].sum()
    torch.testing.assert_close(best, entropy)
    assert off > best


def test_gate_loss_weighs_classes():
    running = torch.ones(1, 2, dtype=torch.bool)
    shares = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    surprise = -logits.log_softmax(1)
    expected = (3 * surprise[0, 0] + surprise[1, 1]) / 4
    torch.testing.assert_close(
        gate_loss(GateOutput(logits, running, running), shares, torch.tensor([3.0, 1.0])), expected
    )


def test_gate_loss_without_running_tokens_is_zero():
    nobody = torch.zeros(1, 4, dtype=torch.bool)
    assert gate_loss(GateOutput(torch.zeros(0, 0), nobody, nobody), torch.ones(1, 4, 3), torch.ones(3)) == 0


def test_distillation_is_nothing_for_the_teacher_itself_and_by_hand_for_another():
    draw = torch.Generator().manual_seed(4)
    logits, features = torch.randn(2, 3, 2, 2, generator=draw), torch.randn(2, 4, 5, generator=draw)
    teacher = TrainingOutput(logits, features, ())
    assert distillation_loss(teacher, teacher, features=0.5, pixels=1).abs() < 1e-6
    student = TrainingOutput(logits.roll(1, 1), features + 0.2, ())
    wanted, given = logits.softmax(1), student.logits.softmax(1)
    apart = (wanted * (wanted / given).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, features=0.5, pixels=2), 0.5 * 0.04 + 2 * apart)
