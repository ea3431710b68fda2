"""Inputs as the data stage writes them to the named inputs of an exported graph. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np


def input_names(info: dict[str, Any]) -> tuple[str, ...]:
    """Names of a graph's inputs for the data that `info` describes (`DataInfo.to_dict()`)."""
    if info["kind"] != "text":
        return ("pixels",) if info["kind"] == "image" else ("numbers",)
    pretrained = info["preprocess"]["text"]["tokenizer"] == "pretrained"
    return ("input_ids", "attention_mask") if pretrained else ("tokens",)


def feed(info: dict[str, Any], inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The graph's inputs from images (B, H, W, C) uint8, numbers (B, F) float32 or tokens (B, L) int32.

    The numbers of a pretrained tokenizer, which are kept one higher so that 0 can be padding, become its own.
    """
    names = input_names(info)
    if info["kind"] != "text":
        return {names[0]: inputs}
    tokens = inputs.astype(np.int64)
    if len(names) == 1:
        return {names[0]: tokens}
    return {names[0]: np.maximum(tokens - 1, 0), names[1]: (tokens != 0).astype(np.int64)}


def by_length(inputs: np.ndarray, rows: int, tokens: int) -> list[np.ndarray]:
    """Row numbers of texts (N, L), about one length at a time: at most `rows` of them and `tokens` tokens."""
    lengths = ((inputs != 0) * np.arange(1, inputs.shape[1] + 1)).max(axis=1, initial=1)
    order = np.argsort(lengths, kind="stable")
    found, begin = [], 0
    while begin < len(order):
        ends = lengths[order[begin : begin + rows]]
        fits = max(1, int((ends * np.arange(1, len(ends) + 1) <= tokens).sum()))
        found.append(order[begin : begin + fits])
        begin += fits
    return found
