"""What POST /predict takes: a schema made from the model's own columns, and the table that a body becomes.

    {"rows": [{COLUMN: VALUE, ...}, ...], "on_bad_row": "error" | "null"}

Columns are those of the training data; a text is a string, a number a number, or a list of all numbers
where one column holds them; null is a value that is missing in a table (`data.table`); an image is base64
of a PNG, a JPEG, ... or of raw pixels, or a list of pixels.
"""

from __future__ import annotations

import base64
import binascii
import difflib
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema, with_config
from typing_extensions import TypedDict  # pydantic's, before Python 3.12

from ensemble_kd.data.images import ACCEPTED
from ensemble_kd.data.preprocess import TOO_LONG, table_encoder
from ensemble_kd.data.records import DataInfo

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
TEXT, REQUEST = 32, 8
"""Characters for each token that the model takes: of one text, and of a request's texts on average. Some
tokenizers take seconds for a text of a megabyte, whatever is cut off afterwards."""
SHOWN = 20
"""Problems in one answer; the rest is counted."""


class RefusedError(Exception):
    """A request that is not answered: the status, and what is wrong with it."""

    def __init__(self, status: int, problems: str | list[str], headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))


class RequestSchema:
    """Checks the bodies of POST /predict, and turns them into tables with the model's columns."""

    def __init__(self, info: DataInfo, columns: list[str], max_rows: int, truncate: bool = False) -> None:
        """With `truncate` a text that is far too long is cut; otherwise it is a bad row."""
        self.info, self.columns, self.max_rows, self.truncate = info, columns, max_rows, truncate
        self.table = table_encoder(info)
        typed: Any = TypedDict
        row: Any = with_config(STRICT)(typed("Row", {name: self._cell(i) for i, name in enumerate(columns)}))
        rows: Any = Annotated[list[row], Field(min_length=1, max_length=max_rows)]
        on_bad_row: Any = NotRequired[Literal["error", "null"]]
        body = typed("PredictRequest", {"rows": rows, "on_bad_row": on_bad_row})
        self.adapter: TypeAdapter[Any] = TypeAdapter(with_config(STRICT)(body))

    @property
    def listed(self) -> bool:
        """Whether one column holds a row's numbers as a list."""
        alone = self.info.kind == "numeric" and len(self.columns) == 1 and self.info.input_shape != [1]
        return alone and self.table is None

    @property
    def pixel_columns(self) -> bool:
        return self.info.kind == "image" and len(self.columns) > 1

    def _cell(self, column: int) -> Any:
        """The type of a column's values."""
        if self.table is not None:
            return float | None if self.table.columns[column].values is None else str | None
        if self.info.kind == "text":
            return str
        if self.listed:
            size = self.info.input_shape[0]
            return Annotated[list[float], Field(min_length=size, max_length=size)]
        if self.info.kind == "numeric" or self.pixel_columns:
            return float
        height, width, channels = self.info.input_shape
        any_size = self.info.preprocess.get("image", {}).get("resize") is not None
        text = (
            f"base64 of {height}x{width}x{channels} raw pixels (uint8), or of an image of "
            f"{'any' if any_size else 'that'} size: {ACCEPTED}"
        )
        pixels = f"pixels 0..255, flat or nested as [{height}][{width}]" + (
            f"[{channels}]" if channels > 1 else ""
        )
        shown = {
            "anyOf": [
                {"type": "string", "contentEncoding": "base64", "description": text},
                {"type": "array", "items": {}, "minItems": 1, "description": pixels},
            ]
        }
        return Annotated[str | list[Any], WithJsonSchema(shown)]

    def json_schema(self) -> dict[str, Any]:
        """The body's schema, its row inside."""
        schema = self.adapter.json_schema(ref_template="#/$defs/{model}")
        row = schema.pop("$defs")["Row"]
        schema["properties"]["rows"]["items"] = row
        schema["properties"]["on_bad_row"]["description"] = (
            "error: a row that cannot be read refuses the request; null: it is answered by its problem"
        )
        return schema

    def example(self) -> dict[str, Any]:
        """A body that is taken."""
        if self.table is not None:
            cells: list[Any] = self.table.example()
        elif self.info.kind == "text":
            cells = ["text"] * len(self.columns)
        elif self.listed:
            cells = [[0.0] * self.info.input_shape[0]]
        elif self.info.kind == "numeric" or self.pixel_columns:
            cells = [0.0] * len(self.columns)
        else:
            cells = [base64.b64encode(bytes(int(np.prod(self.info.input_shape)))).decode()]
        return {"rows": [dict(zip(self.columns, cells, strict=True))]}

    def parse(self, body: bytes) -> tuple[pa.Table, bool, dict[int, str]]:
        """The table, whether bad rows are kept as nulls, and rows that are bad already.

        Raises RefusedError: 400 for what is not JSON, 422 for what does not fit the schema, 413 for more
        text than a request of this many rows may hold.
        """
        try:
            request = self.adapter.validate_json(body)
        except ValidationError as error:
            raise self._refused(error) from None
        rows, bad = request["rows"], dict[int, str]()
        arrays = []
        for i, name in enumerate(self.columns):
            cells = [row[name] for row in rows]
            if self.table is not None:
                numbers = self.table.columns[i].values is None
                arrays.append(pa.array(cells, pa.float64() if numbers else pa.string()))
            elif self.info.kind == "text":
                self._shorten(cells, bad)
                arrays.append(pa.array(cells, pa.string()))
            elif self.listed:
                flat = pa.array(np.array(cells, np.float64).reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, self.info.input_shape[0]))
            elif self.info.kind == "numeric" or self.pixel_columns:
                arrays.append(pa.array(cells, pa.float64()))
            else:
                for j, cell in enumerate(cells):
                    try:
                        cells[j] = _image_bytes(cell, self.info.input_shape)
                    except ValueError as error:
                        cells[j], bad[j] = None, str(error)
                arrays.append(pa.array(cells, pa.binary()))
        return pa.table(arrays, names=self.columns), request.get("on_bad_row") == "null", bad

    def _shorten(self, texts: list[str], bad: dict[int, str]) -> None:
        """In place: texts that are far too long are not tokenized, or not beyond what could be kept."""
        tokens = self.info.input_shape[0]
        longest, all_ = max(TEXT * tokens, 4096), max(REQUEST * tokens * self.max_rows, 65_536)
        for i, text in enumerate(texts):
            if len(text) > longest:
                texts[i] = text[:longest] if self.truncate else ""
                if not self.truncate:
                    bad[i] = (
                        f"a text of {len(text):,} characters; the model takes {tokens:,} tokens, {TOO_LONG}"
                    )
        if (total := sum(map(len, texts))) > all_:
            raise RefusedError(
                413, f"texts of {total:,} characters; at most {all_:,} a request, send fewer rows"
            )

    def row_problems(self, bad: dict[int, str], rows: int) -> list[str]:
        """`rows.3.text: what is wrong`, and how to go on without these rows."""
        column = f".{self.columns[0]}" if len(self.columns) == 1 else ""
        found = _cut([f"rows.{i}{column}: {text}" for i, text in sorted(bad.items())])
        if any(TOO_LONG in text for text in bad.values()):
            found.append("shorten long texts, or start the server with --truncate to have them cut")
        if len(bad) < rows:
            found.append('send "on_bad_row": "null" to have the other rows answered')
        return found

    def _refused(self, error: ValidationError) -> RefusedError:
        found = error.errors(include_url=False)
        if found[0]["type"] == "json_invalid":
            reason = str(found[0]["ctx"]["error"])
            return RefusedError(400, f"the body is not JSON: {reason}; send {self._shape()}")
        return RefusedError(422, _cut([self._line(entry) for entry in found[:SHOWN]], len(found)))

    def _line(self, entry: Any) -> str:
        place, kind, got = entry["loc"], entry["type"], entry["input"]
        path, name = (
            _cut_name(".".join(map(str, place))) or "body",
            _cut_name(str(place[-1]) if place else ""),
        )
        fields = ["rows", "on_bad_row"] if len(place) < 3 else self.columns
        if kind == "missing":
            return (
                f"{path}: missing; a row has {_names(fields)}"
                if len(place) > 2
                else (f"{path}: missing; send {self._shape()}")
            )
        if kind == "extra_forbidden":
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"leave it out; known are {_names(fields)}"
            return f"{path}: unknown field; {hint}"
        if kind == "too_long" and path == "rows":
            return f"rows: {len(got):,} rows; at most {self.max_rows:,} a request, send several"
        if kind == "too_short" and path == "rows":
            return "rows: no row; send at least one"
        if kind in ("too_long", "too_short"):
            return f"{path}: {len(got):,} values; the model takes {self.info.input_shape[0]:,}"
        wanted = str(entry["msg"]).removeprefix("Input should be ")
        return f"{path}: should be {wanted}, got {_short(got)}"

    def _shape(self) -> str:
        return '{"rows": [{' + ", ".join(f'"{name}": ...' for name in self.columns[:4]) + "}]}"


