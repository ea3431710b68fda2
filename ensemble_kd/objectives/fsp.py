"""Flow of solution procedure: how a network's maps change from the beginning of a section to its end."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.hidden import at_least_float32
from ensemble_kd.objectives.layers import Pair
from ensemble_kd.objectives.maps import blocks, listing, pooled_alike, sides


def _read(value: Any) -> tuple[tuple[str, str], ...] | None:
    if value is None:
        return None
    if isinstance(value, list | tuple) and value:
        pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in value]
        if all(len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs):
            return tuple((pair[0], pair[1]) for pair in pairs)
    raise PydanticCustomError("sections", "input should be null or a list of pairs [first map, last map]")


Sections = Annotated[tuple[tuple[str, str], ...] | None, PlainValidator(_read)]


class ToWidth(nn.Module):
    """Per map of the student a 1x1 convolution to the teacher's channels, where theirs differ.

    F -> W F + b, E -> V E + c at each place turn G into (W G + b mean(E)^T) V^T + (W mean(F) + b) c^T, and
    that is computed in their stead: maps are far larger than G.
    """

    def __init__(self, channels: dict[str, tuple[int, int]], like: Tensor) -> None:
        super().__init__()
        made: Any = {"device": like.device, "dtype": at_least_float32(like).dtype}
        self.places = {name: i for i, name in enumerate(channels)}
        self.maps = nn.ModuleList(nn.Linear(a, b, **made) for a, b in channels.values())

    def forward(self, flow: Tensor, first: Tensor, last: Tensor, names: tuple[str, str]) -> Tensor:
        """G of the mapped maps, from that of the maps as they are, `flow` (B, m, n), and their means."""
        with torch.autocast(flow.device.type, enabled=False):
            if names[0] in self.places:
                weight, bias = self._of(names[0])
                flow = weight @ flow + bias[:, None] * last[:, None, :]
                first = F.linear(first, weight, bias)
            if names[1] in self.places:
                weight, bias = self._of(names[1])
                flow = flow @ weight.T + first[:, :, None] * bias
            return flow

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        linear: Any = self.maps[self.places[name]]
        return linear.weight, linear.bias


@register("fsp")
@dataclass(frozen=True, config=STRICT)
class FSP:
    """sum_k ||G_s,k - G_t,k||_F^2, G_ij = 1/(HW) sum_x F_i(x) E_j(x), F and E the first and last map of
    section k, (B, m, H, W) and (B, n, H, W) -> (B,).

    Yim et al., CVPR 2017 ("A Gift from Knowledge Distillation"), all sections with the weight 1; there it is
    a first phase, and labels alone follow. `reduction: mean` divides by m n, as published code does.
    Deviations: where first and last map differ in size, the larger is averaged down (the paper takes the
    largest of each square); where the student's channels differ from the teacher's, a learned 1x1
    convolution with bias stands before the student's maps. The paper's networks have equal channels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    sections: Sections = None
    """Pairs [first map, last map] of the student. null: `stage_k_first` and `stage_k` of a residual network,
    else each block and the next."""
    teacher_sections: Sections = None
    """Those of the teacher; null as above."""
    projection: Literal["auto", "none"] = "auto"
    """`auto`: the 1x1 convolution where channels differ; `none`: these must be equal."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the entries of G."""

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module | None:
        channels: dict[str, tuple[int, int]] = {}  # of each of the student's maps: its own, the teacher's
        problems = []
        for ours, theirs in zip(*self._both(student, teacher), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                s, t = student.hidden[a], teacher.hidden[b]  # type: ignore[index]
                told = sides(Pair((a, b), s, t))
                if not s.dim() == t.dim() == 4:
                    problems.append(f"sections: {told}; maps (channels, height, width) are needed of both")
                elif self.projection == "none" and s.shape[1] != t.shape[1]:
                    problems.append(f"projection: {told}; set projection: auto, or use equal channels")
                elif channels.setdefault(a, (s.shape[1], t.shape[1]))[1] != t.shape[1]:
                    problems.append(
                        f"sections: {told}, and {a} is held against {channels[a][1]} channels elsewhere; "
                        "pair each map with maps of one width"
                    )
        if problems:
            raise ConfigError(problems)
        channels = {name: pair for name, pair in channels.items() if pair[0] != pair[1]}
        if not channels:
            return None
        return ToWidth(channels, next(iter(student.hidden.values())))  # type: ignore[union-attr]

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        assert student.hidden is not None and teacher.hidden is not None, "as `needs` says"
        terms = []
        for ours, theirs in zip(*self._both(student, teacher), strict=True):
            own = flow(*(at_least_float32(student.hidden[name]) for name in ours))
            maps = (at_least_float32(teacher.hidden[name].detach()) for name in theirs)
            target = products(*map(_places, pooled_alike(*maps)))
            mapped = own[0] if learned is None else learned(*own, ours)
            squares = (mapped - target).square()  # (B, m, n)
            terms.append(squares.mean((1, 2)) if self.reduction == "mean" else squares.sum((1, 2)))
        return torch.stack(terms).sum(0)

    def _both(
        self, student: Outputs, teacher: Outputs
    ) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        ours = self.sections or own_sections(student)
        theirs = self.teacher_sections or own_sections(teacher)
        have = f"the student has {listing(student)}, the teacher {listing(teacher)}"
        problems = []
        for setting, chosen, side in (
            ("sections", ours, student),
            ("teacher_sections", theirs, teacher),
        ):
            if not chosen:
                problems.append(
                    f"{setting}: no two maps; {have}; use networks for images of two blocks or more"
                )
            missing = [name for pair in chosen for name in pair if name not in (side.hidden or {})]
            if missing:
                problems.append(f"{setting}: {', '.join(missing)} not there; {have}; choose among these")
        if not problems and len(ours) != len(theirs):
            problems.append(
                f"sections: {len(ours)} of the student ({_told(ours)}), {len(theirs)} of the teacher "
                f"({_told(theirs)}); write out as many of both in sections and teacher_sections"
            )
        if problems:
            raise ConfigError(problems)
        return ours, theirs


def own_sections(outputs: Outputs) -> tuple[tuple[str, str], ...]:
    """The sections that a network's states mark, else each block and the next."""
    states, order = outputs.hidden or {}, blocks(outputs)
    if marked := [(f"{name}_first", name) for name in order if f"{name}_first" in states]:
        return tuple(marked)
    return tuple(zip(order, order[1:], strict=False))


def flow(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G (B, m, n) of maps (B, m, H, W) and (B, n, H, W), and their means (B, m) and (B, n)."""
    found: tuple[Tensor, Tensor, Tensor] = _Flow.apply(*map(_places, pooled_alike(first, last)))
    return found


class _Flow(torch.autograd.Function):
    """G and means of maps (B, HW, m) and (B, HW, n).

    autograd's own gradient of the product lies the other way round in memory than the maps, and all that a
    network does with it would take several times as long.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(first, last)
        return products(first, last), first.mean(1), last.mean(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        first, last = ctx.saved_tensors
        places = first.shape[1]
        of_flow, of_first, of_last = (gradient / places for gradient in gradients)
        with torch.autocast(first.device.type, enabled=False):
            return (
                torch.baddbmm(of_first[:, None], last, of_flow.transpose(1, 2)),
                torch.baddbmm(of_last[:, None], first, of_flow),
            )


def products(first: Tensor, last: Tensor) -> Tensor:
    """G (B, m, n) of maps (B, HW, m) and (B, HW, n)."""
    with torch.autocast(first.device.type, enabled=False):
        return first.transpose(1, 2) @ last / first.shape[1]


def _places(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) as (B, HW, C); a view of them in either order of memory."""
    if maps.is_contiguous():
        return maps.flatten(2).transpose(1, 2)
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _told(sections: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{a} to {b}" for a, b in sections)
