"""What a sample of pictures is like: sizes and colour, from which layout and augmentation follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ensemble_kd.data import images
from ensemble_kd.data.images import PictureError, Pictures
from ensemble_kd.data.survey import sample
from ensemble_kd.errors import InputError
from ensemble_kd.guess.inspect import Facts

SAMPLED = 200
LARGEST = 64
"""Side of the largest pictures that the recipe trains on; what is larger is scaled down."""
SINGLE = 2
"""Characters of the names of classes that are digits or letters, which a mirror changes."""


@dataclass(frozen=True)
class Layout:
    """Of the pictures as the models take them."""

    side: int
    """The shorter one."""
    colour: bool
    resize: list[int] | None = None
    """Where they differ in size, or are larger than need be."""
    why: str = ""


def layout(facts: Facts, column: str, shape: list[int] | None) -> Layout:
    """`shape` of raw pixels, None of encoded pictures. Raises InputError where none can be read."""
    if shape is not None:
        return Layout(min(shape[:2]), shape[2] > 1)
    sizes = list(_sizes(facts, column))
    if not sizes:
        raise InputError(f"--data: none of the first images in {column!r} can be read ({images.ACCEPTED})")
    colour = any(size[2] > 1 for size in sizes)
    sides = sorted(min(size[:2]) for size in sizes)
    middle = sides[len(sides) // 2]
    alike = len({size[:2] for size in sizes}) == 1
    if alike and max(sizes[0][:2]) <= LARGEST:
        return Layout(middle, colour)
    target = max(8, LARGEST if middle >= LARGEST else 32 if middle >= 32 else middle)
    what = "are larger than the recipe needs" if alike else "differ in size"
    shown = f"{sizes[0][0]}x{sizes[0][1]}" if alike else f"{sides[0]} to {sides[-1]} on the shorter side"
    return Layout(target, colour, [target, target], f"the images {what} ({shown})")


def _sizes(facts: Facts, column: str) -> Iterator[tuple[int, int, int]]:
    reader = Pictures(training=True)
    pieces = facts.source.splits["train"]
    for piece in pieces[:SAMPLED]:
        for array in sample(piece, column, -(-SAMPLED // len(pieces))):
            for row in array.to_pylist():
                if isinstance(row, list):
                    yield len(row), len(row[0]), len(row[0][0]) if isinstance(row[0][0], list) else 1
                    continue
                try:
                    found = images.size(reader.bytes_of(row) or b"")
                except PictureError:
                    continue
                if found is not None:
                    yield found


def augment(found: Layout, classes: tuple[str, ...]) -> tuple[dict[str, object], str]:
    """Changes that keep the class, and why these."""
    shift = max(1, round(found.side / (8 if found.colour else 14)))
    single = bool(classes) and sum(len(name) <= SINGLE for name in classes) > len(classes) / 2
    flip = found.colour and not single
    why = (
        "shifts of an eighth of the side, and mirrored" if flip else "shifts alone, since a mirror may change"
    )
    if flip:
        return {"shift": shift, "horizontal_flip": True}, f"{why}; no mirror where left and right matter"
    return {"shift": shift}, f"{why} the class (signs, digits, letters); horizontal_flip: true to allow it"
