"""What networks start from: sources, chosen blocks, other types, fewer word pieces."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from ensemble_kd.config import ModelConfig, TransformerConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.transformer import Transformer
from ensemble_kd.models.transplant import pick_layers, resolve, transplant_, used_pieces
from ensemble_kd.train.initial import load_initial
from ensemble_kd.train.task import MemberTask

CLASSES, PIECES, LENGTH = 3, 30, 10
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
INFO: dict[str, Any] = {
    "kind": "text",
    "input_shape": [LENGTH],
    "num_classes": CLASSES,
    "vocabulary_size": PIECES + 1,
    "preprocess": {"special": SPECIAL},
}
BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": PIECES,
    "max_position_embeddings": 12,
}
SINGLE = torch.tensor([[3, 9, 10, 11, 4, 0, 0, 0, 0, 0], [3, 12, 13, 14, 15, 16, 17, 18, 19, 4]])
PAIRS = torch.tensor([[3, 9, 10, 4, 11, 12, 4, 0, 0, 0], [3, 12, 4, 14, 15, 16, 17, 18, 19, 4]])
"""(B, L) tokens, shifted by one."""


def save(folder: Path, kind: str = "bert", masked_lm: bool = False, **changes: Any) -> str:
    """A small pretrained model with weights that nobody would mistake for fresh ones."""
    torch.manual_seed(5)
    fields = BERT if kind != "distilbert" else {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24}
    config = AutoConfig.for_model(kind, **{**fields, "vocab_size": PIECES, "num_labels": CLASSES, **changes})
    model = (AutoModelForMaskedLM if masked_lm else AutoModelForSequenceClassification).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


def started(
    source: str,
    masked_lm: bool = False,
    info: dict[str, Any] = INFO,
    pieces: list[int] | None = None,
    **fields: Any,
) -> tuple[Network, dict[str, Any]]:
    """The network that a configuration asks for, with its initial weights, in evaluation mode."""
    settings, initial = resolve(TransformerConfig(source=source, **fields), pieces=pieces)
    assert initial is not None
    torch.manual_seed(1)
    made = build(TypeAdapter(ModelConfig).validate_python(settings), info, masked_lm=masked_lm)
    load_initial(made, initial, None, info)
    return made.eval(), initial


def library(source: str, masked_lm: bool = False) -> Any:
    auto = AutoModelForMaskedLM if masked_lm else AutoModelForSequenceClassification
    return auto.from_pretrained(source).eval()


def encoder(made: Network) -> dict[str, Tensor]:
    body = made.body
    assert isinstance(body, Transformer)
    return dict(body.encoder.state_dict())


def inputs_of(tokens: Tensor) -> dict[str, Tensor]:
    """As transformers takes single texts."""
    return {"input_ids": (tokens - 1).clamp(min=0), "attention_mask": (tokens != 0).long()}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def bert_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("bert-lm"), masked_lm=True)


# ---------------------------------------------------------------------------------------- official sizes


def encoder_size(architecture: dict[str, Any]) -> int:
    info = {**INFO, "vocabulary_size": 30523, "input_shape": [512]}
    with torch.device("meta"):
        made = build(TransformerConfig(architecture=architecture), info)
    assert isinstance(made.body, Transformer)
    return sum(parameter.numel() for parameter in made.body.encoder.parameters())


def test_distilbert_has_the_published_size() -> None:
    assert encoder_size({"model_type": "distilbert"}) == 66_362_880


def test_distilbert_made_of_a_bert_has_the_published_size(tmp_path: Path) -> None:
    """The official shape from a BERT's configuration, its 12 blocks cut to 6."""
    AutoConfig.for_model("bert").save_pretrained(tmp_path)  # its defaults are BERT-base
    model = TransformerConfig(
        source=str(tmp_path), architecture={"model_type": "distilbert"}, layers="distilbert"
    )
    settings, initial = resolve(model)
    assert initial is not None and initial["layers"] == [0, 2, 4, 7, 9, 11]
    assert encoder_size(settings["architecture"]) == 66_362_880


@pytest.mark.parametrize(
    ("layers", "hidden", "intermediate", "expected"),
    [(4, 312, 1200, 14_350_248), (6, 768, 3072, 66_955_008)],
)
def test_tinybert_has_the_published_size(layers: int, hidden: int, intermediate: int, expected: int) -> None:
    architecture = {
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": 12,
    }
    assert encoder_size(architecture) == expected


