"""What the user asked for, and what was found and chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ensemble_kd.guess.commented import Commented
from ensemble_kd.guess.counts import Rows
from ensemble_kd.guess.inputs import Inputs
from ensemble_kd.guess.inspect import Facts
from ensemble_kd.guess.target import Label


@dataclass
class Request:
    """What the user asked for: data, columns, and settings of their own."""

    path: str
    label: str | None = None
    further: tuple[str, ...] = ()
    """More columns of labels, where several values are predicted together."""
    input: list[str] | None = None
    source: str | None = None
    """Of pretrained weights; `none` for n-grams."""
    target: str | None = None
    wanted: dict[str, Any] = field(default_factory=dict)
    """What --set says, as blocks of a configuration."""

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.wanted.get("data") or {}
        return found


@dataclass
class Choice:
    """What was found and chosen."""

    facts: Facts
    inputs: Inputs
    rows: Rows
    recipe: str
    settings: Commented
    label: Label | None = None
    """None where folders are the classes."""
    notes: list[str] = field(default_factory=list)
    """What is odd, or was left out."""
    compares: bool = False
    """Whether one text is held against another."""
    pieces: int = 0
    """Different word pieces that the texts have, about; 0 where they are not counted."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of texts before they are cut, from short to long; empty where they are not counted."""
