"""Two processes that train one member together end where one process does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from toy import INFO, batches, network, settings

from ensemble_kd.models.quantise import Quantiser, quantise_
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.train.learner import Learner
from ensemble_kd.train.loop import NotFiniteError, Replicas, train, train_epochs
from ensemble_kd.train.member_loss import prepare_loss
from ensemble_kd.train.online import Online

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1, "gradient_clip": 0.5},
    "accumulated": {"optimizer": "sgd", "learning_rate": 0.1, "gradient_accumulation": 2, "max_norm": 1.0},
    "stopped": {"epochs": 9, "early_stopping": 1},
    "quantised": {"optimizer": "sgd", "learning_rate": 0.1},
    "beside": {"optimizer": "sgd", "learning_rate": 0.1},
    "related": {"optimizer": "sgd", "learning_rate": 0.1},
}
BESIDE: dict[str, list[dict[str, Any]]] = {
    "beside": [{"name": "hidden_mse", "weight": {"start": 1.0, "end": 0.0, "shape": "linear"}}],
    "related": [  # each row with those of the other replica
        {"name": "rkd_distance", "weight": 5.0},
        {"name": "rkd_angle", "weight": 5.0},
        {"name": "darkrank_hard", "list_length": 10},
        {"name": "crd", "size": 4},
    ],
}


def run(case: str, replicas: Replicas | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = network(dropout=0.0)
    rank, size = (replicas.rank, replicas.size) if replicas else (0, 1)
    if case == "quantised":
        quantise_(model, Quantiser(ema_decay=0.9, group=replicas.group if replicas else None))
    loss = DistillationLoss()
    beside: dict[str, Any] = {}
    if case in BESIDE:  # a wider teacher at work, whose states a learned projection is held against
        teacher = network(seed=1, hidden=[24])
        loss = DistillationLoss(terms=build_terms(BESIDE[case], 1.0, "student.terms"))
        online = Online([teacher], loss.wants, "float32", torch.device("cpu"))
        torch.manual_seed(2)
        beside = {"online": online, "learned": prepare_loss(loss, model, [teacher], INFO, online.device)}
    losses = iter([3.0, 1.0, 2.0])
    evaluate = (lambda _: {"validation_loss": next(losses)}) if case == "stopped" and rank == 0 else None
    history = train_epochs(
        Learner(model, loss, **beside),
        batches(rank=rank, replicas=size),
        settings(**CASES[case]),
        seed=0,
        evaluate=evaluate,
        replicas=replicas,
    )
    found = [entry["train_loss"] for entry in history]
    learned = beside["learned"].state_dict() if beside else {}
    return {**model.state_dict(), **learned}, found


class Poison:
    """A loss that is NaN on the second replica only, in the last step of the first epoch."""

    def __init__(self, rank: int) -> None:
        self.rank, self.calls = rank, 0

    def __call__(self, *args: Any) -> torch.Tensor:
        self.calls += 1
        loss = DistillationLoss()(*args)
        return loss * torch.nan if self.rank == 1 and self.calls == 6 else loss


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    replicas = Replicas(rank, 2, dist.group.WORLD)
    for case in CASES:
        weights, losses = run(case, replicas)
        save_file({**weights, "losses": torch.tensor(losses)}, f"{folder}/{case}-{rank}.safetensors")
    try:
        model = network(dropout=0.0)
        train(
            model,
            batches(rank=rank, replicas=2),
            Poison(rank),  # type: ignore[arg-type]
            settings(),
            seed=0,
            replicas=replicas,
        )
    except NotFiniteError as error:
        Path(folder, f"poisoned-{rank}").write_text(str(error))
    dist.destroy_process_group()
    # Everything is on disk. torch's own threads abort one process in ten that ends by itself here
    # ("terminate called without an active exception", torch 2.13, after the last line of Python).
    os._exit(0)


@pytest.mark.slow
def test_two_replicas_equal_one_process(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for case in CASES:
        expected, losses = run(case)
        close = 1e-2 if case == "quantised" else 1e-5  # a sum's last bit may move a value by a whole step
        for rank in (0, 1):
            found = load_file(tmp_path / f"{case}-{rank}.safetensors")
            torch.testing.assert_close(found.pop("losses"), torch.tensor(losses), rtol=1e-4, atol=close)
            if rank == 1 and case == "stopped":
                continue  # the first replica keeps the best epoch; the other has done its part
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=close)
    # NaN in one of them stops both, in the epoch in which it appeared.
    for rank in (0, 1):
        assert (tmp_path / f"poisoned-{rank}").read_text() == "loss became nan in epoch 1"