# ------------------------------------------------------------------------------------------------ layers


def test_choices_of_layers() -> None:
    assert pick_layers(None, None, 4) == [0, 1, 2, 3]
    assert pick_layers(None, 2, 4) == [0, 1]
    assert pick_layers([3, 1], None, 4) == [3, 1]
    assert pick_layers("first:3", 3, 4) == [0, 1, 2]
    assert pick_layers("last:2", None, 4) == [2, 3]
    assert pick_layers("every_second", None, 12) == [0, 2, 4, 6, 8, 10]
    assert pick_layers("every_second", None, 5) == [0, 2, 4]
    assert pick_layers("distilbert", None, 12) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize(
    ("layers", "wanted", "says"),
    [
        ("first:5", None, ["4 blocks", "0 to 3"]),
        ("last:5", None, ["4 blocks"]),
        ([0, 4], None, ["[0, 4]", "0 to 3"]),
        ([], None, ["[]"]),
        ("distilbert", None, ["4 blocks", "0 to 3"]),
        ([0, 2], 3, ["2 blocks are chosen", "num_hidden_layers is 3"]),
    ],
)
def test_choices_that_do_not_fit(layers: Any, wanted: int | None, says: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        pick_layers(layers, wanted, 4)
    assert all(part in str(raised.value) for part in ["layers: ", *says])


# ------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "roberta", "albert", "mobilebert"])
@torch.no_grad()
def test_a_full_copy_is_the_source(tmp_path: Path, kind: str) -> None:
    extra: dict[str, Any] = {"max_position_embeddings": 20, "pad_token_id": 0}
    if kind in ("electra", "albert", "mobilebert"):
        extra |= {"embedding_size": 8}
    if kind == "mobilebert":
        extra |= {"intra_bottleneck_size": 16}
    source = save(tmp_path, kind, **extra)
    made, _ = started(source)
    assert torch.equal(made(SINGLE).logits, library(source)(**inputs_of(SINGLE)).logits)


@torch.no_grad()
def test_a_full_copy_of_a_masked_language_model_is_the_source(bert_lm: str) -> None:
    made, _ = started(bert_lm, masked_lm=True)
    masked = torch.zeros_like(SINGLE, dtype=torch.bool)
    masked[0, 2] = masked[1, 4] = True
    expected = library(bert_lm, masked_lm=True)(**inputs_of(SINGLE)).logits[masked]
    torch.testing.assert_close(made(SINGLE, masked=masked).logits, expected)


def test_chosen_blocks_and_everything_else_by_name(bert: str) -> None:
    made, initial = started(bert, layers=[3, 1])
    found, given = encoder(made), library(bert).bert.state_dict()
    assert initial["layers"] == [3, 1]
    seen = set()
    for name, tensor in found.items():
        old = (
            name.replace("layer.1.", "layer.x.")
            .replace("layer.0.", "layer.3.")
            .replace("layer.x.", "layer.1.")
        )
        assert torch.equal(tensor, given[old]), name
        seen.add(old)
    assert {name for name in given if ".layer.2." in name or ".layer.0." in name} == set(given) - seen
    assert len(made.body.encoder.encoder.layer) == 2  # type: ignore[union-attr,arg-type]


@torch.no_grad()
def test_fewer_blocks_are_the_first_ones(bert: str) -> None:
    made, initial = started(bert, architecture={"num_hidden_layers": 2})
    assert initial["layers"] == [0, 1]
    model = library(bert)
    model.bert.encoder.layer = model.bert.encoder.layer[:2]
    torch.testing.assert_close(made(SINGLE).logits, model(**inputs_of(SINGLE)).logits)


@torch.no_grad()
def test_a_teachers_blocks(bert: str) -> None:
    """`weights: teacher`: the architecture is the teacher's, the weights are found in its folder."""
    teacher, _ = resolve(TransformerConfig(source=bert, dropout=0.3))
    place = {"stage": "teachers", "member": "0123"}
    settings, initial = resolve(
        TransformerConfig(weights="teacher", layers="last:1"), {"model": teacher, "initial": place}
    )
    assert initial == {**place, "layers": [3]}
    assert settings["architecture"] == {**teacher["architecture"], "num_hidden_layers": 1}
    whole, small = (build(TypeAdapter(ModelConfig).validate_python(s), INFO) for s in (teacher, settings))
    assert isinstance(whole.body, Transformer) and isinstance(small.body, Transformer)
    assert transplant_(small.body, whole.body, initial) == []
    assert torch.equal(
        encoder(small)["encoder.layer.0.output.dense.weight"],
        encoder(whole)["encoder.layer.3.output.dense.weight"],
    )
    assert torch.equal(small.head.weight, whole.head.weight)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------- from BERT to DistilBERT


@torch.no_grad()
def test_a_bert_as_a_distilbert(bert: str) -> None:
    made, _ = started(bert, architecture={"model_type": "distilbert"})
    model = library(bert)
    expected = model(**inputs_of(SINGLE), output_hidden_states=True).hidden_states
    found = made(SINGLE, hidden=True)
    assert found.mask is not None
    for state, theirs in zip(found.hidden.values(), expected, strict=True):
        torch.testing.assert_close(state[found.mask], theirs[found.mask])
    # The pooler is taken over, behind a relu in place of the tanh.
    pooled = torch.relu(model.bert.pooler.dense(expected[-1][:, 0]))
    torch.testing.assert_close(found.logits, model.classifier(pooled))


@torch.no_grad()
def test_chosen_blocks_of_a_bert_as_a_distilbert(bert: str) -> None:
    made, _ = started(bert, architecture={"model_type": "distilbert"}, layers=[0, 2])
    model = library(bert)
    model.bert.encoder.layer = nn.ModuleList([model.bert.encoder.layer[0], model.bert.encoder.layer[2]])
    found = made(SINGLE, hidden=True)
    expected = model.bert(**inputs_of(SINGLE)).last_hidden_state
    torch.testing.assert_close(found.hidden["layer_2"][found.mask], expected[found.mask])


MASKED = torch.zeros_like(SINGLE, dtype=torch.bool)
MASKED[0, 1] = MASKED[1, 3] = MASKED[1, 8] = True


@torch.no_grad()
def test_a_bert_that_guesses_words_as_a_distilbert(bert_lm: str) -> None:
    """Embeddings are those of the output layer too, so what is folded into them moves all words alike."""
    made, _ = started(bert_lm, masked_lm=True, architecture={"model_type": "distilbert"})
    model = library(bert_lm, masked_lm=True)
    expected = model(**inputs_of(SINGLE), output_hidden_states=True)
    found = made(SINGLE, masked=MASKED, hidden=True)
    for state, theirs in zip(found.hidden.values(), expected.hidden_states, strict=True):
        torch.testing.assert_close(state[found.mask], theirs[found.mask])
    torch.testing.assert_close(found.logits.softmax(1), expected.logits[MASKED].softmax(1))


def test_tables_stay_tied(bert_lm: str) -> None:
    for fields in ({}, {"architecture": {"model_type": "distilbert"}}, {"fold_token_types": True}):
        made, _ = started(bert_lm, masked_lm=True, **fields)
        body = made.body
        assert isinstance(body, Transformer)
        assert body.model.get_output_embeddings().weight is body.model.get_input_embeddings().weight


# ----------------------------------------------------------------------------------- folded token types


@pytest.mark.parametrize("masked_lm", [False, True])
@torch.no_grad()
def test_folded_token_types_keep_the_first_pass(bert: str, bert_lm: str, masked_lm: bool) -> None:
    source = bert_lm if masked_lm else bert
    made, initial = started(source, masked_lm, fold_token_types=True)
    assert initial["fold_token_types"]
    found, given = encoder(made), library(source, masked_lm).bert.state_dict()
    types = "embeddings.token_type_embeddings.weight"
    assert not found[types].any() and given[types].any()
    words = "embeddings.word_embeddings.weight"
    torch.testing.assert_close(found[words], given[words] + given[types][0])
    usual, _ = started(source, masked_lm)
    ours, theirs = made(SINGLE, hidden=True), usual(SINGLE, hidden=True)
    for name, state in ours.hidden.items():
        torch.testing.assert_close(state, theirs.hidden[name], rtol=0, atol=1e-6)
    if not masked_lm:
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-6)
        # In pairs the second text's type is gone.
        assert (made(PAIRS).logits - usual(PAIRS).logits).abs().max() > 1e-3


