"""Models of the transformers library as bodies: the library's own numbers, whatever the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from ensemble_kd.config import TransformerConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.specialist import DustbinHead, specialise
from ensemble_kd.models.transformer import Transformer, blocks_of, piece_map
from ensemble_kd.models.transformer_config import make_config
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms

CLASSES, PIECES, LENGTH = 3, 30, 12
SPECIAL = {"pad": 5, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
"""Padding is not number 0, so that a mix-up of 0 and the model's own padding shows."""
INFO: dict[str, Any] = {
    "kind": "text",
    "input_shape": [LENGTH],
    "num_classes": CLASSES,
    "vocabulary_size": PIECES + 1,
    "preprocess": {"special": SPECIAL},
}
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": PIECES,
    "max_position_embeddings": 20,
    "pad_token_id": 5,
}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": PIECES}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "distilbert": {**DISTILBERT, "max_position_embeddings": 20, "pad_token_id": 5},
    "electra": {**SMALL, "embedding_size": 8},
    "roberta": {**SMALL, "type_vocab_size": 1},
    "albert": {**SMALL, "embedding_size": 8},
    "mobilebert": {**SMALL, "embedding_size": 8, "intra_bottleneck_size": 16},
}
KINDS = pytest.mark.parametrize("kind", list(ARCHITECTURES))
HAS_TYPES = {"bert", "electra", "albert", "mobilebert"}

TEXTS = [
    [2, 9, 10, 11, 3],
    [2, 9, 10, 3, 12, 13, 14, 3],  # a pair
    [2, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 3],
    [2, 25, 26, 27, 3, 28, 3],
]


def tokens(texts: list[list[int]] = TEXTS, length: int = LENGTH) -> Tensor:
    """(B, L) int32, as the package numbers them: shifted by one, 0 for padding."""
    return torch.tensor(
        [[n + 1 for n in text] + [0] * (length - len(text)) for text in texts], dtype=torch.int32
    )


def library_inputs(texts: list[list[int]], types: bool, length: int = LENGTH) -> dict[str, Tensor]:
    """The same texts, written down as transformers wants them."""
    padding = [length - len(text) for text in texts]
    found = {
        "input_ids": torch.tensor([t + [5] * n for t, n in zip(texts, padding, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(t) + [0] * n for t, n in zip(texts, padding, strict=True)]),
    }
    if types:
        first = [text.index(3) + 1 for text in texts]
        found["token_type_ids"] = torch.tensor(
            [[0] * f + [1] * (len(t) - f) + [0] * n for f, t, n in zip(first, texts, padding, strict=True)]
        )
    return found


def network(kind: str, masked_lm: bool = False, **changes: Any) -> Network:
    """Random weights, large ones, so that attention and logits are far from uniform."""
    torch.manual_seed(3)
    model = TransformerConfig(architecture={"model_type": kind, **ARCHITECTURES[kind]}, **changes)
    made = build(model, INFO, masked_lm=masked_lm).eval()
    spread = 0.15 if kind == "mobilebert" else 0.35  # without LayerNorm states grow
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=spread)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        # As training leaves it; MobileBERT reads each word beside its neighbours.
        made.body.model.get_input_embeddings().weight[5] = 0.0  # type: ignore[union-attr,operator]
    return made


def plain(made: Network, auto: Any, **settings: Any) -> Any:
    """A model that transformers itself makes of the configuration, with the same weights."""
    ours = made.body
    assert isinstance(ours, Transformer)
    model = auto.from_config(ours.model.config, **settings).eval()
    model.load_state_dict(ours.model.state_dict())
    return model


# ------------------------------------------------------------------------------- the library's own numbers


