"""Words to be guessed: the masking of masked language models (BERT, arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.data.splitmix import GOLDEN, scramble, unit_interval
from ensemble_kd.objectives.base import Batch


def uniform(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on (number, seed) alone (splitmix64)."""
    return unit_interval(scramble(numbers.astype(np.uint64) + np.uint64((seed * GOLDEN) & (2**64 - 1))))


@dataclass(frozen=True)
class Masking:
    """Of the tokens that are not special a share is to be guessed: 80% of them masked, 10% another word, 10%
    kept.

    Anew in every epoch, as a function of (seed, epoch, row, position). A text has one such token at least.
    Deviation from DistilBERT's script: all words are as likely, not rare ones more.
    """

    probability: float
    seed: int
    mask_token: int
    """Number of the mask, shifted by one as all tokens are."""
    special: tuple[int, ...]
    """Shifted numbers of tokens that are never masked."""
    vocabulary_size: int
    """Number of tokens and one for padding."""
    piece_map: Tensor | None = None
    """(V,) what the guessed words are called, where the student keeps only some word pieces."""

    def __call__(self, inputs: Tensor, rows: Tensor, epoch: int) -> Batch:
        """(B, L) tokens to a batch with masked inputs, `masked` (B, L) and the words there as labels (P,)."""
        tokens = inputs.cpu().numpy()
        places = rows.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(1 << 20)
        numbers = places + np.arange(tokens.shape[1], dtype=np.uint64)
        draw, kind, word = (uniform(numbers, self.seed * 31 + 3 * epoch + k) for k in range(3))
        open_ = (tokens != 0) & ~np.isin(tokens, self.special)
        draw[~open_] = 2.0
        masked = draw < self.probability
        # The most likely place of a text in which none was drawn.
        none = ~masked.any(1) & open_.any(1)
        masked[none, draw[none].argmin(1)] = True
        others = 1 + (word * (self.vocabulary_size - 1)).astype(tokens.dtype)
        seen = np.where(masked & (kind < 0.8), self.mask_token, tokens)
        seen = np.where(masked & (kind >= 0.9), others, seen)
        labels = torch.from_numpy(tokens[masked].astype(np.int64)) - 1
        if self.piece_map is not None:
            labels = self.piece_map.cpu()[labels]
        device = inputs.device
        return Batch(
            torch.from_numpy(seen.astype(tokens.dtype)).to(device),
            labels.to(device),
            masked=torch.from_numpy(masked).to(device),
        )
