"""DarkRank: the order in which a batch's rows are near to each of them."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.gathered import own_rows
from ensemble_kd.objectives.hidden import unit
from ensemble_kd.objectives.relations import Relation, distances


@dataclass(frozen=True, config=STRICT)
class Ranking(Relation):
    """What both forms share: S_ij = -alpha ||f_i - f_j||^beta, and for each row i a list of other rows."""

    alpha: Annotated[float, Field(gt=0, le=1000)] = 3.0
    """Scale of the scores."""
    beta: Annotated[float, Field(ge=1, le=8)] = 3.0
    """Power of the distances."""
    normalise: bool = True
    """Whether features are divided by their length first."""
    list_length: Annotated[int, Field(ge=2, le=1000)] = 4
    """n."""

    @property
    def least_rows(self) -> int:  # type: ignore[override]
        return self.list_length + 1

    def lists(self, student: Outputs, teacher: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores (B, n) of both networks for the n rows that the teacher has nearest, in its order."""
        ours, theirs = (self._scores(features) for features in self.read(student, teacher, batch))
        itself = torch.eye(len(theirs), dtype=torch.bool, device=theirs.device)
        nearest = theirs.masked_fill(itself, -torch.inf)
        order = nearest.argsort(dim=1, descending=True, stable=True)[:, : self.list_length]
        return ours.gather(1, order), theirs.gather(1, order)

    def _scores(self, features: Tensor) -> Tensor:
        return -self.alpha * distances(unit(features) if self.normalise else features).pow(self.beta)


def log_likelihood(scores: Tensor) -> Tensor:
    """log P (...) of the lists (..., n) in the order in which they are: sum_i S_i - log sum_k>=i exp S_k."""
    suffixes = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return (scores - suffixes).sum(-1)


@register("darkrank_hard")
@dataclass(frozen=True, config=STRICT)
class DarkRankHard(Ranking):
    """-log P(pi | f) for each row i, pi the teacher's order of the n rows that it has nearest to i, P(pi | f)
    = prod_m exp S_pi(m) / sum_k>=m exp S_pi(k), S = -alpha ||f_i - f_j||^beta; (B, D), (B, E) -> (B,).

    Chen et al., arXiv 1707.01220 (Plackett and Luce's model of orders). List length 4, alpha and beta 3, as
    in published code, which takes features of length 1 too. The paper adds it to losses on labels.
    """

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        ours, _ = self.lists(student, teacher, batch)
        return own_rows(-log_likelihood(ours), batch.group)


@register("darkrank_soft")
@dataclass(frozen=True, config=STRICT)
class DarkRankSoft(Ranking):
    """KL(P(. | g) || P(. | f)) over all n! orders of the n rows that the teacher has nearest to row i, P as
    in `darkrank_hard`; (B, D), (B, E) -> (B,).

    Chen et al., arXiv 1707.01220. Costs grow with n!; those of `darkrank_hard`, which the paper finds about
    as good, do not.
    """

    list_length: Annotated[int, Field(ge=2, le=6)] = 4
    """n; 6 are 720 orders."""

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        orders = torch.tensor(_orders(self.list_length), device=student.logits.device)  # (n!, n)
        both = self.lists(student, teacher, batch)
        log_q, log_p = (log_likelihood(scores[:, orders]) for scores in both)  # (B, n!)
        return own_rows((log_p.exp() * (log_p - log_q)).sum(1), batch.group)


@cache
def _orders(length: int) -> tuple[tuple[int, ...], ...]:
    return tuple(permutations(range(length)))
