"""A small pretrained tokenizer as transformers saves one, for the tests of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = "card lost stolen pay payment bank is it my a the cat sat on mat".split()
PIECES = ["##s", "##ing", "##ment", "##ed", "[", "]", "cls", "sep", "mask", ",", ".", "?"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES]


def write_tokenizer(folder: Path, vocabulary: list[str] = VOCABULARY, **settings: Any) -> Path:
    """`vocab.txt` of a BERT; `to_json` makes a `tokenizer.json` of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(vocabulary)}))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def to_json(folder: Path) -> Path:
    """Put `tokenizer.json` in the place of `vocab.txt`, with truncation and padding switched on."""
    from tokenizers import Tokenizer
    from tokenizers.implementations import BertWordPieceTokenizer

    made: Tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)._tokenizer
    made.enable_truncation(7)
    made.enable_padding(length=7)
    (folder / "tokenizer.json").write_text(made.to_str(pretty=True))
    (folder / "vocab.txt").unlink()
    return folder
