"""Classifiers that read the mean or the maximum of all tokens' states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import MODELS, case, info_of, inputs_of
from pydantic import TypeAdapter
from test_transplant import BERT, INFO, PIECES, SINGLE, save, started
from transformers import AutoConfig, AutoModel

from ensemble_kd.config import Config, DataConfig, ModelConfig, StudentConfig, TransformerConfig, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.export import without_us
from ensemble_kd.export.huggingface import huggingface_inputs, load_huggingface, write_huggingface
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.package import load_package
from ensemble_kd.models.pooling import pool
from ensemble_kd.models.quantise import Quantiser, quantise_
from ensemble_kd.models.specialist import specialise
from ensemble_kd.models.transformer import Transformer
from ensemble_kd.models.transplant import resolve, transplant_
from ensemble_kd.stages.pretrained_files import source_digests

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}


def say(folder: Path, pooling: dict[str, Any] | str) -> str:
    """Make a folder of transformers one of sentence-transformers."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    text = pooling if isinstance(pooling, str) else json.dumps(pooling)
    (folder / "1_Pooling" / "config.json").write_text(text)
    return str(folder)


def encoder_alone(folder: Path, kind: str = "bert") -> Path:
    """A pretrained encoder without a classifier."""
    torch.manual_seed(6)
    AutoModel.from_config(AutoConfig.for_model(kind, **BERT)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A source whose states are to be read by their mean."""
    return say(encoder_alone(tmp_path_factory.mktemp("sentences")), MEAN)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("bert"))


def body_of(network: Network) -> Transformer:
    assert isinstance(network.body, Transformer)
    return network.body


# -------------------------------------------------------------------------------------------- the numbers


def test_mean_and_maximum_over_tokens_alone() -> None:
    states = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [float("nan"), 9.0]], [[5.0, 6.0]] * 3])
    present = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert pool(states, present, "mean").tolist() == [[2.0, -3.0], [0.0, 0.0]]
    assert pool(states, present, "max").tolist() == [[3.0, -2.0], [0.0, 0.0]]


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "albert", "gpt2"])
def test_a_linear_layer_on_what_the_library_gives(kind: str, how: str) -> None:
    fields = BERT if kind in ("bert", "albert") else {"vocab_size": PIECES, "dim": 16, "n_embd": 16}
    fields = {**fields, "n_layers": 2, "n_layer": 2, "n_heads": 2, "n_head": 2, "hidden_dim": 24}
    known = AutoConfig.for_model(kind).to_dict()
    architecture = {"model_type": kind, **{k: v for k, v in fields.items() if k in known}}
    torch.manual_seed(0)
    network = build(TransformerConfig(architecture=architecture, pooling=how), INFO).eval()
    body = body_of(network)
    with torch.no_grad():
        found = network(SINGLE, hidden=True)
        for row, tokens in enumerate(SINGLE):  # one by one, so that there is no padding
            alone = tokens[tokens > 0][None]
            states = body.encoder(input_ids=alone - 1).last_hidden_state[0]
            pooled = states.mean(0) if how == "mean" else states.max(0).values
            expected = torch.nn.functional.linear(pooled, body.head.weight, body.head.bias)  # type: ignore[union-attr]
            torch.testing.assert_close(found.logits[row], expected, atol=1e-5, rtol=1e-4)
    assert not any("pooler" in name or "pre_classifier" in name for name, _ in network.named_parameters())
    network(SINGLE).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_dropout_is_the_configurations_own() -> None:
    for fields, rate in (({}, 0.1), ({"classifier_dropout": 0.3}, 0.3), ({"hidden_dropout_prob": 0.2}, 0.2)):
        architecture = {"model_type": "bert", **BERT, **fields}
        made = build(TransformerConfig(architecture=architecture, pooling="mean"), INFO)
        assert body_of(made).model.dropout.p == rate
    told = TransformerConfig(architecture={"model_type": "bert", **BERT}, pooling="mean", dropout=0.4)
    assert body_of(build(told, INFO)).model.dropout.p == 0.4


# ------------------------------------------------------------------------------------ what a source says


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (MEAN, "mean"),
        ({"word_embedding_dimension": 16, "pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_cls_token": True}, None),
        ({"pooling_mode": "mean", "embedding_dimension": 16}, "mean"),  # as version 6 writes it
        ({"pooling_mode": ["max"]}, "max"),
        ({"pooling_mode": ["mean", "max"]}, None),
        ({**MEAN, "pooling_mode_max_tokens": True}, None),
        ({"pooling_mode": "lasttoken"}, None),
        ({"pooling_mode_weightedmean_tokens": True}, None),
        ({}, None),
    ],
)
def test_auto_follows_the_source(tmp_path: Path, said: dict[str, Any], expected: str | None) -> None:
    source = say(encoder_alone(tmp_path), said)
    assert resolve(TransformerConfig(source=source))[0].get("pooling") == expected
    assert resolve(TransformerConfig(source=source, weights="random"))[0].get("pooling") == expected
    assert "pooling" not in resolve(TransformerConfig(source=source, pooling="cls"))[0]
    assert resolve(TransformerConfig(source=source, pooling="max"))[0]["pooling"] == "max"


def test_auto_without_such_a_source_is_the_librarys_classifier(bert: str, tmp_path: Path) -> None:
    settings, initial = resolve(TransformerConfig(source=bert))
    assert "pooling" not in settings
    assert resolve(TransformerConfig(source=bert, pooling="cls")) == (settings, initial)
    # A classifier that was trained goes on reading what it was trained on, whatever lies beside it.
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    assert resolve(TransformerConfig(source=say(tmp_path, MEAN)))[0] == settings
    assert "pooling" not in TransformerConfig(source=bert).model_dump()  # fingerprints of stages stay
    assert TransformerConfig(source=bert, pooling="cls").model_dump()["pooling"] == "cls"


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    source = say(encoder_alone(tmp_path), "{")
    with pytest.raises(ConfigError, match=r"model\.source: .*1_Pooling/config\.json is not readable as JSON"):
        resolve(TransformerConfig(source=source))
    assert "pooling" not in resolve(TransformerConfig(source=source, pooling="cls"))[0]


def test_the_students_fingerprint_changes_with_what_its_source_says(bert: str, sentences: str) -> None:
    def digests(**fields: Any) -> list[str]:
        student = StudentConfig(model=TransformerConfig(**fields))
        data = DataConfig(path="texts", kind="text")
        return source_digests(Config(name="t", data=data, student=student))

    assert len(digests(source=bert)) == 1
    assert digests(source=sentences) == [*digests(source=sentences, pooling="cls"), "mean"]


# ------------------------------------------------------------------------------- it travels with weights


def test_a_source_gives_its_encoder_and_no_classifier(sentences: str, bert: str) -> None:
    network, _ = started(sentences)
    library = AutoModel.from_pretrained(sentences, add_pooling_layer=False).eval()
    for name, tensor in library.state_dict().items():
        assert torch.equal(body_of(network).encoder.state_dict()[name], tensor), name
    taken, _ = started(bert, pooling="mean")  # a trained classifier, which read something else
    head = body_of(taken).head
    assert head is not None and not head.bias.any() and head.weight.std() < 0.05


def test_a_student_reads_as_the_teacher_that_it_starts_from(sentences: str) -> None:
    teacher, _ = started(sentences)
    settings = resolve(TransformerConfig(source=sentences))[0]
    place: dict[str, Any] = {"model": settings, "initial": {"stage": "teachers", "member": "x"}}

    def student(**fields: Any) -> Network:
        resolved, initial = resolve(TransformerConfig(weights="teacher", **fields), place)
        assert initial is not None
        torch.manual_seed(3)
        made = build(TypeAdapter(ModelConfig).validate_python(resolved), INFO)
        missed = transplant_(body_of(made), body_of(teacher), initial)
        assert bool(missed) == (body_of(made).pooling != "mean")
        return made.eval()

    whole = student()
    assert torch.equal(whole(SINGLE).logits, teacher(SINGLE).logits)
    half, small = student(layers=[0, 2]), student(layers=[0, 2], architecture={"model_type": "distilbert"})
    assert torch.equal(half.head.weight, teacher.head.weight)  # type: ignore[union-attr]
    assert torch.equal(small.head.weight, teacher.head.weight)  # type: ignore[union-attr]
    for pooling in ("cls", "max"):  # the teacher's classifier read other numbers
        made = student(pooling=pooling)
        assert not torch.equal(made.head.weight, teacher.head.weight)  # type: ignore[union-attr]
        states = [one(SINGLE, hidden=True).hidden for one in (made, teacher)]
        assert torch.equal(states[0]["layer_4"], states[1]["layer_4"])


def test_fewer_word_pieces(sentences: str) -> None:
    pieces = [0, 1, 2, 3, 4, *range(8, 19)]
    known = torch.where(torch.isin(SINGLE - 1, torch.tensor([-1, *pieces])), SINGLE, 2)  # 1 is unknown
    (small, _), (whole, _) = started(sentences, pieces=pieces, vocabulary="used"), started(sentences)
    assert len(body_of(small).encoder.get_input_embeddings().weight) == len(pieces)  # type: ignore[operator]
    whole.head.load_state_dict(small.head.state_dict())  # type: ignore[union-attr]
    torch.testing.assert_close(small(SINGLE).logits, whole(known).logits)


def test_specialists_and_quantisation(sentences: str) -> None:
    network, _ = started(sentences)
    logits = network(SINGLE).logits
    special = specialise(network, [0, 2])(SINGLE).logits
    torch.testing.assert_close(special, torch.stack([logits[:, 0], logits[:, 2], logits[:, 1]], 1))
    quantise_(network, Quantiser())
    assert not torch.equal(network(SINGLE).logits, logits)
    assert "body.model.classifier.input_threshold" in network.state_dict()


def test_losses_see_the_same_states(bert: str) -> None:
    """Hidden states and scores are the encoder's, whatever is read of them in the end."""
    (mean, _), (cls, _) = started(bert, pooling="mean"), started(bert)
    found, expected = (made(SINGLE, hidden=True, attention=True) for made in (mean, cls))
    assert found.hidden.keys() == expected.hidden.keys()
    assert all(torch.equal(state, expected.hidden[name]) for name, state in found.hidden.items())
    assert all(map(torch.equal, found.attention, expected.attention))
    words, _ = started(bert, masked_lm=True, pooling="mean")
    assert body_of(words).pooling == "auto"  # guessing words has nothing to do with it


# ------------------------------------------------------------------------------------ forms and refusals


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network]:
    return case(tmp_path_factory.mktemp("model"), "mean")


