"""Words that a word in its sentence may be exchanged for, as TinyBERT finds them (arXiv 1909.10351).

A word that the language model has as one piece: the K most probable pieces in its place. Other words: the
K nearest word vectors. Only words of letters, and no function words, have candidates.

Deviations: special pieces are no candidates, and the function words are scikit-learn's list.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from ensemble_kd.errors import InputError

MOST_VECTORS = 100_000
"""Lines of the file that are read, as in TinyBERT's program; such files have the frequent words first."""
ROWS_AT_ONCE = 64
"""Masked copies of a text per forward pass."""


class Candidates:
    """The candidates of words, from a language model, word vectors, or both."""

    def __init__(self, count: int, masked_lm: MaskedWords | None, vectors: WordVectors | None) -> None:
        self.count, self.masked_lm, self.vectors = count, masked_lm, vectors

    def of(self, words: list[str], positions: Collection[int]) -> dict[int, list[str]]:
        """By position of a word in the text; positions without candidates are left out."""
        positions = [i for i in sorted(positions) if replaceable(words[i])]
        found = self.masked_lm.candidates(words, positions, self.count) if self.masked_lm else {}
        if self.vectors is not None:
            found |= {i: self.vectors.nearest(words[i], self.count) for i in positions if i not in found}
        return {i: candidates for i, candidates in found.items() if candidates}


def replaceable(word: str) -> bool:
    return word.isalpha() and word.lower() not in ENGLISH_STOP_WORDS


class WordVectors:
    """Nearest words by cosine."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where a line is not a word and as many numbers as in the first line."""
        words, rows, width = [], [], 0
        with Path(path).expanduser().open(encoding="utf-8", errors="replace") as file:
            for line, text in enumerate(file, start=1):
                parts = text.rstrip().split(" ")
                if line == 1 and len(parts) == 2:  # word2vec's format begins with the sizes
                    continue
                width = width or len(parts) - 1
                try:
                    values = np.array(parts[-width:] if width else [], dtype=np.float32)
                except ValueError:
                    values = np.zeros(0, np.float32)
                if len(parts) <= width or not len(values):
                    raise InputError(
                        f"data.text_augment.word_vectors: line {line} of {path} is not a word and "
                        f"{width or 'some'} numbers; expected GloVe's text format"
                    )
                words.append(" ".join(parts[:-width]))
                rows.append(values)
                if len(words) == MOST_VECTORS:
                    break
        if not words:
            raise InputError(f"data.text_augment.word_vectors: {path} is empty; expected GloVe's text format")
        matrix = np.stack(rows)  # (N, D)
        self.words = words
        self.matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        self._number = {word: i for i, word in reversed(list(enumerate(words)))}
        self._known: dict[tuple[str, int], list[str]] = {}

    def nearest(self, word: str, count: int) -> list[str]:
        """The nearest first, without the word itself; none where it has no vector."""
        key = word, count
        if key not in self._known:
            number = self._number.get(word, self._number.get(word.lower()))
            if number is None:
                return []
            likeness = self.matrix @ self.matrix[number]  # (N,)
            likeness[number] = -np.inf
            count = min(count, len(self.words) - 1)
            nearest = np.argpartition(-likeness, count - 1)[:count] if count else np.zeros(0, np.int64)
            nearest = nearest[np.lexsort((nearest, -likeness[nearest]))]
            self._known[key] = [self.words[i] for i in nearest]
        return self._known[key]


class MaskedWords:
    """A masked language model that fills a gap: [CLS] text with the gap [SEP] text as it was [SEP]."""

    def __init__(self, folder: str | Path, use_gpu: bool = False) -> None:
        """Raises InputError where the folder holds no such model with a WordPiece tokenizer."""
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        where = f"data.text_augment.masked_lm: {folder}"
        path = str(Path(folder).expanduser())
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model: Any = AutoModelForMaskedLM.from_pretrained(
                path, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{where} holds no masked language model: {error}") from error
        self.backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if self.backend is None or type(self.backend.model).__name__ != "WordPiece":
            raise InputError(f"{where} has no WordPiece tokenizer, which is needed; use one of BERT's kind")
        self.backend.no_truncation()
        self.backend.no_padding()
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.model = model.eval().to(self.device)
        self.most_pieces = int(model.config.max_position_embeddings)
        self.special = set(self.tokenizer.all_special_ids)

    def candidates(self, words: list[str], positions: list[int], count: int) -> dict[int, list[str]]:
        """By position, where the word is one piece and the text fits; the most probable first."""
        import torch

        encoded = self.backend.encode(words, is_pretokenized=True, add_special_tokens=False)
        room = (self.most_pieces - 3) // 2
        pieces, owners = encoded.ids[:room], encoded.word_ids[:room]
        places: dict[int, list[int]] = {}
        for place, owner in enumerate(owners):
            places.setdefault(owner, []).append(place)
        cut = set(encoded.word_ids[room:])  # of these words a part at least is missing
        single = [i for i in positions if len(places.get(i, [])) == 1 and i not in cut]
        unknown = self.tokenizer.unk_token_id
        single = [i for i in single if pieces[places[i][0]] != unknown]
        if not single:
            return {}
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        row = torch.tensor([first, *pieces, last, *pieces, last])  # (L,)
        kinds = torch.zeros_like(row)
        kinds[len(pieces) + 2 :] = 1
        gaps = torch.tensor([1 + places[i][0] for i in single])
        found: dict[int, list[str]] = {}
        for begin in range(0, len(single), ROWS_AT_ONCE):
            at = gaps[begin : begin + ROWS_AT_ONCE]
            inputs = row.repeat(len(at), 1)  # (B, L)
            each = torch.arange(len(at))
            inputs[each, at] = self.tokenizer.mask_token_id
            with torch.inference_mode():
                logits = self.model(
                    input_ids=inputs.to(self.device),
                    token_type_ids=kinds.expand_as(inputs).to(self.device),
                    attention_mask=torch.ones_like(inputs).to(self.device),
                ).logits[each, at]  # (B, V)
            for i, best in zip(
                single[begin:], logits.topk(min(count, logits.shape[-1])).indices, strict=False
            ):
                names = self.tokenizer.convert_ids_to_tokens(
                    [n for n in best.tolist() if n not in self.special]
                )
                found[i] = [name for name in names if not name.startswith("##")]
        return found
