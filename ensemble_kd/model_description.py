"""What config.json of a model folder, or of an exported form, says: every field, its type and its bounds.

The file may be a stranger's. Nothing is built or allocated by it before it fits this description.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ensemble_kd.config import NETWORKS, ColumnsConfig, ModelConfig, TextConfig
from ensemble_kd.config.base import MODULE
from ensemble_kd.errors import ArtifactError
from ensemble_kd.safe_files import parse_json, shown

MOST_CLASSES = 1_000_000
MOST_VALUES = 1 << 24
"""Of one input: pixels times channels, numbers, or tokens."""
MOST_TOKENS = 1 << 24
"""Of a vocabulary; the number for padding is one more."""
MOST_KINDS = 10_000
"""Words of a column that have a column each."""
MOST_LETTERS = 100
"""Of an n-gram inside a word."""
MOST_PLUGINS, MOST_NAME = 20, 200
"""Modules that one folder asks for, and letters of a name."""
NAMES = frozenset(name for name in NETWORKS.registry if NETWORKS.origin(name) is None)
"""Of the package's own networks."""
MOST_PROBLEMS = 5
"""Told of one file."""

Size = Annotated[int, Field(ge=1, le=MOST_VALUES)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=10_000)]


class _Part(BaseModel):
    """Types are JSON's own; fields of a newer version are let through, and nothing reads them."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Target(_Part):
    """The labels' moments, where labels are values; lists beside `names` where there are several columns."""

    mean: Finite | list[Finite]
    std: Finite | list[Finite]
    names: list[Name] = Field([], max_length=MOST_CLASSES)

    @property
    def width(self) -> int:
        """Raises ValueError where the lists are not of one length."""
        if not isinstance(self.mean, list) and not isinstance(self.std, list):
            return 1
        lengths = {len(x) if isinstance(x, list) else 1 for x in (self.mean, self.std, self.names)}
        if len(lengths) != 1 or not self.names:
            raise ValueError("target: mean, std and names are not lists of one length")
        return len(self.names)


class Image(_Part):
    shape: list[Size] | None = None


class Column(_Part):
    """`data.table.TableColumn` as JSON."""

    values: list[Name] | None = Field(None, max_length=MOST_KINDS)
    rest: bool = False
    missing: bool = False
    mean: Finite = 0.0

    @property
    def width(self) -> int:
        return (1 if self.values is None else len(self.values) + self.rest) + self.missing


class Preprocess(_Part):
    """What turns raw rows into inputs."""

    columns: ColumnsConfig
    image: Image | None = None
    text: TextConfig | None = None
    special: dict[str, Annotated[int, Field(ge=0, le=MOST_TOKENS)]] = {}
    table: list[Column] | None = Field(None, max_length=MOST_VALUES)


