"""A small RoBERTa, for tests: another tokenizer than BERT's."""

from __future__ import annotations

from pathlib import Path

import torch


def write_roberta(folder: Path, texts: list[str]) -> Path:
    """Byte-level pairs, and positions that begin behind the padding token's number."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    torch.manual_seed(2)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    RobertaTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.5,
        id2label={0: "LABEL_0", 1: "LABEL_1"},
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder
