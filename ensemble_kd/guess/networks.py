"""Teachers, student and how long they train, for the rows at hand."""

from __future__ import annotations

import json
import os
from typing import Any

from ensemble_kd.data.decode import single
from ensemble_kd.guess.choice import Choice
from ensemble_kd.guess.commented import Commented
from ensemble_kd.guess.pictures import augment, layout
from ensemble_kd.guess.steps import batch_of, epochs_of
from ensemble_kd.model_size import WIDTH
from ensemble_kd.pretrained import read_tokenizer, source_file

LONGEST = {False: 128, True: 256}
"""Tokens kept of a text, without and with a GPU: time grows with the length, and most is said early."""
COVERED = 0.98
"""Share of the texts that are kept whole, if they are not longer than that."""
MANY_LABELS = 5000
"""Labelled rows from which on pretrained weights are tuned at a lower rate."""
PAIR_STUDENT = {"name": "transformer", "weights": "teacher", "layers": "every_second"}
PAIR_TRAINING = {
    "epochs": "auto",
    "batch_size": 32,
    "learning_rate": 2e-4,
    "schedule": "linear",
    "warmup_fraction": 0.1,
    "weight_decay": 0.01,
}
MOST_STEPS = 4_000
"""Of fine-tuning a transformer on labels; with more rows each member sees a share of them."""
MANY_ROWS = 200_000
"""Rows of a table from which on the rows themselves say enough, and none are made up."""
MOST_TREES = 60
"""Classes up to which trees teach beside perceptrons."""
LEAST_EPOCHS = 3
"""That `auto` gives a transformer that starts from trained weights."""
OF_CLASSES = ("student.temperature", "student.pseudo")
"""Settings of the recipes that mean nothing where values are predicted."""


def fit_networks(choice: Choice, source: str | None) -> None:
    """Put what follows from the inputs and from the number of rows into the settings.

    `source` is that of pretrained weights, None for a recipe without.
    """
    if choice.inputs.kind == "text":
        _text(choice, source)
    elif choice.inputs.kind == "image":
        _image(choice)
    else:
        _numeric(choice)
    _training(choice)
    if choice.label is not None and choice.label.target == "value":
        for setting in OF_CLASSES:
            choice.settings.drop(setting)


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
    _fit_table(choice.settings, source)
    if choice.compares:
        settings.set(
            "student.model",
            dict(PAIR_STUDENT),
            "Two texts are held against each other, which takes their words in order: every second block of "
            "the best teacher.",
        )
        settings.set("student.training", dict(PAIR_TRAINING), "As teachers are trained.")
    many = choice.rows.labelled >= MANY_LABELS
    rate = settings.get("teachers.training.learning_rate")
    if many and isinstance(rate, float):
        settings.set("teachers.training.learning_rate", 0.4 * rate)
    settings.comments["teachers.training"] = (
        f"{choice.rows.labelled:,} labelled rows: {'a lower' if many else 'a higher'} rate of learning for "
        f"{'more' if many else 'few'} steps."
    )


def _fit_table(settings: Commented, source: str) -> None:
    """A table that starts from a model is at most as wide as that."""
    if not settings.get("student.model.start"):
        return
    file, width = source_file(source, "config.json", "--source"), settings.get("student.model.embedding")
    known = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    widest = next((known[name] for name in WIDTH if isinstance(known.get(name), int)), width)
    if widest < width:
        settings.set("student.model.embedding", widest)


def _length(choice: Choice, source: str) -> tuple[int, str]:
    """Tokens to keep of a text, and why."""
    names = choice.inputs.names
    columns = [names] if isinstance(names, str) else names
    table = choice.facts.sample.select(columns).slice(0, 4000)
    tokenizer = read_tokenizer(source, "--source")
    texts = [[text or "" for text in single(table[name]).to_pylist()] for name in columns]
    batch: Any = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(batch)]
    lengths = sorted(map(len, ids))
    choice.lengths = lengths[:: max(1, len(lengths) // 100)]
    # Further texts bring ever fewer new words: about as the square root of their number (Heaps' law).
    more = max(1.0, choice.rows.transfer / max(1, len(ids)))
    choice.pieces = round(len({number for text in ids for number in text}) * more**0.5)
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


def _numeric(choice: Choice) -> None:
    """Trees take time by the class: each round grows one of each. Made-up rows take time by the row, and are
    not shown to help where values are predicted."""
    if len(choice.rows.classes) > MOST_TREES:
        choice.settings.drop("teachers.kinds")
    if choice.rows.transfer >= MANY_ROWS or (choice.label is not None and choice.label.target == "value"):
        choice.settings.drop("data.augment")
        choice.settings.drop("soft_targets")
        choice.settings.drop("teachers.weights")


def _training(choice: Choice) -> None:
    """Batches that the rows fill, and what `auto` epochs come to."""
    settings, rows = choice.settings, choice.rows
    for block, count in (("teachers", rows.labelled), ("student", rows.transfer)):
        wanted = settings.get(f"{block}.training.batch_size")
        size = batch_of(wanted, count)
        if size != wanted:
            settings.set(f"{block}.training.batch_size", size, f"Smaller, since there are {count:,} rows.")
        if block == "teachers" and choice.recipe == "text":
            _share(settings, count, size)
    for i, block in enumerate(("teachers", "student")):
        if settings.get(f"{block}.training.epochs") == "auto":
            number = epochs_of(settings.raw, rows)[i]
            seen = rows.transfer if i else round(rows.labelled * (settings.get("teachers.fraction") or 1))
            steps = number * max(1, seen // settings.get(f"{block}.training.batch_size"))
            said = f"auto: {number:,} epochs of {seen:,} rows, {steps:,} steps, or until nothing improves."
            before = settings.comments.get(f"{block}.training", "")
            settings.comments[f"{block}.training"] = f"{said} {before}".strip()


def _share(settings: Commented, rows: int, batch_size: int) -> None:
    """Where there are many rows, each fine-tuned member sees a share of them, drawn by its seed."""
    share = MOST_STEPS * batch_size / (LEAST_EPOCHS * rows)
    if share < 1:
        settings.set(
            "teachers.fraction",
            round(share, 3),
            f"Each member sees another share of the {rows:,} rows: {MOST_STEPS:,} steps tune it.",
        )