class Info(_Part):
    """`DataInfo` as JSON."""

    kind: Literal["image", "text", "numeric"]
    input_shape: list[Size] = Field(min_length=1, max_length=3)
    num_classes: int = Field(ge=1, le=MOST_CLASSES)
    class_names: list[Name] = Field(max_length=MOST_CLASSES)
    mean: list[Finite]
    std: list[Finite]
    vocabulary_size: int = Field(ge=0, le=MOST_TOKENS + 1)
    preprocess: Preprocess
    counts: dict[str, Annotated[int, Field(ge=0, le=1 << 62)]]
    target: Target | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Info:
        """Raises ValueError with the first thing that does not."""
        shape, text = self.input_shape, self.preprocess.text
        axes = 3 if self.kind == "image" else 1
        if len(shape) != axes or math.prod(shape) > MOST_VALUES:
            raise ValueError(f"input_shape {shape} is not that of {self.kind} inputs, or too large")
        if self.target is None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names of {self.num_classes} classes")
        if self.target is not None and self.num_classes != self.target.width:
            raise ValueError(f"a target of {self.target.width} values, and num_classes {self.num_classes}")
        if self.kind != "text":
            moments = {len(values) for values in (self.mean, self.std)} - {0}
            if moments - {shape[-1]}:
                raise ValueError(f"mean and std do not have {shape[-1]} numbers each")
            return self._columns_fit()
        if text is None:
            raise ValueError("preprocess.text is missing")
        if not all(1 <= size <= MOST_LETTERS for size in text.char_ngrams or ()):
            raise ValueError(f"preprocess.text.char_ngrams {text.char_ngrams} beyond {MOST_LETTERS}")
        if text.tokenizer == "hashed" and text.vocabulary_size + 1 > self.vocabulary_size:
            raise ValueError(f"vocabulary_size {self.vocabulary_size} is below that of preprocess.text")
        if text.tokenizer == "pretrained" and max(self.preprocess.special.values(), default=0) + 2 > max(
            self.vocabulary_size, 2
        ):
            raise ValueError("preprocess.special has numbers beyond the vocabulary")
        return self._columns_fit()

    def _columns_fit(self) -> Info:
        columns = self.preprocess.columns.input
        count = 1 if isinstance(columns, str) else len(columns)
        if table := self.preprocess.table:
            width = sum(column.width for column in table)
            if self.kind != "numeric" or len(table) != count or [width] != self.input_shape:
                raise ValueError(
                    f"preprocess.table has {len(table)} columns that become {width} numbers, for {count} "
                    f"columns of {self.kind} inputs of shape {self.input_shape}"
                )
            return self
        most = {"image": 1, "text": 2, "numeric": self.input_shape[0]}[self.kind]
        if not 1 <= count <= most or (self.kind == "numeric" and count not in (1, most)):
            raise ValueError(f"{count} columns for {self.kind} inputs of shape {self.input_shape}")
        return self


class Calibration(_Part):
    """`train.calibration.calibrate`'s; what is not said here is not used."""

    temperature: float = Field(1.0, gt=1e-6, lt=1e6)
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class Quantization(_Part):
    """`models.quantise.description`."""

    bits: int = Field(ge=2, le=8)
    activations: bool
    thresholds: dict[Name, Finite] = {}


class Plugin(_Part):
    """A module of the user's."""

    module: str = Field(pattern=MODULE, max_length=MOST_NAME)


class Named(_Part):
    """A network's block."""

    name: str = Field(max_length=MOST_NAME)


class Description(_Part):
    """All of config.json of a model folder."""

    format: int
    form: str | None = None
    """Of an exported form."""
    model: ModelConfig
    info: Info
    lineage: dict[str, str | dict[str, str]] = {}
    """Fingerprints of what the student comes from."""
    calibration: Calibration = Calibration()
    quantization: Quantization | None = None
    length: Annotated[int, Field(ge=1, le=MOST_VALUES)] | None = None
    """Of a `torch.export` program that takes texts of one length."""
    plugins: list[Plugin] = Field([], max_length=MOST_PLUGINS)
    """What has to be imported, and so trusted, before the network can be built."""


class OfPlugin(Description):
    """As the others, of a network that a plug-in makes: what its block may say only the plug-in knows."""

    model: Named  # type: ignore[assignment]


def described(content: bytes, where: str) -> dict[str, Any]:
    """config.json as plain data, once all of it fits. Raises ArtifactError, on one line."""
    raw = parse_json(content, where)
    try:
        _kind(raw).model_validate_json(content, strict=True)
    except ValidationError as error:
        raise ArtifactError(f"{where}: does not describe a model: {_told(error)}") from error
    return dict(raw)


def _kind(raw: Any) -> type[Description]:
    """By which description a file is checked: whoever lists plug-ins may have a network of theirs."""
    model = raw.get("model") if isinstance(raw, dict) and raw.get("plugins") else None
    own = isinstance(model, dict) and model.get("name") in NAMES
    return OfPlugin if model is not None and not own else Description


def _told(error: ValidationError) -> str:
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        path = shown(".".join(map(str, item["loc"]))) or "the file"
        found = "" if item["type"] in ("missing", "value_error") else f", got {shown(repr(item['input']))}"
        message = item["msg"].removeprefix("Value error, ")
        lines.setdefault(path, shown(f"{message[0].lower()}{message[1:]}") + found)
    told = [f"{path}: {line}" for path, line in list(lines.items())[:MOST_PROBLEMS]]
    return "; ".join(told) + (
        f"; and {len(lines) - MOST_PROBLEMS} more" if len(lines) > MOST_PROBLEMS else ""
    )
