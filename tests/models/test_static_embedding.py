"""A table of word vectors out of a transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from ensemble_kd.config import BagConfig, TextCNNConfig, TransformerConfig, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import build
from ensemble_kd.models.init.static_embedding import piece_states, piece_vectors, start_table_
from ensemble_kd.models.transplant import resolve
from ensemble_kd.train.initial import load_initial

PIECES, WIDTH = 30, 16
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
INFO: dict[str, Any] = {
    "kind": "text",
    "input_shape": [10],
    "num_classes": 3,
    "vocabulary_size": PIECES + 1,
    "preprocess": {"special": SPECIAL},
}


def test_states_are_what_the_library_gives_each_piece(tmp_path: Path) -> None:
    torch.manual_seed(5)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model("bert", vocab_size=PIECES, initializer_range=0.3, **sizes)
    library = AutoModel.from_config(config).eval()
    library.save_pretrained(tmp_path)
    settings, initial = resolve(TransformerConfig(source=str(tmp_path)))
    assert initial is not None
    ours = build(TransformerConfig.model_validate(settings), INFO)
    load_initial(ours, initial, None, INFO)
    found = piece_states(ours, INFO)
    assert found.shape == (PIECES, WIDTH)
    for piece in (0, 2, 7, PIECES - 1):
        states = library(torch.tensor([[SPECIAL["cls"], piece, SPECIAL["sep"]]])).last_hidden_state
        torch.testing.assert_close(found[piece], states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_axes_are_the_principal_ones_and_common_pieces_count_little() -> None:
    draw = np.random.default_rng(0)
    states = draw.normal(size=(50, 6)) @ np.diag([5, 4, 3, 2, 1, 0.1]) @ draw.normal(size=(6, 6)) + 7
    counts = draw.integers(0, 100, 50)
    table = piece_vectors(torch.from_numpy(states).float(), counts, 3, 1e-3).numpy()
    assert table.shape == (51, 3) and not table[0].any()
    left, values, _ = np.linalg.svd(states - states.mean(0))
    wanted = left[:, :3] * values[:3] * (1e-3 / (1e-3 + counts / counts.sum()))[:, None]
    np.testing.assert_allclose(np.abs(table[1:]), np.abs(wanted), rtol=1e-3, atol=1e-4)
    # The same in every order of the hidden units: an axis's direction must not hang on the solver.
    turned = piece_vectors(torch.from_numpy(states[:, ::-1].copy()).float(), counts, 3, 1e-3).numpy()
    np.testing.assert_allclose(np.abs(turned), np.abs(table), rtol=1e-3, atol=1e-4)


def test_all_axes_keep_all_distances() -> None:
    states = torch.randn(20, 5)
    table = piece_vectors(states, np.zeros(20, np.int64), 5, 1e-3)[1:]
    torch.testing.assert_close(torch.cdist(table, table), torch.cdist(states, states), rtol=1e-4, atol=1e-4)


def test_a_table_fits_or_is_refused() -> None:
    states, counts = torch.randn(PIECES, 8), np.ones(PIECES, np.int64)
    table = piece_vectors(states, counts, 4, 1e-3)
    for model in (BagConfig(embedding=4), TextCNNConfig(embedding=4)):
        network = start_table_(build(model, INFO), table)
        assert torch.equal(network.state_dict()["body.embedding.weight"], table)
    with pytest.raises(ConfigError, match=r"start: a table of \(31, 4\), but the model's is \(31, 5\)"):
        start_table_(build(BagConfig(embedding=5), INFO), table)
    with pytest.raises(ConfigError, match="embedding: 9, but the transformer .* is 8 wide; lower it to 8"):
        piece_vectors(states, counts, 9, 1e-3)


@pytest.mark.parametrize(
    ("start", "blocks", "says"),
    [
        ("static", {}, "student.model.start.name"),
        ("static_embedding", {"tokenizer": "subword"}, "student.model.start: sends the word pieces of a"),
        (
            {"name": "static_embedding", "weights": "teacher", "source": "x"},
            {},
            "student.model.start.source:",
        ),
        ({"name": "static_embedding", "weights": "teacher"}, {}, "student.model.start.weights: 'teacher'"),
        ({"name": "static_embedding", "frequency": 0}, {}, "student.model.start.frequency"),
    ],
)
def test_what_is_told_of_a_start(start: Any, blocks: dict[str, Any], says: str) -> None:
    text = {"tokenizer": "pretrained", "source": "package:somewhere/model", **blocks}
    bag = {"model": {"name": "bag"}}
    settings = {"name": "t", "data": {"path": "/nowhere", "kind": "text", "text": text}, "teachers": bag}
    with pytest.raises(ConfigError) as caught:
        validate({**settings, "student": {"model": {"name": "bag", "start": start}}})
    assert any(line.startswith(says) for line in caught.value.problems), caught.value.problems
    teacher = {"model": {"name": "bag", "start": "static_embedding"}}
    with pytest.raises(ConfigError, match="teachers.model.start: 'static_embedding' is for students"):
        validate({**settings, "teachers": teacher, "student": bag})


def test_at_its_default_a_start_leaves_no_trace() -> None:
    for start in (None, "random"):
        assert BagConfig.model_validate({"start": start}).model_dump() == {
            "name": "bag",
            "embedding": 64,
            "hidden": [],
            "dropout": 0.0,
        }
    started = BagConfig.model_validate({"start": "static_embedding", "piece_weights": True})
    assert started.model_dump()["start"]["weights"] == "pretrained" and started.model_dump()["piece_weights"]
    assert "start" not in resolve(started)[0]
