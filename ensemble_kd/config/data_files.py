"""The blocks of `data` that say how files are read: columns, CSV, images."""

from __future__ import annotations

import codecs
import math
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from ensemble_kd.config.base import Block
from ensemble_kd.paths import missing, missing_data

MOST_PIXEL_VALUES = 64 * 10**6
"""Height x width x channels of an image as a model takes it."""


class ColumnsConfig(Block):
    """Which columns of the source hold what."""

    later: ClassVar[frozenset[str]] = frozenset({"weight"})

    input: str | list[str] = "input"
    """Column of the images or texts; for numeric data a list of columns, or one list-valued column; for pairs
    of texts the two columns (tokenizer: pretrained)."""
    label: str | list[str] = "label"
    """Column of the class: text or whole numbers; those that occur are the classes, in order (numbers, also
    in text, by value); with `data.class_names` a name listed there, or its place from 0 on. With
    `data.target: value` of a number; a list of columns for several numbers, which one model predicts
    together."""
    id: str | None = None
    """Column that identifies a row (integer or string); row numbers are used where it is null."""
    weight: str | None = None
    """Column of train that says how much a row's loss counts, a number from 0 on: twice the weight is twice
    the row. They are scaled to a mean of 1; rows of `data.unlabelled` weigh 1. Metrics count all rows
    alike."""

    @property
    def labels(self) -> list[str]:
        """The label's columns."""
        return [self.label] if isinstance(self.label, str) else self.label


class CsvConfig(Block):
    """How text files are written; each is found from the file itself where it is null."""

    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """What delimits the cells of CSV: one character, as in ";"; null to find out which of , ; | and tab."""
    encoding: str | None = None
    """Encoding of CSV and JSON, by Python's name of it, as in `cp1251`; null for UTF-8, UTF-16, and
    Windows-1252 (Latin-1) for what is neither."""

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (not value.isascii() or value in '"\n\r\0'):
            raise ValueError(f'{value!r} cannot delimit cells; use , or ; or | or a tab, as "\\t"')
        return value

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                "a".encode(value)
                codecs.getincrementaldecoder(value)
        except (LookupError, ValueError, TypeError) as error:
            raise ValueError(f"{value!r} is no encoding that Python knows; for example cp1251") from error
        return value


class ImageConfig(Block):
    """How raw pixels are laid out, and how encoded images (PNG, JPEG, WebP, GIF, BMP, TIFF) become such."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """[height, width, channels] in pixels; needed for raw bytes and flat lists, read from encoded images."""
    mode: Literal["auto", "L", "RGB", "RGBA"] = "auto"
    """Channels of encoded images: `L` grey, `RGB`, or `RGBA` with transparency. `auto` is RGB if any of a
    sample of them has colour, else L."""
    resize: tuple[PositiveInt, PositiveInt] | None = None
    """[height, width] to which encoded images are scaled (bilinear, antialiased), by `predict` and `serve`
    too; null for images that have one size already."""

    @property
    def for_encoded(self) -> list[str]:
        """The settings that are not at their default and mean nothing for raw pixels."""
        held = {"mode": self.mode != "auto", "resize": self.resize is not None}
        return [name for name, given in held.items() if given]

    def problems(self) -> list[str]:
        """What does not fit together, one line each."""
        found = []
        for name, sizes in (("shape", self.shape), ("resize", self.resize)):
            if sizes is not None and math.prod(sizes) > MOST_PIXEL_VALUES:
                found.append(
                    f"data.image.{name}: {'x'.join(map(str, sizes))} is {math.prod(sizes):,} numbers an "
                    f"image, at most {MOST_PIXEL_VALUES:,}; make it smaller"
                )
        if self.shape is not None and self.resize is not None and self.shape[:2] != self.resize:
            found.append(
                f"data.image.resize: {list(self.resize)}, but data.image.shape is {list(self.shape)}; leave "
                "the shape out"
            )
        channels = {"L": 1, "RGB": 3, "RGBA": 4}.get(self.mode)
        if self.shape is not None and channels not in (None, self.shape[2]):
            found.append(
                f"data.image.mode: {self.mode} has {channels} channels, but data.image.shape is "
                f"{list(self.shape)}; leave one of them out"
            )
        return found


def path_problems(field: str, path: str | None) -> list[str]:
    if path is None:
        return [f"{field}: missing; a file, folder, glob or URL of texts (--set {field}=...)"]
    return [f"{field}: {problem}"] if (problem := missing_data(path)) is not None else []


def missing_note(path: Any) -> str:
    problem = missing(path) if isinstance(path, str) else None
    return f" (and there is {problem})" if problem and problem.startswith("no such ") else ""
