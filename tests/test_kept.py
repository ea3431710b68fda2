"""`soft_targets.keep`: what does not fit is told before training; what the store covers is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import Tensor

from ensemble_kd.config import Config, OnlineConfig, validate
from ensemble_kd.data.store import Kept, StoreLayout
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import OBJECTIVES, Batch
from ensemble_kd.stages import soft_targets
from ensemble_kd.stages.kept import kept_of, kept_problems
from ensemble_kd.stages.start import Basis
from ensemble_kd.stages.teachers_beside import online_of

BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 30,
    "max_position_embeddings": 16,
}
INFO: dict[str, Any] = {
    "kind": "text",
    "input_shape": [12],
    "num_classes": 3,
    "vocabulary_size": 31,
    "preprocess": {"special": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}},
    "counts": {"train": 500, "validation": 20, "test": 20, "transfer": 1000, "labelled": 500},
}


def transformer(**changes: Any) -> dict[str, Any]:
    return {"name": "transformer", "architecture": {**BERT, **changes}}


def settings(tmp_path: Path, keep: dict[str, Any], **teachers: Any) -> dict[str, Any]:
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    return {
        "name": "kept",
        "data": {
            "path": str(tmp_path / "train.csv"),
            "kind": "text",
            "columns": {"input": "text", "label": "label"},
            "text": {"tokenizer": "pretrained", "source": str(tmp_path)},
        },
        "teachers": {"num_members": 2, "model": transformer(), **teachers},
        "soft_targets": keep,
        "student": {"model": transformer(num_hidden_layers=2)},
    }


def configuration(tmp_path: Path, keep: dict[str, Any], **teachers: Any) -> Config:
    return validate(settings(tmp_path, keep, **teachers))


BILSTM = {"name": "bilstm"}


@pytest.mark.parametrize(
    ("keep", "teachers", "says"),
    [
        (
            {"keep": ["hidden"]},
            {"model": BILSTM},
            "soft_targets.keep: ['hidden'] of text transformers alone, and a teacher is 'bilstm'; set keep",
        ),
        (
            {"keep": ["hidden"]},
            {"overrides": [{}, {"model": BILSTM}]},
            "soft_targets.keep: ['hidden'] of text transformers alone, and a teacher is 'bilstm'; set keep",
        ),
        (
            {"keep": ["hidden"]},
            {"source": "callable", "given": ["module:function"]},
            "soft_targets.keep: ['hidden'], but teachers.source=callable gives numbers and no states; train",
        ),
        (
            {"keep": ["hidden"], "views": 2},
            {},
            "soft_targets.keep: ['hidden'], but soft_targets.views is 2; keep takes the rows as they are, so",
        ),
        (
            {"keep": ["hidden", "attention"], "keep_positions": "first"},
            {},
            "soft_targets.keep_positions: 'first' is for hidden states, and soft_targets.keep has attention",
        ),
        (
            {"keep_layers": [1]},
            {},
            "soft_targets.keep_layers: set, but soft_targets.keep is empty, which leaves it unused; set",
        ),
        ({"keep_positions": "first"}, {}, "soft_targets.keep_positions: set, but soft_targets.keep is empty"),
        (
            {"keep": ["hidden"], "keep_layers": [1, 1]},
            {},
            "soft_targets.keep_layers: different numbers of blocks, at least one, got [1, 1]",
        ),
        (
            {"keep": ["hidden"], "keep_layers": []},
            {},
            "soft_targets.keep_layers: different numbers of blocks",
        ),
        (
            {"keep": ["hidden", "attention"], "keep_layers": [0]},
            {},
            "soft_targets.keep_layers: [0] is the embeddings' output, which has no attention; add a block",
        ),
        ({"keep": ["hidden", "hidden"]}, {}, "soft_targets.keep: ['hidden', 'hidden'] names something twice"),
        (
            {"keep": ["logits"]},
            {},
            "soft_targets.keep.0: input should be 'hidden', 'attention' or 'features', got 'logits'",
        ),
    ],
)
def test_problems_of_the_configuration(
    tmp_path: Path, keep: dict[str, Any], teachers: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        configuration(tmp_path, keep, **teachers)
    assert any(line.startswith(says) for line in error.value.problems), error.value.problems


def test_images_have_no_states_to_keep(tmp_path: Path) -> None:
    raw = {"name": "digits", "data": {"source": "digits"}, "soft_targets": {"keep": ["hidden"]}}
    with pytest.raises(
        ConfigError, match=r"soft_targets\.keep: .* alone, and data\.kind is 'image'; set keep"
    ):
        validate(raw)


def test_features_are_kept_of_images_alone(tmp_path: Path) -> None:
    digits: dict[str, Any] = {"name": "digits", "data": {"source": "digits"}}
    model = {"name": "mlp", "hidden": [12, 5]}
    info = {"kind": "image", "input_shape": [8, 8, 1], "num_classes": 10, "mean": [0.5], "std": [0.5]}

    def of(keep: dict[str, Any], *overrides: dict[str, Any]) -> Config:
        teachers = {"num_members": 2, "model": model, "overrides": list(overrides)}
        return validate({**digits, "teachers": teachers, "soft_targets": {"keep": ["features"], **keep}})

    kept = kept_of(of({"keep_dtype": "float32"}), info)
    assert kept is not None and kept.columns(1, 2) == {"features": ((1, 2, 5), np.float32)}
    other = of({}, {"model": {"name": "mlp", "hidden": [7]}}, {})
    with pytest.raises(ConfigError, match="features of one width, and teacher 0 has 7, teacher 1 has 5"):
        kept_of(other, info)
    with pytest.raises(ConfigError, match="keep_layers, keep_positions: for hidden states and attention"):
        of({"keep_layers": [1]})
    with pytest.raises(ConfigError, match=r"\['features', 'hidden'\] of text transformers alone"):
        of({"keep": ["features", "hidden"]})


def test_problems_of_the_teachers(tmp_path: Path) -> None:
    other = {"overrides": [{}, {"model": transformer(hidden_size=16)}]}
    (problem,) = kept_problems(configuration(tmp_path, {"keep": ["hidden"]}, **other), INFO)
    assert problem == (
        "soft_targets.keep: teachers that are built alike, and teacher 0 has 4 blocks of width 32, teacher 1 "
        "has 4 blocks of width 16; give all the same architecture, or set keep: [], so that the teacher runs "
        "beside the student"
    )
    other = {"overrides": [{}, {"model": transformer(num_attention_heads=4)}]}
    assert kept_problems(configuration(tmp_path, {"keep": ["hidden"]}, **other), INFO) == []
    (problem,) = kept_problems(configuration(tmp_path, {"keep": ["attention"]}, **other), INFO)
    assert "teacher 1 has 4 blocks of width 32 and 4 heads" in problem
    (problem,) = kept_problems(configuration(tmp_path, {"keep": ["hidden"], "keep_layers": [2, 9]}), INFO)
    assert problem == (
        "soft_targets.keep_layers: [9], but the teachers have 4 blocks; choose from 0, the embeddings' "
        "output, to 4"
    )


def test_too_much_is_told_with_its_size_and_the_remedies(tmp_path: Path) -> None:
    # 1000 rows x 2 teachers x 5 states x 12 tokens x 32 numbers of 2 bytes: 7.68 MB
    keep: dict[str, Any] = {"keep": ["hidden"], "keep_at_most": 0.0076}
    (problem,) = kept_problems(configuration(tmp_path, keep), INFO)
    assert problem == (
        "soft_targets.keep_at_most: 0.0076 GB, but hidden of 2 teachers for 1000 rows of 12 tokens take "
        "0.00768 GB; keep fewer layers (soft_targets.keep_layers), set soft_targets.keep_positions: first, "
        "raise the limit, or set soft_targets.keep: [], so that the teacher runs beside the student"
    )
    less: list[dict[str, Any]] = [
        {"keep_at_most": 0.0077},
        {"keep_layers": [2, 4]},
        {"keep_positions": "first"},
        {"keep": []},
    ]
    for change in less:
        assert kept_problems(configuration(tmp_path, {**keep, **change}), INFO) == []
    both = configuration(tmp_path, {**keep, "keep": ["hidden", "attention"]})
    assert "hidden and attention of 2 teachers" in kept_problems(both, INFO)[0]
    assert "keep_positions" not in kept_problems(both, INFO)[0]  # attention has no first position


def test_what_is_kept(tmp_path: Path) -> None:
    assert kept_of(configuration(tmp_path, {}), INFO) is None
    every = kept_of(configuration(tmp_path, {"keep": ["attention", "hidden"]}), INFO)
    assert every == Kept((0, 1, 2, 3, 4), (1, 2, 3, 4), 4, 32, 2, 12)
    some = {"keep": ["hidden", "attention"], "keep_layers": [4, 0, 2], "keep_dtype": "float32"}
    assert kept_of(configuration(tmp_path, some), INFO) == Kept(
        (0, 2, 4), (2, 4), 4, 32, 2, 12, dtype="float32"
    )
    first = {"keep": ["hidden"], "keep_positions": "first"}
    assert kept_of(configuration(tmp_path, first), INFO) == Kept((0, 1, 2, 3, 4), (), 4, 32, 0, 12, True)
    layout = soft_targets.layout_of(configuration(tmp_path, {**first, "top_k": 2}), INFO, 2)
    assert layout == StoreLayout(1, 2, 3, 2, Kept((0, 1, 2, 3, 4), (), 4, 32, 0, 12, True))


def test_the_stores_fingerprint_has_what_is_kept(tmp_path: Path) -> None:
    def fingerprint(keep: dict[str, Any]) -> str:
        plan = soft_targets.plan(configuration(tmp_path, keep), tmp_path, "data", {"teacher-000": "a"})
        assert bool(keep.get("keep")) == ("keep" in plan.config)
        return plan.fingerprint

    plain = fingerprint({})
    assert fingerprint({"keep_at_most": 9.0, "keep_dtype": "float32"}) == plain
    both = fingerprint({"keep": ["hidden", "attention"]})
    assert both == fingerprint({"keep": ["attention", "hidden"], "keep_at_most": 9.0})
    kept: list[dict[str, Any]] = [
        {},
        {"keep_layers": [2]},
        {"keep_positions": "first"},
        {"keep_dtype": "float32"},
    ]
    assert len({plain, both, *(fingerprint({"keep": ["hidden"], **more}) for more in kept)}) == 6


# --------------------------------------------------------------------------------------- is it enough?

ALL = Kept((0, 1, 2, 3, 4), (1, 2, 3, 4), 4, 32, 2, 12)
SOME = replace(ALL, hidden=(2, 4), attention=())
FIRST = replace(ALL, attention=(), first_only=True)


@dataclass(frozen=True)
class Whole:
    """An objective that does not say which states it reads."""

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return student.logits.sum(-1)


def told(kept: Kept | None, terms: list[dict[str, Any]], top_k: int | None = None, **online: Any) -> bool:
    """Whether a task on the transfer set reads the store."""
    store = StoreLayout(1, 2, 3, top_k, kept)
    teachers = [{"name": f"teacher-00{i}", "fingerprint": str(i), "validation_loss": i} for i in range(2)]
    model = transformer(num_hidden_layers=2, hidden_size=16, vocab_size=31)
    basis = Basis(teachers, model, None, {}, store, INFO)
    found = online_of(OnlineConfig(**online), basis, None, "student", terms)
    assert found.get("stored") in (None, True)
    return "stored" in found


@pytest.mark.parametrize(
    ("kept", "terms", "enough"),
    [
        (ALL, [{"name": "hidden_mse"}, {"name": "attention_mse"}, {"name": "patient"}], True),
        (ALL, [{"name": "kl", "weight": 0.5}], True),
        (ALL, [], False),
        (None, [{"name": "patient"}], False),
        (SOME, [{"name": "hidden_mse"}], True),
        (SOME, [{"name": "hidden_mse", "layers": "last"}], False),
        (SOME, [{"name": "embedding_mse"}], False),
        (SOME, [{"name": "hidden_mse"}, {"name": "attention_mse"}], False),
        (FIRST, [{"name": "patient"}], True),
        (FIRST, [{"name": "patient", "states": "mean"}], False),
        (FIRST, [{"name": "patient"}, {"name": "hidden_mse"}], False),
        (replace(FIRST, hidden=(4,)), [{"name": "patient"}], False),
        (replace(FIRST, hidden=(2,)), [{"name": "patient"}], True),
        (ALL, [{"name": "whole"}], True),
        (SOME, [{"name": "whole"}], False),
        (FIRST, [{"name": "whole"}], False),
    ],
)
def test_the_store_is_read_where_it_holds_all_that_is_read(
    monkeypatch: pytest.MonkeyPatch, kept: Kept | None, terms: list[dict[str, Any]], enough: bool
) -> None:
    monkeypatch.setitem(OBJECTIVES, "whole", Whole)
    assert told(kept, terms) == enough


def test_the_store_is_not_read_for_other_teachers_or_their_logits() -> None:
    terms = [{"name": "patient"}]
    assert told(ALL, terms, teachers="all") and told(ALL, terms, top_k=2)
    assert not told(ALL, terms, logits=True)
    assert not told(ALL, [{"name": "kl"}], top_k=2)
