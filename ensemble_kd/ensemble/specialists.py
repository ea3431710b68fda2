"""A generalist and specialists: the dustbin, its bias, and one distribution from all of them.

Hinton, Vinyals and Dean, arXiv 1503.02531, sections 5.3 and 5.4. A specialist m knows the classes S_m and
one more output, the dustbin, for every class outside; its last column is the dustbin throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 4096
"""Examples that are solved together: their matrices stay in the processor's cache."""
POOL = 256
"""Sets of active specialists with fewer examples than this share a chunk."""
CHECK = 4
"""Iterations between two tests of convergence."""
LEAST = 1e-7
"""Mass to which a class that grows from less is lifted."""


def outside_classes(num_classes: int, classes: Sequence[int] | Tensor) -> Tensor:
    """The other classes, ascending."""
    outside = torch.ones(num_classes, dtype=torch.bool)
    outside[torch.as_tensor(classes, dtype=torch.long).cpu()] = False
    return outside.nonzero()[:, 0]


def dustbin_logit(logits: Tensor, inside: Sequence[int] | Tensor) -> Tensor:
    """log sum_{j not in S} exp z_j: (B, C) -> (B,); -inf where S holds all classes."""
    outside = outside_classes(logits.shape[1], inside).to(logits.device)
    return torch.logsumexp(logits[:, outside], dim=1)


def specialist_logits_from_generalist(logits: Tensor, classes: Sequence[int] | Tensor) -> Tensor:
    """(B, C) -> (B, |S| + 1): the rows of S in their order, then the dustbin.

    Its softmax is the generalist's probability of each class of S and of all others together. Also what a
    specialist with a full softmax says about its classes.
    """
    inside = torch.as_tensor(classes, dtype=torch.long, device=logits.device)
    return torch.cat([logits[:, inside], dustbin_logit(logits, inside)[:, None]], dim=1)


def sampling_correction(special_fraction: float, natural_share: float) -> float:
    """log((s / (1 - s)) ((1 - pi) / pi)): add it to the dustbin logit after training at share s.

    s is the share of a specialist's examples that came from its classes, pi their share in the data. Hinton
    et al. (arXiv 1503.02531) word it as the log of the oversampling; this is its exact form, positive for
    rare classes.
    """
    for name, share in (("special_fraction", special_fraction), ("natural_share", natural_share)):
        if not 0 < share < 1:
            raise ValueError(f"{name}: between 0 and 1, both excluded; got {share}")
    return math.log(special_fraction / (1 - special_fraction) * ((1 - natural_share) / natural_share))


@torch.no_grad()
def fit_dustbin_bias(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    limit: float = 10.0,
    tolerance: float = 1e-9,
) -> float:
    """The b that minimises the mean cross-entropy of `logits` + b at the dustbin, within +-`limit`.

    `logits` (N, |S| + 1) and `targets` (N,) of validation examples at their natural shares; target |S| is
    the dustbin. `weights` (N,), at least 0, count examples more or less: 0 for those on which the
    specialist's gate is closed, for instance. The loss is convex in b, with derivative
    mean(sigmoid(a + b) - [target is dustbin]), a = dustbin logit - logsumexp of the others; Newton's steps,
    kept between bounds that bisection narrows. Without examples it is 0.
    """
    logits = logits.double()
    last = logits.shape[1] - 1
    odds = logits[:, last] - torch.logsumexp(logits[:, :last], dim=1)  # (N,) a
    weights = torch.ones_like(odds) if weights is None else weights.double()
    if bool((weights < 0).any()):
        raise ValueError("weights: at least 0")
    total = float(weights.sum())
    if not total > 0:
        return 0.0
    weights = weights / total
    wanted = float((weights * (targets == last)).sum())
    low, high, bias = -limit, limit, 0.0
    for _ in range(100):
        p = torch.sigmoid(odds + bias)
        slope = float((weights * p).sum()) - wanted
        low, high = (low, bias) if slope > 0 else (bias, high)
        curvature = float((weights * p * (1 - p)).sum())
        step = bias - slope / curvature if curvature > 0 else math.inf
        step = step if low < step < high else (low + high) / 2
        if abs(step - bias) < tolerance:
            return step
        bias = step
    return bias


@torch.no_grad()
def active_specialists(
    generalist_log_p: Tensor, specialist_classes: Sequence[Sequence[int] | Tensor], top_n: int = 1
) -> Tensor:
    """(B, M) bool: does S_m hold one of the generalist's `top_n` most probable classes?"""
    num_classes = generalist_log_p.shape[1]
    if top_n < 1:
        raise ValueError(f"top_n: at least 1, got {top_n}")
    member = torch.zeros(num_classes, len(specialist_classes), dtype=torch.bool)
    for m, classes in enumerate(specialist_classes):
        member[torch.as_tensor(classes, dtype=torch.long).cpu(), m] = True
    member = member.to(generalist_log_p.device)
    if top_n == 1:
        return member[generalist_log_p.argmax(1)]
    top = generalist_log_p.topk(min(top_n, num_classes), dim=1).indices  # (B, n)
    active = member[top[:, 0]]
    for rank in range(1, top.shape[1]):
        active |= member[top[:, rank]]
    return active