def test_token_types_that_are_no_part_of_the_word_embeddings_are_not_folded(tmp_path: Path) -> None:
    """MobileBERT adds them after a layer of its own."""
    source = save(tmp_path, "mobilebert", embedding_size=8, intra_bottleneck_size=16)
    assert "fold_token_types: a 'mobilebert'" in refused(source=source, fold_token_types=True)
    source = save(tmp_path / "distilbert", "distilbert")
    assert "has no token types" in refused(source=source, fold_token_types=True)


# ------------------------------------------------------------------------------------ pooler, classifier


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_fresh_pooler(bert: str, kind: str) -> None:
    name = {"bert": "bert.pooler.dense", "distilbert": "pre_classifier"}[kind]
    fields: dict[str, Any] = {"architecture": {"model_type": kind}}
    (kept, _), (fresh, _) = started(bert, **fields), started(bert, pooler="fresh", **fields)
    donor = library(bert).bert.pooler.dense
    found = kept.state_dict()
    assert torch.equal(found[f"body.model.{name}.weight"], donor.weight)
    assert torch.equal(found[f"body.model.{name}.bias"], donor.bias)
    found = fresh.state_dict()
    assert not torch.equal(found[f"body.model.{name}.weight"], donor.weight)
    assert not found[f"body.model.{name}.bias"].any()
    others = {k: v for k, v in encoder(fresh).items() if "pooler" not in k}
    assert others and all(torch.equal(tensor, encoder(kept)[k]) for k, tensor in others.items())
    assert torch.equal(fresh.head.weight, kept.head.weight)  # type: ignore[union-attr]