@KINDS
@torch.no_grad()
def test_logits_and_states_are_those_of_the_library(kind: str) -> None:
    made = network(kind)
    model = plain(made, AutoModelForSequenceClassification)
    expected = model(**library_inputs(TEXTS, kind in HAS_TYPES), output_hidden_states=True)
    found = made(tokens(), hidden=True)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.hidden is not None and list(found.hidden) == ["embedding", "layer_1", "layer_2"]
    for state, theirs in zip(found.hidden.values(), expected.hidden_states, strict=True):
        torch.testing.assert_close(state, theirs)
    assert found.mask is not None and found.mask.sum(1).tolist() == [len(text) for text in TEXTS]
    assert made(tokens()).hidden is None and found.attention is None


@pytest.mark.parametrize("kind", sorted(HAS_TYPES))
@torch.no_grad()
def test_token_types_follow_the_first_separator(kind: str) -> None:
    made = network(kind)
    model = plain(made, AutoModelForSequenceClassification)
    without = model(**library_inputs(TEXTS, types=False)).logits
    found = made(tokens()).logits
    # Single texts have type 0 throughout; pairs do not.
    torch.testing.assert_close(found[[0, 2]], without[[0, 2]])
    assert (found - without)[[1, 3]].abs().amax(1).min() > 1e-3


@KINDS
@torch.no_grad()
def test_scores_give_the_same_logits_and_the_attention_of_the_eager_model(kind: str) -> None:
    made = network(kind)
    usual, scored = made(tokens()), made(tokens(), attention=True)
    torch.testing.assert_close(scored.logits, usual.logits, rtol=1e-4, atol=1e-5)
    eager = plain(made, AutoModelForSequenceClassification, attn_implementation="eager")
    expected = eager(**library_inputs(TEXTS, kind in HAS_TYPES), output_attentions=True).attentions
    assert scored.attention is not None and len(scored.attention) == len(expected) == 2
    present = tokens() != 0
    for scores, theirs in zip(scored.attention, expected, strict=True):
        shares = scores.masked_fill(~present[:, None, None, :], -torch.inf).softmax(-1)
        torch.testing.assert_close(shares, theirs, rtol=1e-4, atol=1e-5)
        assert theirs[0, :, :5, :5].std() > 1e-3  # not uniform, else this would say little
    # Before the mask: what stands at padding is an ordinary number.
    assert max(scores.abs().max() for scores in scored.attention) < 1e3
    torch.testing.assert_close(made(tokens()).logits, usual.logits, rtol=0, atol=0)  # switched back


@torch.no_grad()
def test_scores_are_products_of_queries_and_keys() -> None:
    made = network("bert")
    found = made(tokens(), hidden=True, attention=True)
    assert found.hidden is not None and found.attention is not None
    body = made.body
    assert isinstance(body, Transformer)
    layer = body.model.bert.encoder.layer[0].attention.self
    state = found.hidden["embedding"]
    query, key = ((f(state)).view(4, LENGTH, 2, 8).transpose(1, 2) for f in (layer.query, layer.key))
    torch.testing.assert_close(found.attention[0], torch.einsum("baid,bajd->baij", query, key) / 8**0.5)


# ------------------------------------------------------------------------------------ padding says nothing


TERMS = [
    {"name": "hidden_mse", "layers": [[1, 1], [2, 2]], "projection": "none"},
    {"name": "embedding_mse"},
    {"name": "hidden_cosine"},
    {"name": "attention_mse"},
    {"name": "attention_kl"},
    {"name": "patient", "layers": [[1, 1], [2, 2]]},
]