@dataclass(frozen=True)
class End:
    """When the iteration ends: as `tolerance` and `max_iterations` of `combine`."""

    tolerance: float
    iterations: int


@torch.no_grad()
def combine(
    generalist_log_p: Tensor,
    specialists: Sequence[tuple[Sequence[int] | Tensor, Tensor]],
    *,
    top_n: int = 1,
    weight: float | Sequence[float] = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int = 2000,
) -> Tensor:
    """log q (B, C) with q = argmin KL(p_g || q) + sum_{m active} w_m KL(p_m || q), example by example.

    KL(p_m || q) is over S_m and the dustbin, for which q is summed over all classes outside S_m. Active are
    the specialists that know one of the generalist's `top_n` most probable classes; where none is, q = p_g
    bit for bit. `specialists` are pairs of S_m and log p_m (B, |S_m| + 1); `weight` is one number or one for
    each of them, 0 for "off". All at T = 1.

    Fixed point (EM), which never raises the objective, from q = p_g:

        q <- (p_g + sum_m w_m t_m(q)) / (1 + sum_m w_m)
        t_m(q)_i = p_m_i in S_m, and p_m_dustbin q_i / sum_{j not in S_m} q_j outside

    until the estimated distance to the limit, the L1 norm of a step over 1 - rate, is below `tolerance`
    for each example and no class is still growing, or after `max_iterations`. Deviation: the paper descends
    the gradient over logits. Classes that the same active specialists know differ, in the limit, by p_g +
    sum of w_m p_m over these only. With these proportions from the start, each step concerns the sums over
    such classes alone: two unknowns for one specialist. It runs in float64, for examples with equal or
    similar active sets together.
    """
    weights = _weights(weight, len(specialists))
    num_classes = generalist_log_p.shape[1]
    index = [torch.as_tensor(classes, dtype=torch.long).cpu() for classes, _ in specialists]
    for inside, (_, log_p) in zip(index, specialists, strict=True):
        if log_p.shape != (len(generalist_log_p), len(inside) + 1):
            raise ValueError(
                f"log_p of a specialist of {len(inside)} classes: shape "
                f"{(len(generalist_log_p), len(inside) + 1)}, got {tuple(log_p.shape)}"
            )
    result = generalist_log_p.clone()
    if not specialists or not len(result):
        return result
    active = active_specialists(generalist_log_p, index, top_n).cpu().numpy() & (weights > 0)
    for rows in _groups(active):
        used = np.flatnonzero(active[rows].any(0)).tolist()
        gates = torch.from_numpy(active[rows][:, used] * weights[used]).to(result.device)  # (b, m)
        _solve(
            result,
            torch.from_numpy(rows).to(result.device),
            [(index[m].to(result.device), specialists[m][1]) for m in used],
            gates,
            num_classes,
            End(tolerance, max_iterations),
        )
    return result


def _weights(weight: float | Sequence[float], num_specialists: int) -> np.ndarray:
    weights = np.asarray(weight, dtype=np.float64)
    weights = np.full(num_specialists, weights) if weights.ndim == 0 else weights
    if weights.shape != (num_specialists,):
        raise ValueError(f"weight: one number, or one for each of {num_specialists}; got {weights.tolist()}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weight: finite and at least 0, got {weights.tolist()}")
    return weights


def _groups(active: np.ndarray) -> Iterator[np.ndarray]:
    """Rows with the same active set (B, M), in chunks; rare sets are pooled with those next to them."""
    rows = np.flatnonzero(active.any(1))
    if not len(rows):
        return
    bits = np.ascontiguousarray(np.packbits(active[rows], axis=1))
    packed = bits.view(np.dtype((np.void, bits.shape[1])))[:, 0]
    order = np.argsort(packed, kind="stable")
    rows, packed = rows[order], packed[order]
    starts = np.flatnonzero(np.concatenate([[True], packed[1:] != packed[:-1]])).tolist()
    begin = 0
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        if end - start >= POOL and start > begin:
            yield rows[begin:start]
            begin = start
        if end - begin >= POOL or end == len(rows):
            for i in range(begin, end, CHUNK):
                yield rows[i : min(i + CHUNK, end)]
            begin = end