def test_a_classifier_of_other_classes_starts_anew(bert: str) -> None:
    made, _ = started(bert, info={**INFO, "num_classes": 5})
    head = made.head
    assert head is not None and head.weight.shape == (5, 16) and not head.bias.any()
    assert float(head.weight.detach().std()) < 0.05  # drawn as BERT draws, where the source's have 0.3
    given = library(bert).bert.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in encoder(made).items())


def test_a_fresh_classifier_follows_from_the_seed(bert: str) -> None:
    info = {**INFO, "num_classes": 5}
    one, two = (started(bert, info=info)[0].state_dict() for _ in range(2))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_weights_are_copies(bert: str) -> None:
    """Training one network must not move another."""
    (whole, _), (small, _) = started(bert), started(bert, layers=[0])
    assert isinstance(whole.body, Transformer) and isinstance(small.body, Transformer)
    transplant_(small.body, whole.body, {"layers": [2]})
    before = encoder(whole)["encoder.layer.2.output.dense.weight"].clone()
    for parameter in small.parameters():
        parameter.data.zero_()
    assert torch.equal(encoder(whole)["encoder.layer.2.output.dense.weight"], before)


# -------------------------------------------------------------------------------------------- vocabulary


KEPT = [0, 1, 2, 3, 4, 8, 9, 10, 11, 20]


def test_pieces_that_are_used() -> None:
    tokens = SINGLE[:1].numpy()  # [CLS] 8 9 10 [SEP], shifted by one
    assert used_pieces([tokens], SPECIAL) == [0, 1, 2, 3, 4, 8, 9, 10]
    # Of as many as are asked for: the special ones, then the frequent ones of the first texts.
    first, second = np.array([[3, 30, 30, 20, 4, 0]]), np.array([[3, 25, 25, 25, 4, 0]])
    assert used_pieces([first, second], SPECIAL, 6) == [0, 1, 2, 3, 4, 29]
    assert used_pieces([first, second], SPECIAL, 7) == [0, 1, 2, 3, 4, 19, 29]
    assert used_pieces([first, second], SPECIAL, 8) == [0, 1, 2, 3, 4, 19, 24, 29]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_used_pieces_pick_their_rows(bert: str, kind: str) -> None:
    made, _ = started(bert, pieces=KEPT, vocabulary="used", architecture={"model_type": kind})
    given = library(bert).bert.state_dict()
    words = given["embeddings.word_embeddings.weight"]
    if kind == "distilbert":
        words = words + given["embeddings.token_type_embeddings.weight"][0]
    assert torch.equal(encoder(made)["embeddings.word_embeddings.weight"], words[KEPT])
    whole, _ = started(bert, architecture={"model_type": kind})
    known = SINGLE[:1]
    torch.testing.assert_close(made(known).logits, whole(known).logits)
    assert made.num_parameters == whole.num_parameters - (PIECES - len(KEPT)) * 16


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@torch.no_grad()
def test_used_pieces_of_a_masked_language_model(bert_lm: str, kind: str) -> None:
    """Output layer and its bias are picked as well."""
    fields: dict[str, Any] = {"architecture": {"model_type": kind}}
    made, _ = started(bert_lm, masked_lm=True, pieces=KEPT, vocabulary="used", **fields)
    whole, _ = started(bert_lm, masked_lm=True, **fields)
    masked = MASKED[:1]
    found, expected = made(SINGLE[:1], masked=masked).logits, whole(SINGLE[:1], masked=masked).logits
    torch.testing.assert_close(found, expected[:, KEPT])


