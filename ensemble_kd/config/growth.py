"""Networks that start from a smaller one and compute the same at first; what cannot be grown into what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from ensemble_kd.config.base import Block

GROWN = ("mlp", "resnet")
"""Networks that can be grown."""
NOISE = 0.01


class GrowthConfig(Block):
    """A teacher's weights, spread over a larger network that computes the same (Net2Net, 1511.05641)."""

    name: Literal["net2wider", "net2deeper", "net2net"]
    """`net2wider`: more units or channels. `net2deeper`: more layers or blocks. `net2net`: both."""
    noise: float = Field(NOISE, ge=0, le=1)
    """Deviation of what is added to the weights of copied units, in units of the layer's own; with 0 and
    without dropout, copies would stay the same for ever."""


def growth_problems(start: GrowthConfig, old: Any, new: Any, whose: str = "the teacher") -> list[str]:
    """Why a network of block `new` cannot start from one of block `old`: one line each, from a field on.

    `whose` is what the old network is called.
    """
    if old.name != new.name:
        return [f"start: {start.name!r} grows a network of one kind, and {whose} is {old.name!r}"]
    if new.name == "mlp":
        return _of_layers(start.name, old.hidden, new.hidden, whose)
    problems = []
    if start.name == "net2deeper" and new.width != old.width:
        problems.append(
            f"width: {new.width}, but {whose} has {old.width}, and net2deeper adds blocks alone; make "
            "them the same, or use net2net"
        )
    elif new.width < old.width:
        problems.append(f"width: {new.width}, but {whose} has {old.width}, and a network grows; raise it")
    if start.name == "net2wider" and new.blocks != old.blocks:
        problems.append(
            f"blocks: {new.blocks}, but {whose} has {old.blocks}, and net2wider adds channels alone; "
            "make them the same, or use net2net"
        )
    elif new.blocks < old.blocks:
        problems.append(f"blocks: {new.blocks}, but {whose} has {old.blocks}, and a network grows; raise it")
    for name in ("block", "norm", "stem", "groups", "reduction"):
        ours, theirs = getattr(new, name), getattr(old, name)
        if ours != theirs:
            problems.append(f"{name}: {ours!r}, but {whose} has {theirs!r}; make them the same")
    if new.width != old.width and (new.block == "grouped" or new.norm == "group"):
        what = "block: grouped" if new.block == "grouped" else "norm: group"
        problems.append(
            f"width: {new.width}, but {whose} has {old.width}, and with {what} a copied channel changes "
            "the others of its group; make them the same"
        )
    return problems


def _of_layers(how: str, old: Sequence[int], new: Sequence[int], whose: str) -> list[str]:
    if places(old, new, how) is not None:
        return []
    wanted = {
        "net2wider": "as many layers, each as wide or wider",
        "net2deeper": "those layers, some of them repeated",
        "net2net": "those layers, each as wide or wider, and some of them repeated",
    }[how]
    return [f"hidden: {list(new)}, but {whose} has {list(old)}, and {how} takes {wanted}"]


def places(old: Sequence[int], new: Sequence[int], how: str = "net2net") -> list[int | None] | None:
    """For each layer of `new` units the layer of `old` that it comes from, None for an identity.

    An identity is as wide as the layer before it. None where there is no way; of several the one with the
    identities at the end.
    """
    if how == "net2wider" and len(old) != len(new):
        return None

    def fits(i: int, k: int) -> bool:
        return old[i] == new[k] or (old[i] < new[k] and how != "net2deeper")

    ways: list[list[str]] = []  # for each layer of `new`, from the last on, by the number of `old` ones used
    for k in range(len(new), -1, -1):
        row = []
        for i in range(len(old) + 1):
            if k == len(new):
                row.append("end" if i == len(old) else "")
            elif i < len(old) and fits(i, k) and ways[-1][i + 1]:
                row.append("next")
            else:
                row.append("same" if k and i and new[k] == new[k - 1] and ways[-1][i] else "")
        ways.append(row)
    if not ways[-1][0]:
        return None
    found: list[int | None] = []
    i = 0
    for row in reversed(ways[1:]):
        found.append(i if row[i] == "next" else None)
        i += row[i] == "next"
    return found
