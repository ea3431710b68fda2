"""The third weight: a hard loss on the ensemble's answers where labels are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fused import check, student
from torch.nn.functional import cross_entropy
from toy import data, streamed, task

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.logits import KL
from ensemble_kd.objectives.mixture import DistillationLoss, StackedLoss
from ensemble_kd.train.initial import WEIGHTS
from ensemble_kd.train.member import train_member

HIDDEN = {"rows": {"labelled": False, "bootstrap": False, "fraction": 1.0}}


def batch(stacked: int = 0) -> tuple[Outputs, Outputs, Batch]:
    """Four rows, two of which have a label."""
    torch.manual_seed(0)
    shape = (stacked, 4, 3) if stacked else (4, 3)
    z, v = (torch.randn(shape, dtype=torch.float64) for _ in "zv")
    labels, guesses = torch.tensor([2, -1, -1, 0]), torch.tensor([-1, 1, 2, -1])
    return Outputs(z), Outputs(v), Batch(torch.zeros(4, 1), labels, guesses=guesses)


def test_the_three_weights_in_closed_form() -> None:
    z, v, seen = batch()
    values = cross_entropy(z.logits, torch.tensor([2, 1, 2, 0]), reduction="none", label_smoothing=0.1)
    weights = torch.tensor([0.3, 0.6, 0.6, 0.3])
    expected = 0.7 * KL(2.0)(z, v, seen).mean() + (weights * values).mean()
    loss = DistillationLoss(KL(2.0), 0.7, label_smoothing=0.1, pseudo=0.6)
    torch.testing.assert_close(loss(z, v, seen), expected)
    # Nothing but labels, true ones and guessed ones.
    alone = DistillationLoss(None, 0.0, label_smoothing=0.1, pseudo=1.0)
    torch.testing.assert_close(alone(z, None, seen), values.mean())
    seen.guesses = None
    with pytest.raises(ValueError, match="no guesses"):
        alone(z, None, seen)


def test_stacked_losses_are_those_of_each_member() -> None:
    losses = [
        DistillationLoss(KL(2.0), 0.7, pseudo=0.6),
        DistillationLoss(None, 0.0, pseudo=1.0, label_smoothing=0.1),
        DistillationLoss(KL(1.0), 1.0),
        DistillationLoss(None, 0.0),
    ]
    z, v, seen = batch(len(losses))
    expected = [
        loss(Outputs(z.logits[i]), Outputs(v.logits[i]), seen).float() for i, loss in enumerate(losses)
    ]
    torch.testing.assert_close(StackedLoss(losses)(z, v, seen).float(), torch.stack(expected))


def test_pseudo_one_and_alpha_zero_are_the_baseline_to_the_bit(tmp_path: Path) -> None:
    held = data(unlabelled=60)
    baseline, own = task("pseudo"), task("distilled", alpha=0.0, pseudo=1.0)
    assert own.reads_teacher and own.fingerprint != baseline.fingerprint
    files = []
    for one in (baseline, own):
        assert train_member(one, held, tmp_path)
        files.append((one.folder(tmp_path) / WEIGHTS).read_bytes())
    assert files[0] == files[1]


def test_the_default_leaves_fingerprints_alone_and_the_weight_counts() -> None:
    one = task("distilled")
    assert "pseudo" not in one.settings and "pseudo" in replace(one, pseudo=0.5).settings
    assert replace(one, pseudo=0.5).fingerprint != one.fingerprint


MIXED: list[dict[str, Any]] = [
    {"alpha": 1.0, "temperature": 2.0},
    {"alpha": 0.5, "temperature": 4.0, "pseudo": 0.5},
    {"alpha": 0.0, "pseudo_labels": True, **HIDDEN},
    {"alpha": 0.3, "temperature": 1.0, "pseudo": 1.0, "mean": "geometric"},
    {"alpha": 0.8, "temperature": 2.0, "pseudo": 0.5, "calibration": [0.5, 3.0]},
    {"alpha": 0.0},
]


def test_students_of_every_weight_train_in_one_stack(tmp_path: Path) -> None:
    """As alone; among them pseudo-labels alone, and one on labelled rows alone, which has other batches."""
    check([student(**changes) for changes in MIXED], data(unlabelled=60), tmp_path)


def test_guesses_come_with_a_stream_too(tmp_path: Path) -> None:
    check([student(**changes) for changes in MIXED[:3]], streamed(data(unlabelled=60)), tmp_path)