# ------------------------------------------------------------------------------------------------ errors


def refused(**fields: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        resolve(TransformerConfig(**fields), path="student.model")
    assert all(line.startswith("student.model.") for line in raised.value.problems)
    return str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "old"),
    [
        ("hidden_size", 8, 16),
        ("intermediate_size", 32, 24),
        ("num_attention_heads", 4, 2),
        ("vocab_size", 40, 30),
        ("max_position_embeddings", 11, 12),
        ("type_vocab_size", 3, 2),
    ],
)
def test_weights_of_another_shape(bert: str, field: str, value: int, old: int) -> None:
    message = refused(source=bert, architecture={field: value})
    assert f"student.model.architecture.{field}: {value}, but" in message and f"have {old}" in message
    assert "weights: random" in message
    settings, initial = resolve(TransformerConfig(source=bert, architecture={field: value}, weights="random"))
    assert initial is None and settings["architecture"][field] == value


def test_distilbert_of_another_width(bert: str) -> None:
    message = refused(source=bert, architecture={"model_type": "distilbert", "hidden_dim": 32})
    assert "hidden_dim: 32" in message and "24" in message
    message = refused(source=bert, architecture={"model_type": "distilbert", "dim": 8})
    assert "hidden_size: 8" in message and "have 16" in message


def test_types_that_do_not_fit(bert: str, tmp_path: Path) -> None:
    message = refused(source=bert, architecture={"model_type": "electra"})
    assert "'bert'" in message and "'electra'" in message and "weights: random" in message


def test_blocks_that_are_shared_cannot_be_chosen(tmp_path: Path) -> None:
    source = save(tmp_path, "albert", embedding_size=8)
    assert "layers: a 'albert' has no list of blocks" in refused(source=source, layers="first:2")
    made, initial = started(source, architecture={"num_hidden_layers": 2})
    model = library(source)
    model.config.num_hidden_layers = 2
    assert "layers" not in initial
    torch.testing.assert_close(made(SINGLE).logits, model(**inputs_of(SINGLE)).logits)


def test_a_pickle_is_not_read(tmp_path: Path, bert: str) -> None:
    shutil.copy(Path(bert) / "config.json", tmp_path / "config.json")
    torch.save({}, tmp_path / "pytorch_model.bin")
    message = refused(source=str(tmp_path))
    assert message.startswith("student.model.source: ") and "pickle" in message
    assert "safe_serialization=True" in message
    resolve(TransformerConfig(source=str(tmp_path), weights="random"))  # its shape alone can be had


def test_settings_that_contradict(bert: str) -> None:
    assert "there is no source" in refused(weights="pretrained", architecture={"model_type": "bert"})
    assert "weights are random" in refused(source=bert, weights="random", layers="first:2")
    assert "'teacher'" in refused(weights="teacher")


def test_weights_that_cannot_be_read(tmp_path: Path, bert: str) -> None:
    """Found when they are loaded: another node may lack the folder."""
    folder = tmp_path / "copy"
    shutil.copytree(bert, folder)
    settings, initial = resolve(TransformerConfig(source=str(folder)))
    assert initial is not None
    made = build(TypeAdapter(ModelConfig).validate_python(settings), INFO)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="weights of .*copy.* cannot be read.*every node"):
        load_initial(made, initial, None, INFO)