def _solve(
    result: Tensor,
    rows: Tensor,
    specialists: list[tuple[Tensor, Tensor]],
    gates: Tensor,
    num_classes: int,
    end: End,
) -> None:
    """Write log q of some rows into `result` (B, C), which holds log p_g there.

    Columns are the u classes that one of these specialists knows, ascending, and last the sum of all
    others. `gates` (b, m) are the weights, 0 where a specialist is not active.
    """
    known = torch.unique(torch.cat([inside for inside, _ in specialists]))  # (u,)
    others = outside_classes(num_classes, known).to(known.device)
    log_g = result[rows]  # (b, C)
    p_g = torch.empty(len(rows), len(known) + 1, dtype=torch.float64, device=result.device)
    torch.exp(log_g[:, known].double(), out=p_g[:, :-1])
    log_rest = torch.logsumexp(log_g[:, others].double(), 1) if len(others) else None
    p_g[:, -1] = 0.0 if log_rest is None else log_rest.exp()
    p_g /= p_g.sum(1, keepdim=True)

    fixed = p_g.clone()  # (b, u + 1) what does not change: p_g_i + sum of w_m p_m_i over the m that know i
    outside = torch.ones(len(specialists), len(known) + 1, dtype=torch.float64, device=result.device)
    dustbins = torch.empty_like(gates)  # (b, m) w_m p_m_dustbin
    for m, (inside, log_p) in enumerate(specialists):
        p = torch.softmax(log_p[rows].double(), 1) * gates[:, m, None]
        columns = torch.searchsorted(known, inside)
        fixed.index_add_(1, columns, p[:, :-1])
        outside[m, columns] = 0.0
        dustbins[:, m] = p[:, -1]
    total = 1 + gates.sum(1, keepdim=True)  # (b, 1)
    # Classes that the same specialists know: one unknown, of which each class has a fixed share.
    kinds, kind = torch.unique(outside, dim=1, return_inverse=True)  # (m, k), (u + 1,)
    empty = torch.zeros(len(rows), kinds.shape[1], dtype=torch.float64, device=result.device)
    fixed_sums = empty.index_add(1, kind, fixed)  # (b, k)
    sums = _iterate(
        empty.index_add(1, kind, p_g),
        fixed_sums / total,
        dustbins / total,
        kinds,
        total[:, 0],
        end,
    )  # (b, k)
    q = fixed * (sums / fixed_sums.clamp(min=1e-300))[:, kind]  # (b, u + 1)

    dtype = result.dtype
    if log_rest is not None:
        # The proportions inside the rest are p_g's; where it has no mass there is nothing to scale.
        shift = torch.where(q[:, -1] > 0, q[:, -1].log() - log_rest, 0.0)
        log_g = (log_g.double() + shift[:, None]).to(dtype)
    log_g[:, known] = q[:, :-1].clamp(min=1e-300).log().to(dtype)  # far below what float64 adds up
    result[rows] = log_g


def _iterate(
    q: Tensor,
    fixed: Tensor,
    dustbins: Tensor,
    outside: Tensor,
    total: Tensor,
    end: End,
) -> Tensor:
    """q <- fixed + q * (dustbins / (q outside^T)) outside; (b, k) from `fixed` and `q` of that shape.

    `dustbins` (b, m), `outside` (m, k) 0 or 1, `total` (b,) the sum of all weights.
    """
    answer = q.clone()
    places = torch.arange(len(q), device=q.device)
    before = torch.full_like(total, math.inf)  # (b,) L1 norm of the step at the last test
    for iteration in range(1, end.iterations + 1):
        mass = (q @ outside.T).clamp_(min=1e-300)  # (b, m)
        growth = (dustbins / mass) @ outside  # (b, k), at most 1 at the minimum
        new = torch.addcmul(fixed, q, growth)
        if iteration % CHECK and iteration < end.iterations:
            q = new
            continue
        step = (new - q).abs_().sum(1)
        q = new
        rate = (step / before).pow_(1 / CHECK).nan_to_num_(0.0).clamp_(max=1 - 1e-9)
        # A step bounds the distance only with the rate; the first test has none and supposes the one that
        # holds where the dustbins agree with the generalist, 1 - 1 / total.
        done = step * torch.maximum(total, 1 / (1 - rate)) < end.tolerance
        # Steps are short near a saddle too: a class that p_g all but excludes may end with much, and grow to
        # it by a few percent a step from 1e-17. As it grows, a little more of it lowers the objective.
        growing = growth > 1 + 1e-6
        done &= ~growing.any(1)
        if iteration < end.iterations:  # the next step brings the sum back to 1
            q = torch.where(growing & (q > 0) & (q < LEAST), LEAST, q)
        before = step
        if bool(done.all()):
            break
        if int(done.sum()) * 2 > len(done):  # go on with those that need it
            answer[places[done]] = q[done]
            places, q, fixed, dustbins = places[~done], q[~done], fixed[~done], dustbins[~done]
            total, before = total[~done], before[~done]
    answer[places] = q
    return answer
