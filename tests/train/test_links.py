"""What a link of a chain learns: the predictions of the link before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy

from ensemble_kd.stages.chain import taught_by
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.member import train_member
from ensemble_kd.train.task import finished


def test_what_a_link_learns_is_what_the_one_before_predicts_on_the_transfer_set(tmp_path: Path) -> None:
    """Against the same task whose store holds those predictions."""
    data = replace(toy.data(), run=tmp_path)
    members = tmp_path / "student" / "members"
    first = toy.task("distilled", seed=1)
    assert train_member(first, data, members)
    second = taught_by(toy.task("distilled", seed=2, alpha=1.0), first)
    assert train_member(second, data, members)

    assert (receipt := finished(first, members)) is not None
    network = load_network(receipt.config, data.info, first.folder(members))
    assert data.transfer is not None
    with torch.inference_mode():
        logits = network(torch.from_numpy(data.transfer.inputs)).logits
    store = toy.Members(data.transfer.labels)
    store.logits = logits[:, None].clone()
    stored = toy.task("distilled", seed=2, alpha=1.0)
    assert train_member(stored, replace(data, teacher=store), tmp_path / "other")
    ours, theirs = (
        load_logits(task.folder(folder), "test")
        for task, folder in ((second, members), (stored, tmp_path / "other"))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, load_logits(first.folder(members), "test"), atol=0.1)


def test_a_chain_of_values(tmp_path: Path) -> None:
    info = {**toy.INFO, "num_classes": 1, "class_names": [], "target": {"mean": 5.0, "std": 2.0}}
    whole = toy.data()
    assert whole.transfer is not None
    parts = {
        name: replace(part, labels=part.inputs[:, 0].astype(np.float32) + 5)
        for name, part in (
            ("transfer", whole.transfer),
            ("validation", whole.validation),
            ("test", whole.test),
        )
    }
    data = TrainingData(info, parts["validation"], parts["test"], parts["transfer"], run=tmp_path)
    members = tmp_path / "student" / "members"
    changes: dict[str, Any] = {"mean": "value", "objective": {"name": "mse"}}
    first = toy.task("hard", mean="value", training=toy.settings(epochs=30).model_dump(mode="json"))
    assert train_member(first, data, members)
    second = taught_by(
        toy.task("distilled", alpha=1.0, temperature=1.0, training=first.training, **changes), first
    )
    assert train_member(second, data, members)
    ours, theirs = (load_logits(task.folder(members), "test") for task in (second, first))
    assert (ours - theirs).square().mean() < 0.2 * theirs.var()