@KINDS
@torch.no_grad()
def test_padding_changes_nothing(kind: str) -> None:
    made = network(kind)
    short, long = (
        made(tokens(), hidden=True, attention=True),
        made(tokens(length=17), hidden=True, attention=True),
    )
    torch.testing.assert_close(short.logits, long.logits, rtol=1e-4, atol=1e-5)
    assert short.hidden and long.hidden and short.mask is not None
    for name, state in short.hidden.items():
        cut = long.hidden[name][:, :LENGTH]
        torch.testing.assert_close(state[short.mask], cut[short.mask], rtol=1e-4, atol=1e-5)
    alone = torch.cat([made(tokens([text], len(text))).logits for text in TEXTS])
    torch.testing.assert_close(short.logits, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", TERMS, ids=lambda fields: fields["name"])
def test_padding_changes_no_term_and_no_gradient(fields: dict[str, Any]) -> None:
    student, teacher = network("bert"), network("electra").requires_grad_(False)
    found = []
    for length in (LENGTH, 17):
        inputs = tokens(length=length)
        loss = DistillationLoss(alpha=1.0, terms=build_terms([fields], 1.0, "terms"))
        ours, theirs = student(inputs, **loss.wants), teacher(inputs, **loss.wants)
        loss.prepare(ours, [theirs])
        student.zero_grad(set_to_none=True)
        value = loss(ours, None, Batch(inputs, torch.zeros(4, dtype=torch.int64)), [theirs])
        value.backward()
        gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        found.append((value.detach(), torch.cat(gradients)))
    assert found[0][0] > 1e-3 and found[0][1].abs().max() > 1e-4
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    scale = float(found[0][1].abs().max())
    torch.testing.assert_close(found[0][1] / scale, found[1][1] / scale, rtol=1e-3, atol=1e-5)


# -------------------------------------------------------------------------------- masked language models


@KINDS
@torch.no_grad()
def test_words_are_guessed_where_they_are_masked(kind: str) -> None:
    made = network(kind, masked_lm=True)
    masked = torch.zeros(4, LENGTH, dtype=torch.bool)
    masked[0, 1] = masked[2, 4] = masked[2, 9] = masked[3, 5] = True
    found = made(tokens(), masked=masked)
    model = plain(made, AutoModelForMaskedLM)
    everywhere = model(**library_inputs(TEXTS, kind in HAS_TYPES)).logits  # (B, L, V)
    assert found.logits.shape == (4, PIECES) and made.head is None
    torch.testing.assert_close(found.logits, everywhere[masked], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(tokens()).logits, everywhere, rtol=1e-4, atol=1e-5)
    scored = made(tokens(), masked=masked, hidden=True, attention=True)
    torch.testing.assert_close(scored.logits, found.logits, rtol=1e-4, atol=1e-5)
    assert len(scored.hidden) == 3 and len(scored.attention) == 2


# --------------------------------------------------------------------------------------------- classifier


@KINDS
@torch.no_grad()
def test_head_is_the_classifier_and_can_be_specialised(kind: str) -> None:
    made = network(kind)
    head = made.head
    assert head is not None and head.out_features == CLASSES
    before = made(tokens()).logits
    head.bias[1] += 7.0
    after = made(tokens()).logits
    torch.testing.assert_close(after - before, torch.tensor([0.0, 7.0, 0.0]).expand(4, 3))
    specialist = specialise(made, [2, 0]).eval()
    found = specialist(tokens()).logits
    expected = torch.stack([after[:, 2], after[:, 0], after[:, 1]], 1)
    torch.testing.assert_close(found, expected)
    assert isinstance(specialist.head, DustbinHead) and not isinstance(made.head, DustbinHead)


@KINDS
def test_head_is_the_last_layer_even_where_others_have_as_many_outputs(kind: str) -> None:
    """As many classes as the network is wide."""
    torch.manual_seed(0)
    model = TransformerConfig(architecture={"model_type": kind, **ARCHITECTURES[kind]})
    made = build(model, INFO, num_outputs=16)
    logits = made(tokens()).logits
    assert made.head is not None
    (gradient,) = torch.autograd.grad(logits[:, 5].sum(), made.head.bias)
    assert gradient.tolist() == [4.0 if i == 5 else 0.0 for i in range(16)]


def test_dropout_sets_every_probability() -> None:
    for kind, fields in ARCHITECTURES.items():
        made = build(
            TransformerConfig(architecture={"model_type": kind, **fields}, dropout=0.0), INFO
        ).train()
        torch.testing.assert_close(made(tokens()).logits, made(tokens()).logits, rtol=0, atol=0)
    assert not torch.equal((noisy := network("bert").train())(tokens()).logits, noisy(tokens()).logits)


# -------------------------------------------------------------------------------------------- vocabulary


KEPT = [1, 2, 3, 4, 5, 9, 10, 12, 15, 29]
"""Word pieces kept; others count as number 1, the unknown one."""


@KINDS
@torch.no_grad()
def test_kept_pieces_give_what_the_whole_model_gives(kind: str) -> None:
    whole = network(kind)
    few = build(
        TransformerConfig(architecture={"model_type": kind, **ARCHITECTURES[kind]}, pieces=KEPT), INFO
    ).eval()
    state = {}
    for name, tensor in whole.state_dict().items():
        state[name] = tensor[KEPT] if name.endswith("word_embeddings.weight") else tensor
    few.load_state_dict({**state, "body.piece_map": few.state_dict()["body.piece_map"]})
    known = tokens([[2, 9, 10, 3], [2, 15, 29, 12, 12, 3]])
    torch.testing.assert_close(few(known).logits, whole(known).logits, rtol=1e-5, atol=1e-6)
    # Dropped ones are read as the unknown piece, padding stays padding.
    dropped, unknown = tokens([[2, 9, 20, 3], [2, 28, 0, 3]]), tokens([[2, 9, 1, 3], [2, 1, 1, 3]])
    torch.testing.assert_close(few(dropped).logits, whole(unknown).logits, rtol=1e-5, atol=1e-6)
    assert (few(dropped).logits - whole(dropped).logits).abs().max() > 1e-3
    assert few.num_parameters < whole.num_parameters


def test_piece_map() -> None:
    mapped = piece_map([1, 4, 6], 8, unknown=4)
    assert mapped.dtype == torch.int64 and mapped.tolist() == [1, 0, 1, 1, 1, 1, 2, 1]


def test_a_network_with_few_pieces_is_built_without_memory() -> None:
    model = TransformerConfig(architecture={"model_type": "bert", **SMALL}, pieces=KEPT)
    with torch.device("meta"):
        made = build(model, INFO)
    assert all(tensor.is_meta for tensor in made.state_dict().values())
    assert made.body.model.bert.embeddings.word_embeddings.weight.shape == (10, 16)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------- images


IMAGES: dict[str, Any] = {
    "kind": "image",
    "input_shape": [8, 12, 3],
    "num_classes": CLASSES,
    "vocabulary_size": 0,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "preprocess": {},
}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "patch_size": 4,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
@torch.no_grad()
def test_images(architecture: dict[str, Any]) -> None:
    torch.manual_seed(1)
    made = build(TransformerConfig(architecture=architecture), IMAGES).eval()
    pixels = torch.randint(0, 256, (5, 8, 12, 3), dtype=torch.uint8)
    found: Outputs = made(pixels, hidden=True)
    normal = (pixels.double() / 255 - torch.tensor(IMAGES["mean"])) / torch.tensor(IMAGES["std"])
    body = made.body
    assert isinstance(body, Transformer) and not body.sequential
    expected = body.model(pixel_values=normal.float().permute(0, 3, 1, 2), output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert found.logits.shape == (5, CLASSES) and found.mask is None
    assert found.hidden is not None and list(found.hidden) == ["embedding", "layer_1", "layer_2"]
    shapes = [tuple(state.shape[1:]) for state in found.hidden.values()]
    if architecture is VIT:
        assert shapes == [(7, 16)] * 3  # 2 x 3 patches and one for the class
        scored = made(pixels, attention=True)
        torch.testing.assert_close(scored.logits, found.logits, rtol=1e-4, atol=1e-5)
        assert [tuple(scores.shape) for scores in scored.attention] == [(5, 2, 7, 7)] * 2
    else:
        assert [shape[0] for shape in shapes] == [8, 8, 16]
    assert made.head is not None and made.head.out_features == CLASSES
    specialist = specialise(made, [2, 0]).eval()
    torch.testing.assert_close(specialist(pixels).logits, found.logits[:, [2, 0, 1]])


# ------------------------------------------------------------------------------------------------- errors


def refused(architecture: dict[str, Any], info: dict[str, Any] = INFO) -> str:
    with pytest.raises(ConfigError) as raised:
        build(TransformerConfig(architecture=architecture), info)
    return str(raised.value)


def test_a_vocabulary_that_is_too_small() -> None:
    message = refused({"model_type": "bert", **SMALL, "vocab_size": 29})
    assert "architecture.vocab_size: 29" in message and "30 word pieces" in message
    assert "data.text.source" in message


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_texts_longer_than_the_positions(kind: str) -> None:
    """RoBERTa counts its positions from the padding's number on: with padding 5 the first six are lost."""
    fields = ARCHITECTURES[kind]
    room = 20 - (6 if kind == "roberta" else 0)
    fits = build(
        TransformerConfig(architecture={"model_type": kind, **fields}), {**INFO, "input_shape": [room]}
    )
    fits(torch.full((2, room), 10, dtype=torch.int32))
    message = refused({"model_type": kind, **fields}, {**INFO, "input_shape": [room + 1]})
    assert f"max_position_embeddings: {room} positions" in message and f"{room + 1} tokens" in message
    assert f"lower data.text.max_length to {room}" in message


def test_unknown_types_and_fields() -> None:
    message = refused({"model_type": "destilbert"})
    assert "'destilbert'" in message and "did you mean 'distilbert'?" in message
    assert "hidden_sise" in refused({"model_type": "bert", "hidden_sise": 3})
    assert "architecture.model_type: missing" in refused({"hidden_size": 3})
    message = refused({"model_type": "bert", "hidden_size": 15, "num_attention_heads": 2})
    assert message.startswith("architecture: ") and "15" in message


def test_what_transformers_has_no_classifier_of() -> None:
    message = refused({"model_type": "resnet"})
    assert "no text classifier of type 'resnet'" in message
    assert "no image classifier of type 'bert'" in refused({"model_type": "bert"}, IMAGES)


def test_depth_goes_by_one_name_for_all_types() -> None:
    """A field by its usual name counts, whether or not the base says it by the type's own."""
    base = {"model_type": "distilbert", **DISTILBERT, "n_layers": 4}
    assert make_config({"num_hidden_layers": 3}, base).n_layers == 3
    assert make_config({"n_layers": 3}, base).num_hidden_layers == 3
    assert make_config({"model_type": "distilbert", "num_hidden_layers": 3}).n_layers == 3


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "roberta", "mobilebert"])
def test_blocks_are_found(kind: str) -> None:
    encoder = network(kind).body.encoder
    assert isinstance(encoder, torch.nn.Module)
    assert len(encoder.get_submodule(blocks_of(encoder))) == 2  # type: ignore[arg-type]


def test_shared_blocks_are_no_list() -> None:
    encoder = network("albert").body.encoder
    assert isinstance(encoder, torch.nn.Module)
    with pytest.raises(ConfigError, match="no list of blocks"):
        blocks_of(encoder)


def test_models_without_scores_are_told() -> None:
    """Their attention would give probabilities, without a word."""
    torch.manual_seed(0)
    kind = {"model_type": "mpnet", **SMALL}
    body = build(TransformerConfig(architecture=kind), INFO).body
    assert isinstance(body, Transformer) and not body.has_scores
    tokens = torch.full((1, 4), 6)
    body(tokens)
    with pytest.raises(ConfigError, match="attention: a 'mpnet' of transformers does not hand out scores"):
        body(tokens, attention=True)


def test_encoder_decoders_are_told() -> None:
    with pytest.raises(
        ConfigError, match="a 'bart' has an encoder and a decoder; use one that is an encoder"
    ):
        build(TransformerConfig(architecture={"model_type": "bart", "d_model": 16}), INFO)
