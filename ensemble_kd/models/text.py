"""Networks for token numbers: a bag of embeddings and a bidirectional LSTM.

Both take (B, L) integers where 0 is padding, and give the same result for any amount of padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ensemble_kd.config import BagConfig, BiLSTMConfig
from ensemble_kd.models.mlp import MLP
from ensemble_kd.models.outputs import Outputs


class Bag(nn.Module):
    """Mean of the embeddings of all tokens that are not padding, then an MLP (arXiv 1607.01759).

    With `piece_weights` the mean is weighted, sum_i e^s_i v_i / sum_i e^s_i with one learned s per token, at
    first 0. (A factor before a plain mean would add nothing that the vectors cannot learn themselves.) A text
    without tokens has the mean 0. Hidden states: `pooled` (B, embedding) and the MLP's `layer_1`, ...
    (B, units).
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_outputs: int,
        embedding: int = 64,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        *,
        piece_weights: bool = False,
    ) -> None:
        super().__init__()
        mode = "sum" if piece_weights else "mean"  # torch takes weights with sums alone
        self.embedding = nn.EmbeddingBag(vocabulary_size, embedding, mode=mode, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.normal_(std=0.1)
            self.embedding.weight[0].zero_()
        self.piece_weight = nn.Parameter(torch.zeros(vocabulary_size)) if piece_weights else None
        self.mlp = MLP(embedding, num_outputs, hidden, dropout, input_dropout=dropout)
        self.register_buffer("row_of", None, persistent=False)

    row_of: Tensor | None
    """(V,) row of each token, where `models.rows` has cut the tables."""
    cut: tuple[Tensor, list[Tensor]] | None = None
    """What it has cut off."""

    @property
    def tables(self) -> list[tuple[nn.Module, str]]:
        found: list[tuple[nn.Module, str]] = [(self.embedding, "weight")]
        return found if self.piece_weight is None else [*found, (self, "piece_weight")]

    @property
    def head(self) -> nn.Linear:
        return self.mlp.head

    def forward(self, tokens: Tensor, hidden: bool = False) -> Outputs:
        if self.row_of is not None:
            tokens = self.row_of[tokens.to(torch.int64)]
        if self.piece_weight is None:
            pooled = self.embedding(tokens)  # (B, L) -> (B, embedding)
        else:
            pooled = self.embedding(tokens, per_sample_weights=shares(tokens, self.piece_weight))
        outputs = self.mlp(pooled, hidden)
        if hidden:
            outputs.hidden = {"pooled": pooled, **outputs.hidden}
        return outputs


def shares(tokens: Tensor, weight: Tensor | None) -> Tensor:
    """(B, L) by which a Bag's vectors are multiplied before they are added up."""
    present = (tokens != 0).to(torch.float32)
    if weight is not None:
        # Without the largest, as in a softmax: e^s of a weight that has grown would overflow.
        logits = weight[tokens.to(torch.int64)].masked_fill(tokens == 0, float("-inf"))
        largest = logits.amax(1, keepdim=True).clamp(min=-1e4).detach()
        present = (logits - largest).exp()
    return present / present.sum(1, keepdim=True).clamp(min=1)


def build_bag(model: BagConfig, info: dict[str, Any], num_outputs: int) -> Bag:
    return Bag(
        info["vocabulary_size"],
        num_outputs,
        model.embedding,
        model.hidden,
        model.dropout,
        piece_weights=model.piece_weights,
    )


class BiLSTM(nn.Module):
    """Embeddings, a bidirectional LSTM, maximum over the tokens, one ReLU layer (arXiv 1903.12136, 3.1).

    Padding follows the tokens of a text; the LSTM never sees it. A text without tokens is read as one
    padding token. Deviation: the paper concatenates the last states, we pool over all of them. Hidden
    states: `pooled` (B, 2 * hidden) and `classifier` (B, classifier_hidden), after its ReLU.
    """

    sequential = True
    """Costs as much as the texts are long: worth sorting them by length."""

    def __init__(
        self,
        vocabulary_size: int,
        num_outputs: int,
        embedding: int = 100,
        hidden: int = 150,
        layers: int = 1,
        *,
        classifier_hidden: int = 200,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding, padding_idx=0)
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True, dropout=between, bidirectional=True)
        self.mlp = MLP(2 * hidden, num_outputs, [classifier_hidden], dropout, input_dropout=dropout)

    @property
    def head(self) -> nn.Linear:
        return self.mlp.head

    def forward(self, tokens: Tensor, hidden: bool = False) -> Outputs:
        positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        lengths = ((tokens != 0) * positions).amax(1).clamp(min=1)  # (B,) up to the last real token
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, padding_value=float("-inf")
        )  # (B, longest, 2 * hidden)
        pooled = states.max(1).values
        outputs = self.mlp(pooled, hidden)
        if hidden:
            outputs.hidden = {"pooled": pooled, "classifier": outputs.hidden["layer_1"]}
        return outputs


def build_bilstm(model: BiLSTMConfig, info: dict[str, Any], num_outputs: int) -> BiLSTM:
    return BiLSTM(
        info["vocabulary_size"],
        num_outputs,
        model.embedding,
        model.hidden,
        model.layers,
        classifier_hidden=model.classifier_hidden,
        dropout=model.dropout,
    )