def test_tensors_of_another_shape_are_no_silent_fresh_start(bert: str) -> None:
    """Should a difference get past the configuration, loading the weights stops there."""
    settings, initial = resolve(TransformerConfig(source=bert))
    assert initial is not None
    settings["architecture"]["max_position_embeddings"] = 11
    made = build(TypeAdapter(ModelConfig).validate_python(settings), INFO)
    with pytest.raises(ConfigError, match=r"position_embeddings.*\(12, 16\).*\(11, 16\)"):
        load_initial(made, initial, None, INFO)


# ------------------------------------------------------------------------------------------- fingerprint


def member(source: str) -> MemberTask:
    settings, initial = resolve(TransformerConfig(source=source))
    online = {
        "teachers": [{**(initial or {}), "model": settings}],
        "shares": [1.0],
        "logits": False,
    }
    return MemberTask(
        "x",
        "distilled",
        0,
        settings,
        {},
        {"data": "0"},
        initial=initial,
        online=online,
        terms=[{"name": "t"}],
    )


def test_the_fingerprint_goes_by_the_weights_not_by_their_place(tmp_path: Path, bert: str) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for folder in (one, two, three):
        shutil.copytree(bert, folder)
    save(three, num_labels=CLASSES, hidden_dropout_prob=0.2)
    tasks = [member(str(folder)) for folder in (one, two)]
    assert tasks[0].initial is not None and tasks[1].initial is not None
    assert tasks[0].initial["digest"] == tasks[1].initial["digest"]
    assert tasks[0].initial["source"] != tasks[1].initial["source"]
    assert tasks[0].fingerprint == tasks[1].fingerprint
    # Other weights of the same shape.
    model = library(str(two))
    with torch.no_grad():
        model.classifier.bias[0] += 1
    model.save_pretrained(two)
    moved = member(str(two))
    assert moved.model == tasks[0].model and moved.fingerprint != tasks[0].fingerprint
    only_online = MemberTask(**{**vars(tasks[0]), "online": moved.online})
    assert only_online.fingerprint not in (tasks[0].fingerprint, moved.fingerprint)


# -------------------------------------------------------------------------------------- names, own code


def test_a_hub_name_is_not_taken_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def config(source: str, trust_remote_code: bool = False) -> Any:
        asked.append(source)
        return AutoConfig.for_model("bert", **BERT)

    monkeypatch.setattr("ensemble_kd.models.transplant.pretrained_config", config)
    settings, initial = resolve(TransformerConfig(source="some-organisation/bert", layers=[0, 3]))
    assert asked == ["some-organisation/bert"] and settings["architecture"]["num_hidden_layers"] == 2
    assert initial == {
        "source": "some-organisation/bert",
        "digest": "some-organisation/bert",
        "trust_remote_code": False,
        "layers": [0, 3],
    }


CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "quite-our-own"

class OwnClassifier(BertForSequenceClassification):
    config_class = OwnConfig
"""


def own_code(folder: Path) -> str:
    """A model whose code lies in its folder."""
    import json

    source = Path(save(folder))
    (source / "own.py").write_text(CODE)
    config = json.loads((source / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnClassifier"}
    config |= {"model_type": "quite-our-own", "auto_map": classes}
    (source / "config.json").write_text(json.dumps(config))
    return str(source)


def test_code_of_a_source_runs_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    source = own_code(tmp_path / "model")
    with pytest.raises(ConfigError, match="trust_remote_code"):
        resolve(TransformerConfig(source=source))
    settings, initial = resolve(TransformerConfig(source=source, trust_remote_code=True))
    assert initial is not None and settings["source"] == source and settings["trust_remote_code"]
    network = build(TypeAdapter(ModelConfig).validate_python(settings), INFO)
    load_initial(network, initial, None, INFO)
    plain = AutoModelForSequenceClassification.from_pretrained(save(tmp_path / "plain")).eval()
    with torch.no_grad():
        found = network.eval()(SINGLE).logits
        wanted = plain(input_ids=(SINGLE - 1).clamp(min=0), attention_mask=(SINGLE != 0).long()).logits
    torch.testing.assert_close(found, wanted)
