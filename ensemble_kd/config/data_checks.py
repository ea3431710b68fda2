"""What is wrong with a `data` block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensemble_kd.config.data import DataConfig
from ensemble_kd.config.data_files import missing_note
from ensemble_kd.paths import missing, missing_data

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


def data_problems(data: DataConfig) -> list[str]:
    problems = []
    if data.source == "files":
        paths = {"": data.path} if isinstance(data.path, str) else (data.path or {})
        if not paths:
            problems.append(
                "data.path: missing; source 'files' needs a file, folder, glob or URL (--set data.path=...)"
            )
        for split, path in paths.items():
            where = f"data.path.{split}" if split else "data.path"
            if path is not None and (problem := missing_data(path)) is not None:
                problems.append(f"{where}: {problem}")
        if isinstance(data.path, dict) and "train" not in data.path:
            problems.append("data.path.train: missing; only the other splits are given")
    elif data.path is not None:
        problems.append(
            f"data.path: set to {data.path!r} but data.source is {data.source!r}, which ignores it"
            "; set data.source=files" + missing_note(data.path)
        )
    if data.source == "hub" and not data.hub_name:
        problems.append("data.hub_name: missing; source 'hub' needs the name of a data set")
    if data.source != "hub" and data.hub_name:
        problems.append(f"data.hub_name: set, but data.source is {data.source!r}; set data.source=hub")
    if data.splits and data.source == "digits":
        problems.append("data.splits: the embedded digits have no splits of their own; leave it out")
    if data.splits and isinstance(data.path, dict):
        problems.append("data.splits: set, but data.path names a file for each split; leave one of them out")
    if data.splits.get("unlabelled") and (data.unlabelled or data.text_augment):
        other = "data.unlabelled" if data.unlabelled else "data.text_augment"
        problems.append(f"data.splits.unlabelled: {other} is set too; leave one of them out")
    if data.augment.of_images and data.kind != "image":
        problems.append(
            f"data.augment: shift, horizontal_flip and erase are only for images; data.kind is {data.kind!r}"
        )
    if data.augment.mixup and data.kind == "text":
        problems.append("data.augment.mixup: tokens cannot be mixed; for texts use data.augment.word_dropout")
    if data.augment.munge and data.kind != "numeric":
        problems.append(f"data.augment.munge: only for tables of numbers; data.kind is {data.kind!r}")
    if data.augment.munge and data.augment.mixup:
        problems.append("data.augment: mixup and munge both make up rows of tables; set one of them to 0")
    if data.augment.word_dropout and data.kind != "text":
        problems.append(f"data.augment.word_dropout: only for texts; data.kind is {data.kind!r}")
    if data.kind == "text" and data.text.tokenizer == "subword" and data.text.vocabulary_size > 200_000:
        problems.append("data.text.vocabulary_size: at most 200000 for a learned vocabulary")
    if data.text.source is not None and data.text.tokenizer != "pretrained":
        problems.append(
            f"data.text.source: set, but data.text.tokenizer is {data.text.tokenizer!r}; "
            "set data.text.tokenizer=pretrained"
        )
    columns = data.columns.input
    if data.kind == "text" and isinstance(columns, list):
        if len(columns) != 2 or columns[0] == columns[1]:
            problems.append(f"data.columns.input: one column for text, or two for pairs, got {columns}")
        elif data.text.tokenizer != "pretrained":
            problems.append(
                f"data.columns.input: one column for text, got {columns}; for pairs set "
                f"data.text.tokenizer=pretrained, it is {data.text.tokenizer!r}"
            )
    if data.table is not None and data.kind != "numeric":
        problems.append(
            f"data.table: only for columns of numbers and words; data.kind is {data.kind!r}, leave it out"
        )
    grams = data.text.char_ngrams
    if grams is not None and not 1 <= grams[0] <= grams[1]:
        problems.append(
            f"data.text.char_ngrams: [shortest, longest] with 1 <= shortest <= longest, got {grams}"
        )
    if data.source == "digits" and data.kind != "image":
        problems.append("data.kind: the embedded digits are images")
    problems += data.image.problems()
    if data.kind != "image" or data.source == "digits":
        why = (
            "the embedded digits are raw pixels" if data.source == "digits" else f"data.kind is {data.kind!r}"
        )
        problems += [
            f"data.image.{n}: only for encoded images; {why}, leave it out" for n in data.image.for_encoded
        ]
    return problems


def text_augment_problems(config: Config) -> list[str]:
    data, settings = config.data, config.data.text_augment
    if settings is None:
        return []
    path, problems = "data.text_augment", []
    if data.kind != "text":
        problems.append(f"{path}: only for texts; data.kind is {data.kind!r}")
    if data.unlabelled is not None:
        problems.append(
            f"{path}: its texts take the place of data.unlabelled, which is set too; leave one of them out"
        )
    if config.teachers.source == "predictions":
        problems.append(
            f"{path}: given predictions know no new texts, and teachers.source is 'predictions'; leave it out"
        )
    per_word = settings.mask_probability + settings.pos_probability + settings.word_probability
    if per_word > 1 + 1e-9:
        problems.append(
            f"{path}: mask_probability, pos_probability and word_probability add up to {per_word:g}; at "
            "most one of them happens to a word, so lower them to 1 in all"
        )
    if not per_word and not settings.ngram_probability:
        problems.append(f"{path}: all probabilities are 0, so that no new text comes of it; raise one")
    given = [name for name in ("masked_lm", "word_vectors") if getattr(settings, name) is not None]
    if settings.word_probability and not given:
        problems.append(
            f"{path}.word_probability: {settings.word_probability:g}, but nothing gives candidates; set "
            f"{path}.masked_lm or {path}.word_vectors"
        )
    for name in given:
        there = getattr(settings, name)
        if (problem := missing(there, "folder" if name == "masked_lm" else "file")) is not None:
            problems.append(f"{path}.{name}: {problem}")
        elif not settings.word_probability:
            problems.append(
                f"{path}.{name}: set, but {path}.word_probability is 0, which leaves it unused; raise that"
            )
    return problems