def test_the_model_folder(model: tuple[Path, Network]) -> None:
    folder, network = model
    loaded = load_package(folder)
    assert loaded.model["pooling"] == "mean" and "pooling" not in MODELS["pieces"][1]
    inputs = torch.from_numpy(inputs_of(loaded.info))
    assert torch.equal(loaded.network(inputs).logits, network(inputs).logits)


@pytest.fixture(scope="module", params=["mean", "max", "distilbert"])
def layout(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Network, dict[str, Any]]:
    """The Hugging Face form of a network, with its logits halved."""
    settings = {**MODELS["mean"][1], "pooling": "max" if request.param == "max" else "mean"}
    if request.param == "distilbert":
        settings = {**MODELS["distilbert"][1], "pooling": "mean"}
    place = tmp_path_factory.mktemp("layout")
    _, network = case(place, "mean")
    network = build(TypeAdapter(ModelConfig).validate_python(settings), info_of("pieces")).eval()
    tokenizer = place / "model" / "tokenizer.json"
    write_huggingface(network, info_of("pieces"), tokenizer, 2.0, place / "form")
    return place / "form", network, info_of("pieces")


def test_the_hugging_face_form_by_transformers_alone(
    layout: tuple[Path, Network, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, network, info = layout
    inputs = inputs_of(info)
    expected = (network(torch.from_numpy(inputs)).logits / 2).detach().numpy()
    np.testing.assert_allclose(load_huggingface(folder, info)(inputs), expected, atol=1e-5)
    monkeypatch.setattr(without_us, "find_spec", lambda name: None)
    given = huggingface_inputs(folder, info, inputs)
    np.testing.assert_allclose(without_us.huggingface(folder, given, None), expected, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["id2label"]["0"] == "cat"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sentence_transformers_gives_the_students_logits(
    layout: tuple[Path, Network, dict[str, Any]],
) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder, network, info = layout
    loaded = library.SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__name__ for module in loaded] == ["Transformer", "Pooling", "Dense"]
    assert loaded.max_seq_length == info["input_shape"][0]
    texts = ["my card is lost", "the cat sat on the mat", "pay", "stolen, my bank?"]
    ids = [loaded.tokenizer(text)["input_ids"] for text in texts]
    inputs = torch.tensor([[i + 1 for i in row] + [0] * (12 - len(row)) for row in ids])
    expected = (network(inputs).logits / 2).detach().numpy()
    np.testing.assert_allclose(loaded.encode(texts), expected, atol=1e-5)
    # As a source it says how it is to be read.
    assert resolve(TransformerConfig(source=str(folder)))[0]["pooling"] == body_of(network).pooling


def test_what_pooling_is_not_for(sentences: str) -> None:
    with pytest.raises(ConfigError, match=r"pooling: 'mean', but a 'funnel' shows no state for each token"):
        sizes = {"d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 8, "block_sizes": [1, 1]}
        funnel = {"model_type": "funnel", "vocab_size": PIECES, **sizes}
        build(TransformerConfig(architecture=funnel, pooling="mean"), INFO)
    with pytest.raises(ConfigError, match=r"model\.pooler: 'fresh', but .* mean there is no pooler"):
        resolve(TransformerConfig(source=sentences, pooler="fresh"))
    _, initial = resolve(TransformerConfig(source=sentences, pooler="fresh", pooling="cls"))
    assert initial is not None and initial["pooler"] == "fresh"
    raw: dict[str, Any] = {
        "name": "x",
        "data": {"kind": "image", "path": "x"},
        "student": {"model": {"name": "transformer", "source": "x", "pooling": "max"}},
    }
    with pytest.raises(ConfigError, match=r"student\.model\.pooling: 'max' is for texts"):
        validate(raw)
    raw["student"]["model"] = {"name": "mlp", "pooling": "max"}
    with pytest.raises(ConfigError, match=r"student\.model\.pooling"):
        validate(raw)
