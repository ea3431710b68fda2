"""A transformer's knowledge as one vector per word piece, for students that look pieces up.

    u_p = mean over the positions of `[CLS] p [SEP]` of the transformer's last hidden states     (H,)
    v_p = a / (a + f_p) * W^T (u_p - mean u),  W (H, D) the first principal axes of all u        (D,)

f_p is the share of piece p among all pieces of the transfer set: common pieces count little in a mean. After
Model2Vec (Minish, 2024), whose weights follow from ranks in the vocabulary instead; these are those of Arora
et al., "A simple but tough-to-beat baseline for sentence embeddings" (ICLR 2017), with their a = 1e-3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network

PIECES_AT_ONCE = 1024


@torch.no_grad()
def piece_states(transformer: Network, info: dict[str, Any]) -> Tensor:
    """(V, H) float32, u of every piece that the data's tokenizer knows, whether texts have it or not.

    Special tokens that the tokenizer lacks are left out. The caller chooses device and arithmetic.
    """
    special = info["preprocess"].get("special", {})
    device = next(transformer.parameters()).device
    pieces = torch.arange(info["vocabulary_size"] - 1, dtype=torch.int32) + 1  # 0 is padding here
    columns = [pieces]
    if "cls" in special:
        columns.insert(0, torch.full_like(pieces, special["cls"] + 1))
    if "sep" in special:
        columns.append(torch.full_like(pieces, special["sep"] + 1))
    tokens = torch.stack(columns, 1)  # (V, 3)
    transformer.eval()
    found = []
    for part in tokens.split(PIECES_AT_ONCE):
        hidden = transformer(part.to(device), hidden=True).hidden
        assert hidden is not None
        last = list(hidden.values())[-1]  # (B, 3, H)
        found.append(last.float().mean(1).cpu())
    return torch.cat(found)


def piece_vectors(states: Tensor, counts: np.ndarray, width: int, frequency: float) -> Tensor:
    """The table (V + 1, D) float32 from u (V, H) and how often each piece occurs (V,); row 0 is padding's.

    Raises ConfigError for a width above H.
    """
    if width > states.shape[1]:
        raise ConfigError(too_wide(width, states.shape[1]))
    centred = states.double() - states.double().mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes.flip(1)[:, :width]
    # An axis has two directions; so that every machine takes the same one, its largest entry is positive.
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    shares = torch.from_numpy(counts / max(1, counts.sum()))
    weights = frequency / (frequency + shares)
    vectors = (centred @ (axes * signs)) * weights[:, None]
    return torch.cat([torch.zeros(1, width), vectors.float()])


def too_wide(width: int, states: int) -> str:
    return (
        f"embedding: {width}, but the transformer that the vectors come from is {states} wide; lower it to "
        f"{states} or less"
    )


@torch.no_grad()
def start_table_(network: Network, vectors: Tensor) -> Network:
    """Put a table (V + 1, D) into a network that looks tokens up in `embedding`. Raises ConfigError."""
    table = getattr(network.body, "embedding", None)
    if table is None or table.weight.shape != vectors.shape:
        found = None if table is None else tuple(table.weight.shape)
        raise ConfigError(f"start: a table of {tuple(vectors.shape)}, but the model's is {found}")
    table.weight.copy_(vectors)
    return network
