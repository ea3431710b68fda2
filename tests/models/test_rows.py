"""Tables that are cut to the rows in use, trained, and made whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from ensemble_kd.config import BagConfig, MLPConfig, TextCNNConfig, TrainingConfig
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.rows import cut_tables_, restore_tables_
from ensemble_kd.train.loop import make_optimizer

INFO: dict[str, Any] = {"kind": "text", "input_shape": [9], "num_classes": 3, "vocabulary_size": 400}
READ = torch.tensor([0, 3, 5, 17, 200, 399])
MODELS: list[Any] = [
    BagConfig(embedding=16, hidden=[8], dropout=0.2),
    BagConfig(embedding=16, piece_weights=True),
    TextCNNConfig(embedding=16, filters=4),
]


def rows(network: Network) -> int:
    return len(network.state_dict()["body.embedding.weight"])


def trained(network: Network, optimizer: str) -> Network:
    """After some steps on texts of the pieces `READ`, of different lengths."""
    step = make_optimizer(network, TrainingConfig(optimizer=optimizer, learning_rate=0.01))
    torch.manual_seed(1)
    tokens = READ[torch.randint(1, len(READ), (12, 9))]
    tokens[torch.arange(9) >= torch.randint(1, 10, (12, 1))] = 0
    labels = torch.randint(3, (12,))
    for _ in range(5):
        step.zero_grad()
        cross_entropy(network(tokens.int()).logits, labels).backward()
        step.step()
    return network.eval()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("model", MODELS, ids=["bag", "weighted", "text_cnn"])
def test_training_a_cut_table_is_training_the_whole_one(model: Any, optimizer: str) -> None:
    torch.manual_seed(0)
    network = build(model, INFO)
    torch.manual_seed(0)
    cut = build(model, INFO)
    cut_tables_(cut, READ)
    assert rows(cut) == len(READ) and cut.num_parameters < network.num_parameters / 5
    assert set(cut.state_dict()) == set(network.state_dict())
    trained(network, optimizer)
    restore_tables_(trained(cut, optimizer))
    for name, wanted in network.state_dict().items():
        # Not to the bit: the ends of a vector round otherwise than its lanes on some processors.
        torch.testing.assert_close(cut.state_dict()[name], wanted, rtol=0, atol=1e-9)
    unseen = torch.tensor([[7, 300, 3, 0]])
    torch.testing.assert_close(cut(unseen).logits, network(unseen).logits, rtol=0, atol=1e-6)


def test_what_is_not_worth_it_stays() -> None:
    network = build(MODELS[0], INFO)
    cut_tables_(network, torch.arange(300))
    assert rows(network) == 400
    restore_tables_(network)
    numbers = build(MLPConfig(), {**INFO, "kind": "numeric"})
    cut_tables_(numbers, READ)
    restore_tables_(numbers)