def _image_bytes(cell: str | list[Any], shape: list[int]) -> bytes:
    """Raises ValueError that says what is wrong."""
    if isinstance(cell, str):
        try:
            return base64.b64decode(cell.partition(",")[2] if cell[:5] == "data:" else cell, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"not base64 ({error}); send an image ({ACCEPTED}) or raw pixels so encoded"
            ) from None
    leaves = cell
    while any(isinstance(value, list) for value in leaves):
        leaves = [x for value in leaves for x in (value if isinstance(value, list) else [value])]
    if not all(isinstance(value, int | float) for value in leaves):  # of texts numpy makes a huge table
        raise ValueError("lists of something else than pixels; send whole numbers in 0..255")
    try:
        pixels = np.array(cell)
    except ValueError:
        raise ValueError("lists of different lengths in one image") from None
    if pixels.dtype.kind not in "iuf":
        raise ValueError("lists of something else than pixels; send whole numbers in 0..255")
    flat = pixels.shape == (int(np.prod(shape)),)
    if not (flat or pixels.shape == tuple(shape) or (shape[-1] == 1 and pixels.shape == tuple(shape[:-1]))):
        found, wanted = ("x".join(map(str, s)) for s in (pixels.shape, shape))
        raise ValueError(f"{found} pixels, expected {wanted}")
    wrong = ~((pixels >= 0) & (pixels <= 255) & (pixels == np.floor(pixels)))
    if wrong.any():
        raise ValueError(f"pixel value {pixels[wrong][0]:g} is not a whole number in 0..255")
    return pixels.astype(np.uint8).tobytes()


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + more


def _short(value: Any) -> str:
    shown = repr(value[:40] if isinstance(value, str | list) else value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _cut_name(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:97]}..."


def _cut(problems: list[str], all_: int | None = None) -> list[str]:
    """The first ones, of so many."""
    more = (len(problems) if all_ is None else all_) - SHOWN
    return problems if more <= 0 else [*problems[:SHOWN], f"and {more} more problems"]
