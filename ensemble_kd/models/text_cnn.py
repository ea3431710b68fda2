"""Convolutions over word vectors for token numbers (arXiv 1408.5882)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.config import TextCNNConfig
from ensemble_kd.models.mlp import MLP
from ensemble_kd.models.outputs import Outputs


class TextCNN(nn.Module):
    """Filters over each w tokens in a row, ReLU, maximum over the text, dropout, then an MLP.

    Takes (B, L) integers where 0 is padding, and gives the same result for any amount of it: a window
    begins at each token of the text, and behind the last one it reads zeros. A text without tokens gives
    zeros. Hidden states: `pooled` (B, widths * filters) and the MLP's `layer_1`, ... (B, units).
    Deviations: one table of vectors, which is trained; no bound on the norm of the classifier's weights.
    """

    sequential = True
    """Costs as much as the texts are long: worth sorting them by length."""

    def __init__(
        self,
        vocabulary_size: int,
        num_outputs: int,
        embedding: int = 128,
        widths: Sequence[int] = (2, 3, 4),
        filters: int = 100,
        *,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.normal_(std=0.1)
            self.embedding.weight[0].zero_()
        self.filters = nn.ModuleList(nn.Conv1d(embedding, filters, width) for width in widths)
        self.mlp = MLP(filters * len(widths), num_outputs, hidden, dropout, input_dropout=dropout)
        self.register_buffer("row_of", None, persistent=False)

    row_of: Tensor | None
    """(V,) row of each token, where `models.rows` has cut the table."""
    cut: tuple[Tensor, list[Tensor]] | None = None
    """What it has cut off."""

    @property
    def tables(self) -> list[tuple[nn.Module, str]]:
        return [(self.embedding, "weight")]

    @property
    def head(self) -> nn.Linear:
        return self.mlp.head

    def forward(self, tokens: Tensor, hidden: bool = False) -> Outputs:
        if self.row_of is not None:
            tokens = self.row_of[tokens.to(torch.int64)]
        vectors = self.embedding(tokens)  # (B, L, D)
        present = (tokens != 0).unsqueeze(2).to(vectors.dtype)
        # Not left to `padding_idx`: torch.func.vmap does not heed it where tokens differ between networks.
        vectors, present = (vectors * present).transpose(1, 2), present.transpose(1, 2)  # (B, D or 1, L)
        pooled = []
        for layer in self.filters:
            assert isinstance(layer, nn.Conv1d)
            found = F.relu(layer(F.pad(vectors, (0, layer.kernel_size[0] - 1))))  # (B, F, L)
            # After ReLU nothing is below 0: windows that begin behind the text cannot be the largest.
            pooled.append((found * present.to(found.dtype)).amax(2))
        features = torch.cat(pooled, 1)
        outputs = self.mlp(features, hidden)
        if hidden:
            outputs.hidden = {"pooled": features, **outputs.hidden}
        return outputs


def build_text_cnn(model: TextCNNConfig, info: dict[str, Any], num_outputs: int) -> TextCNN:
    return TextCNN(
        info["vocabulary_size"],
        num_outputs,
        model.embedding,
        model.widths,
        model.filters,
        hidden=model.hidden,
        dropout=model.dropout,
    )
