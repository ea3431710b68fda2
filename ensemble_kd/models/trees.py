"""Boosted trees as arrays: what scikit-learn fitted, computed by torch and stored as safetensors.

T trees of at most N nodes, D levels deep, on F columns, for K of the C classes. Nothing is pickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_kd.config import TreesConfig
from ensemble_kd.models.outputs import Outputs

ARRAYS = ("feature", "threshold", "below", "value", "base", "classes", "depth")
AT_ONCE = 2**22
"""Rows times trees that are followed at a time."""


class Trees(nn.Module):
    """v_k = base_k + sum over rounds of the leaf that a row falls into, k = 1..K.

    Takes (B, F) float; logits (B, C). Of two classes the first has logit 0 and no trees. A class that no row
    of the fit had is as unlikely as the least likely of the others. No hidden states, no parameters; a fresh
    one has no trees, and `train.trees` fits them.
    """

    feature: Tensor
    """(T, N) int64: the column that a node looks at."""
    threshold: Tensor
    """(T, N) float64: up to this a row goes to the left; infinite at a leaf."""
    below: Tensor
    """(2, T, N) int64: left and right; a leaf's are itself."""
    value: Tensor
    """(T, N) float64: of a leaf, 0 elsewhere. Tree t is of output t mod K."""
    base: Tensor
    """(K,) float64"""
    classes: Tensor
    """(P,) int64: which outputs there are; P = K, or 2 where K = 1."""
    depth: Tensor
    """() int64: D"""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        for name, array in empty(num_outputs).items():
            self.register_buffer(name, torch.from_numpy(array))

    def fill_(self, arrays: dict[str, np.ndarray]) -> None:
        """Put trees in, of any number and size; `arrays` by the names of `ARRAYS`."""
        for name in ARRAYS:
            setattr(self, name, torch.from_numpy(np.ascontiguousarray(arrays[name])).to(self.base.device))

    def make_room_(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Take the shapes of a file's tensors, so that they can be loaded."""
        for name in ARRAYS:
            shape = shapes.get(f"body.{name}", getattr(self, name).shape)
            setattr(self, name, torch.zeros(shape, dtype=getattr(self, name).dtype))

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        x = x.flatten(1).double()  # (B, F)
        scores = self.base.expand(len(x), -1)  # (B, K)
        rounds = max(1, AT_ONCE // (max(1, len(x)) * len(self.base)))
        for begin in range(0, self.rounds, rounds):
            scores = scores + self._rounds(x, begin, begin + rounds)
        return Outputs(self._logits(scores), {} if hidden else None)

    def staged(self, x: Tensor, every: int) -> Iterator[tuple[int, Tensor]]:
        """Rounds and logits (B, C) with so many of them, `every` so many."""
        x = x.flatten(1).double()
        scores = self.base.expand(len(x), -1)
        for begin in range(0, self.rounds, every):
            end = min(begin + every, self.rounds)
            scores = scores + self._rounds(x, begin, end)
            yield end, self._logits(scores)

    @property
    def rounds(self) -> int:
        return len(self.feature) // max(1, len(self.base))

    def cut_(self, rounds: int) -> None:
        """Keep the first rounds alone."""
        trees = rounds * len(self.base)
        self.below = self.below[:, :trees].contiguous()
        for name in ("feature", "threshold", "value"):
            setattr(self, name, getattr(self, name)[:trees].contiguous())

    def _rounds(self, x: Tensor, begin: int, end: int) -> Tensor:
        """(B, K) what these rounds add for rows (B, F)."""
        per_round = len(self.base)
        leaves = self._leaves(x, slice(begin * per_round, end * per_round))  # (B, trees)
        return leaves.view(len(x), -1, per_round).sum(1)

    def _logits(self, scores: Tensor) -> Tensor:
        """(B, C) from (B, K)."""
        if len(self.classes) > scores.shape[1]:
            scores = torch.cat([torch.zeros_like(scores), scores], 1)  # (B, P)
        logits = scores.amin(1, keepdim=True).expand(-1, self.num_outputs).clone()
        logits[:, self.classes] = scores
        return logits.float()

    def _leaves(self, x: Tensor, part: slice) -> Tensor:
        """(B, trees) values of the leaves that rows (B, F) fall into."""
        trees, nodes = self.feature[part].shape
        start = torch.arange(trees, device=x.device) * nodes
        feature, threshold = self.feature[part].reshape(-1), self.threshold[part].reshape(-1)
        left, right = ((side[part] + start[:, None]).reshape(-1) for side in self.below)
        at = start.expand(len(x), -1)  # (B, trees) numbers of nodes
        for _ in range(int(self.depth)):
            goes_left = x.gather(1, feature[at]) <= threshold[at]
            at = torch.where(goes_left, left[at], right[at])
        return self.value[part].reshape(-1)[at]


def empty(num_outputs: int) -> dict[str, np.ndarray]:
    """The arrays of no trees at all."""
    return {
        "feature": np.zeros((0, 1), np.int64),
        "threshold": np.zeros((0, 1)),
        "below": np.zeros((2, 0, 1), np.int64),
        "value": np.zeros((0, 1)),
        "base": np.zeros(num_outputs),
        "classes": np.arange(num_outputs),
        "depth": np.array(0),
    }


def build_trees(model: TreesConfig, info: dict[str, Any], num_outputs: int) -> Trees:
    return Trees(num_outputs)


def as_arrays(predictors: list[list[Any]], base: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """`ARRAYS` of scikit-learn's fitted rounds, each of K trees whose `nodes` are a structured array."""
    trees = [tree.nodes for one_round in predictors for tree in one_round]
    most = max((len(nodes) for nodes in trees), default=1)
    found = empty(0) | {"base": np.asarray(base, np.float64).ravel(), "classes": classes.astype(np.int64)}
    shape = (len(trees), most)
    found |= {"feature": np.zeros(shape, np.int64), "threshold": np.full(shape, math.inf)}
    found |= {"below": np.zeros((2, *shape), np.int64), "value": np.zeros(shape)}
    for i, nodes in enumerate(trees):
        n, leaf, own = len(nodes), nodes["is_leaf"].astype(bool), np.arange(len(nodes))
        found["feature"][i, :n] = np.where(leaf, 0, nodes["feature_idx"])
        found["threshold"][i, :n] = np.where(leaf, math.inf, nodes["num_threshold"])
        for side, name in enumerate(("left", "right")):
            found["below"][side, i, :n] = np.where(leaf, own, nodes[name].astype(np.int64))
        found["value"][i, :n] = np.where(leaf, nodes["value"], 0.0)
    found["depth"] = np.array(max((int(nodes["depth"].max()) for nodes in trees), default=0))
    return found
