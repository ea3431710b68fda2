"""Objectives on the relations between the rows of a batch: distances, angles, similarities.

f: features (B, D) of the student, g: (B, E) of the teacher; the widths may differ. Each gives every row its
share, so that the mean over rows is the paper's loss. A loss here depends on the whole batch: gradient
accumulation would cut it and is refused; replicas gather their rows first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.gathered import gathered, own_rows
from ensemble_kd.objectives.hidden import at_least_float32, unit
from ensemble_kd.objectives.maps import States, one_state, vectors

AT_ONCE = 2**17
"""Cosines that are computed at once: half a megabyte, which a core's cache holds."""

Positions = Literal["mean", "first"]
"""Of texts' states (B, L, D): the `mean` over the tokens, or the `first` position, [CLS]."""


@dataclass(frozen=True, config=STRICT)
class Relation:
    """What the objectives on relations share."""

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    relates: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2
    maps: ClassVar[bool] = False
    """Whether maps are read, flattened, where both networks have some."""
    states: States = None
    """Names of the states [student, teacher]; null: the features, which the classifier reads."""
    positions: Positions = "mean"
    """Of texts: the `mean` over the tokens, or the `first`, [CLS]."""

    @property
    def reads_last(self) -> bool:
        """Whether the last state of the teacher is read, whatever its name."""
        return self.states is None

    @property
    def features_only(self) -> bool:
        """Whether that is what the store can keep as `features`."""
        return self.states is None and not self.maps

    @property
    def first_only(self) -> bool:
        return self.positions == "first"

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module | None:
        one_state(self.states, student, teacher, self.maps)
        return None

    def read(self, student: Outputs, teacher: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """f and g, float32 at least, of all replicas' rows."""
        pair = one_state(self.states, student, teacher, self.maps)
        both = vectors(pair, student, teacher, self.first_only, flat=self.maps)
        f, g = (gathered(at_least_float32(state), batch.group) for state in both)
        return f, g


def centred_gram(features: Tensor) -> Tensor:
    """<f_i - c, f_j - c>, (B, B), c the mean row: distances stay, and less is lost to rounding."""
    features = features - features.mean(0)
    with torch.autocast(features.device.type, enabled=False):
        return features @ features.T


def distances(features: Tensor) -> Tensor:
    """||f_i - f_j||, (B, B); 0, with a gradient of 0, where rows agree but for rounding."""
    squared, together = squared_distances(centred_gram(features))
    return squared.masked_fill(together, 1.0).sqrt().masked_fill(together, 0.0)


def squared_distances(gram: Tensor) -> tuple[Tensor, Tensor]:
    """||f_i - f_j||^2, (B, B), and where it is no more than the products' rounding; the diagonal is."""
    lengths = gram.diagonal()
    sums = lengths[:, None] + lengths[None, :]
    squared = sums - 2 * gram
    together = squared <= 8 * torch.finfo(gram.dtype).eps * sums
    return squared, together | torch.eye(len(gram), dtype=torch.bool, device=gram.device)


@register("rkd_distance")
@dataclass(frozen=True, config=STRICT)
class RKDDistance(Relation):
    """1/(B-1) sum_j H(||f_i - f_j|| / mu_f, ||g_i - g_j|| / mu_g) for each i; (B, D), (B, E) -> (B,).

    Park et al., arXiv 1904.05068, section 3.2.1. mu: the mean of the batch's distances that are not 0, for
    each network by itself, the student's with its gradient; H: Huber's loss, delta = 1. The paper's weight
    for classification is 25. Deviation: the mean is over pairs of different rows, where the released code's
    also counts the B pairs of a row and itself, which are 0.
    """

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        f, g = self.read(student, teacher, batch)
        losses = F.smooth_l1_loss(_relative(f), _relative(g), reduction="none")  # (B, B)
        return own_rows(losses.sum(1) / (len(f) - 1), batch.group)


def _relative(features: Tensor) -> Tensor:
    """Distances (B, B) over their mean."""
    apart = distances(features)
    # Where all rows agree there is nothing to divide by.
    return apart * ((apart > 0).sum() / apart.sum().clamp(min=torch.finfo(apart.dtype).tiny))


@register("rkd_angle")
@dataclass(frozen=True, config=STRICT)
class RKDAngle(Relation):
    """Mean over i, k of H(cos f_ijk, cos g_ijk) for each j, cos f_ijk = <e_ij, e_kj>, e_ij = (f_i - f_j) /
    ||f_i - f_j||; (B, D), (B, E) -> (B,).

    Park et al., arXiv 1904.05068, section 3.2.2. H: Huber's loss, delta = 1; i, j, k are three different
    rows. The paper's weight for classification is 50. Deviations: the mean is over such triples, where the
    released code's counts all B^3; cosines come from the Gram matrix, (G_ik - G_ij - G_jk + G_jj) /
    (d_ij d_jk), which needs no (B, B, D) tensor. Rows that agree have no angle: cos is 0 there. Costs grow
    with B^3.
    """

    least_rows: ClassVar[int] = 3

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        f, g = self.read(student, teacher, batch)
        rows = len(f)
        losses = _Angles.apply(f, g)
        return own_rows(losses / ((rows - 1) * (rows - 2)), batch.group)


class _Angles(torch.autograd.Function):
    """sum_i,k H(cos f_ijk - cos g_ijk) for each j, (B,), some vertices j at a time: what these need stays in
    the cache, and no (B, B, B) tensor is kept for the gradient.

    With u_i = f_i - f_j, r_i = 1 / ||u_i||, P = dH / dcos (symmetric in i, k): the gradient by u_i is
    sum_k M_ik u_k - s_i u_i, M_ik = 2 r_i P_ik r_k and s_i = 2 r_i^2 sum_k P_ik cos_ijk.
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(f, g)
        losses = f.new_empty(len(f))
        for part, _, difference in _cosines(f, g):
            slope = difference.clamp(-1, 1)
            losses[part] = (slope * difference.sub_(slope, alpha=0.5)).sum((1, 2))
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        f, g = ctx.saved_tensors
        _, inverse = _gram_and_inverse(f)  # (j, i)
        pulls = torch.zeros_like(inverse)  # sum_j M
        own, rest = torch.empty_like(inverse), torch.empty_like(inverse)  # s, and sum_k M, (j, i)
        for part, cosines, difference in _cosines(f, g):
            r = inverse[part]
            slope = difference.clamp_(-1, 1).mul_(2 * gradients[0][part, None, None])
            own[part] = (slope * cosines).sum(2) * r.square()
            slope.mul_(r[:, :, None]).mul_(r[:, None, :])
            rest[part] = slope.sum(2)
            pulls += slope.sum(0)
        # f_i appears as an end of an angle, f_j as its vertex in every u_i.
        beside = own - rest
        pulls += beside + beside.T
        pulls.diagonal().sub_(own.sum(0) + beside.sum(1))
        with torch.autocast(f.device.type, enabled=False):
            return pulls @ (f - f.mean(0)), None


def _cosines(f: Tensor, g: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Vertices j, cos f_ijk and cos f_ijk - cos g_ijk, (j, i, k) each, the latter 0 where i = k."""
    rows = len(f)
    step = max(1, AT_ONCE // rows**2)
    both = _gram_and_inverse(f), _gram_and_inverse(g)
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        ours, theirs = (_cosines_at(part, *parts) for parts in both)
        difference = theirs.neg_().add_(ours)
        difference.diagonal(dim1=1, dim2=2).zero_()
        yield part, ours, difference


def _cosines_at(part: slice, gram: Tensor, inverse: Tensor) -> Tensor:
    own, r = gram[part], inverse[part]  # (j, i)
    products = gram[None] - own[:, :, None]
    products.sub_((own - gram.diagonal()[part, None])[:, None, :])
    return products.mul_(r[:, :, None]).mul_(r[:, None, :])


def _gram_and_inverse(features: Tensor) -> tuple[Tensor, Tensor]:
    """The centred Gram matrix, and 1 / ||f_i - f_j||, which is 0 where rows agree; (B, B) each."""
    gram = centred_gram(features)
    squared, together = squared_distances(gram)
    return gram, squared.masked_fill_(together, 1.0).rsqrt_().masked_fill_(together, 0.0)


@register("similarity_preserving")
@dataclass(frozen=True, config=STRICT)
class SimilarityPreserving(Relation):
    """1/B sum_j (S_ij - R_ij)^2 for each i, S the rows of f f^T divided by their lengths, R those of g g^T;
    (B, D), (B, E) -> (B,).

    Tung and Mori, arXiv 1907.09682; their weight is 3000. `states: null` reads the last maps,
    flattened, where both networks have some, else the features.
    """

    maps: ClassVar[bool] = True

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        f, g = self.read(student, teacher, batch)
        with torch.autocast(f.device.type, enabled=False):
            losses = (unit(f @ f.T) - unit(g @ g.T)).square().mean(1)
        return own_rows(losses, batch.group)


@register("correlation_congruence")
@dataclass(frozen=True, config=STRICT)
class CorrelationCongruence(Relation):
    """1/B sum_j (K(f_i, f_j) - K(g_i, g_j))^2 for each i, K(x, y) = exp(-2 gamma) sum_p (2 gamma x.y)^p / p!,
    p = 0 ... order, of rows of length 1; (B, D), (B, E) -> (B,).

    Peng et al., arXiv 1904.01802: the Gaussian kernel by its Taylor series (order 2, gamma 0.4).
    Deviation: their samplers, which put rows of one class into a batch, are left out.
    """

    gamma: Annotated[float, Field(gt=0, le=100)] = 0.4
    """Of the Gaussian kernel exp(-gamma ||x - y||^2)."""
    order: Annotated[int, Field(ge=1, le=10)] = 2
    """Terms of the series beside the constant one."""

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        f, g = (self._kernel(unit(features)) for features in self.read(student, teacher, batch))
        return own_rows((f - g).square().mean(1), batch.group)

    def _kernel(self, rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            products = 2 * self.gamma * (rows @ rows.T)
        series = torch.ones_like(products)
        for p in range(self.order, 0, -1):  # Horner's scheme
            series = 1 + products / p * series
        return series * math.exp(-2 * self.gamma)
