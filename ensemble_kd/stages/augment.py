"""Before the data: unlabelled texts for the transfer set, made from train texts.

    texts/part-00000.parquet, ...    the input column(s) under their own names: a folder for `data.unlabelled`
    words.json                       the word classes, where words are exchanged within them

Rows that are held out of train, for validation or test, are never read. The train texts are cut into parts;
a part's copies are made by one call in some process, and the parts are then joined in order: a text that
came before, in train or in an earlier part, is dropped. A part is under its final name only when it is
whole, and has a receipt; so what a killed run finished is kept, and what is damaged is made again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.artifacts import (
    Manifest,
    checksum,
    describe_files,
    fingerprint,
    read_json,
    write_atomic,
    write_json,
)
from ensemble_kd.attached import attach, attached, attached_spec, ensure
from ensemble_kd.config import Config, CsvConfig, TextAugmentConfig
from ensemble_kd.data.prepared import train_texts
from ensemble_kd.data.sources import HASHED_BYTES, source_fingerprint
from ensemble_kd.data.text_augment import TextAugmenter, Unseen, words_of
from ensemble_kd.data.word_candidates import Candidates, MaskedWords, WordVectors
from ensemble_kd.data.word_classes import WordClasses, learn_word_classes
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.stages.base import Artifact, Done, Stage
from ensemble_kd.stages.context import DAMAGED, Context, StagePlan

TEXTS = "texts"
"""The folder that the data stage reads."""
WORDS = "words.json"
SOURCE, MADE = ".source", ".made"
"""Work in progress: train texts by part, and copies that wait for their turn to be joined."""
READ_WITH = {
    "source",
    "hub_name",
    "hub_config",
    "columns",
    "validation_fraction",
    "test_fraction",
    "shard_rows",
}
"""Fields of `data` that decide which texts are read, and how they are cut into parts."""
IN_PROCESS = 20_000
"""Fewer rows than these are not worth starting Ray for, unless a language model has to see them."""


def plan(config: Config, run: Any) -> StagePlan:
    """Reads the source once to fingerprint it."""
    data, settings = config.data, _settings(config).model_dump(mode="json")
    alone = data.model_copy(update={"unlabelled": None})
    inputs = {"source": source_fingerprint(alone)}
    for name in ("masked_lm", "word_vectors"):  # the content counts, not where it lies
        if (path := settings.pop(name)) is not None:
            inputs[name] = _content(Path(path).expanduser())
    kept = data.model_dump(mode="json", include=READ_WITH)
    if not data.predicts.classified:  # rows are held out by class, where there are classes
        kept["target"] = data.target
    for name, default in (("splits", {}), ("duplicates", "keep")):
        if (value := getattr(data, name)) != default:
            kept[name] = value
    if data.csv != CsvConfig():
        kept["csv"] = data.csv.model_dump(mode="json")
    if isinstance(data.class_names, list):  # a file is among the source's content
        kept["class_names"] = data.class_names
    return StagePlan.of(run, "augment", {"text_augment": settings, "data": kept, "seed": config.seed}, inputs)


def with_texts(config: Config, plan: StagePlan) -> Config:
    """The configuration of the stages that follow: the new texts are the unlabelled ones."""
    changes = {"unlabelled": str((plan.folder / TEXTS).absolute()), "text_augment": None}
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def run(context: Context, plan: StagePlan) -> Manifest:
    """Make the parts that are missing. Raises InputError with what is wrong with the source."""
    began = time.perf_counter()
    settings = _settings(context.config)
    (plan.folder / TEXTS).mkdir(parents=True, exist_ok=True)
    for stale in (plan.folder / TEXTS).glob(".*.tmp"):  # what a killed run was writing
        stale.unlink()
    unseen = Unseen()
    parts, rows = _cut(context.config, plan.folder, unseen)
    if settings.pos_probability:
        _learn_words(plan.folder, parts, settings, context.config.seed)
    done = {name: receipt for name in parts if (receipt := _receipt(plan.folder, name)) is not None}
    todo = [name for name in parts if name not in done and not (plan.folder / MADE / name).exists()]
    arguments = {
        "folder": str(plan.folder.resolve()),
        "settings": _absolute(settings).model_dump(mode="json"),
        "seed": context.config.seed,
    }
    small = rows < IN_PROCESS and settings.masked_lm is None
    makes = _in_process if small or context.runtime.local else _in_actors
    making = makes(context, todo, arguments) if todo else iter(())
    title = "augmenting texts"
    context.console.progress(title, 0, len(parts), "starting")
    try:
        for i, name in enumerate(parts):
            if name in done:
                for fields in _fields(plan.folder / TEXTS / name, context.config):
                    unseen(fields)
            else:
                while not (plan.folder / MADE / name).exists():
                    if next(making, None) is None:
                        raise ArtifactError(f"{plan.folder / MADE / name}: missing; run again")
                done[name] = _join(plan.folder, name, unseen, context.config)
            context.console.progress(title, i + 1, len(parts), f"{done[name]['rows']} texts")
    finally:
        context.console.progress(title, 0, 0, "")
    texts = sum(receipt["rows"] for receipt in done.values())
    if not texts:
        raise ConfigError(
            f"data.text_augment: no new text came of {rows} rows: every copy is masked altogether or known "
            "already; raise data.text_augment.copies, or change the probabilities"
        )
    for folder in (SOURCE, MADE):
        shutil.rmtree(plan.folder / folder, ignore_errors=True)
    files = [f"{TEXTS}/{name}" for name in parts] + ([WORDS] if settings.pos_probability else [])
    summary = {"texts": texts, "rows": rows, "seconds": time.perf_counter() - began}
    known = {f"{TEXTS}/{name}": receipt for name, receipt in done.items()}
    manifest = plan.finish(files, summary, known=known)
    for name in parts:
        _receipt_path(plan.folder, name).unlink(missing_ok=True)
    (plan.folder / DAMAGED).unlink(missing_ok=True)
    return manifest


def _settings(config: Config) -> TextAugmentConfig:
    settings = config.data.text_augment
    assert settings is not None, "a run without augmentation has no such stage"
    return settings


def _absolute(settings: TextAugmentConfig) -> TextAugmentConfig:
    """Workers run in folders of their own."""
    paths = {"masked_lm": settings.masked_lm, "word_vectors": settings.word_vectors}
    changes = {
        name: str(Path(path).expanduser().absolute()) for name, path in paths.items() if path is not None
    }
    return settings.model_copy(update=changes)


def _columns(config: Config) -> list[str]:
    names = config.data.columns.input
    return [names] if isinstance(names, str) else list(names)


def _content(path: Path) -> str:
    """Stands for the content of a file or folder; of large files name, size and time count."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    parts = []
    for file in files:
        state = file.stat()
        large = state.st_size > HASHED_BYTES
        name = "" if file == path else str(file.relative_to(path))
        parts.append([name, state.st_size, state.st_mtime_ns if large else checksum(file)])
    return fingerprint(parts)


# -------------------------------------------------------------------------------------------- the parts


def _cut(config: Config, folder: Path, unseen: Unseen) -> tuple[list[str], int]:
    """Write the train texts by part, each of which makes about `data.shard_rows` texts; names and rows."""
    shutil.rmtree(folder / SOURCE, ignore_errors=True)
    for name in (SOURCE, MADE):
        (folder / name).mkdir(exist_ok=True)
    size = max(1, config.data.shard_rows // _settings(config).copies)
    names: list[str] = []
    waiting: list[tuple[int, tuple[str, ...]]] = []
    total = 0

    def write(rows: list[tuple[int, tuple[str, ...]]]) -> None:
        names.append(f"part-{len(names):05d}.parquet")
        table = {"row": pa.array([row for row, _ in rows], pa.int64())}
        for i in range(len(rows[0][1])):
            table[f"text{i}"] = pa.array([fields[i] for _, fields in rows], pa.string())
        _write(folder / SOURCE / names[-1], table)

    for numbers, texts in train_texts(config):
        for fields in texts:
            unseen(fields)
        total += len(texts)
        waiting += zip(numbers.tolist(), texts, strict=True)
        while len(waiting) >= size:
            write(waiting[:size])
            del waiting[:size]
    if waiting:
        write(waiting)
    return names, total


def _write(path: Path, columns: dict[str, pa.Array | pa.ChunkedArray]) -> None:
    """Atomic; a part may be without rows."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())


def _source_rows(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    table = pq.read_table(path)
    texts = [table[name].to_pylist() for name in table.column_names if name != "row"]
    return list(zip(table["row"].to_pylist(), zip(*texts, strict=True), strict=True))


def _learn_words(folder: Path, parts: list[str], settings: TextAugmentConfig, seed: int) -> None:
    if (folder / WORDS).exists():  # of a run that was killed later
        return

    def sentences() -> Iterator[list[str]]:
        for name in parts:
            for _, fields in _source_rows(folder / SOURCE / name):
                for text in fields:
                    yield words_of(text)

    write_json(folder / WORDS, learn_word_classes(sentences, settings.tagger, seed).to_dict())


def _fields(path: Path, config: Config) -> Iterator[tuple[str, ...]]:
    """The texts of a finished part."""
    table = pq.read_table(path, columns=_columns(config))
    yield from zip(*(table[name].to_pylist() for name in _columns(config)), strict=True)


def _join(folder: Path, name: str, unseen: Unseen, config: Config) -> dict[str, Any]:
    """Give a part its final name without the texts that came before; returns its receipt."""
    made = folder / MADE / name
    table = pq.read_table(made)
    fields = zip(*(column.to_pylist() for column in table.columns[1:]), strict=True)
    new = table.filter(pa.array([unseen(texts) for texts in fields], pa.bool_()))
    columns = dict(zip(_columns(config), new.columns[1:], strict=True))
    if config.data.columns.id is not None:
        columns[config.data.columns.id] = new["id"]
    target = folder / TEXTS / name
    _write(target, columns)
    receipt = describe_files(folder / TEXTS, [name])[name] | {"rows": new.num_rows}
    write_json(_receipt_path(folder, name), receipt)
    made.unlink()
    return receipt


def _receipt_path(folder: Path, name: str) -> Path:
    """Where a finished part's entry waits until the manifest is written."""
    return folder / Path(name).with_suffix(".json")


def _receipt(folder: Path, name: str) -> dict[str, Any] | None:
    """The entry of a part that an earlier run finished, where its file is still as it was."""
    entry = None
    for path in (_receipt_path(folder, name), folder / DAMAGED):
        try:
            entry = read_json(path)
        except ArtifactError:
            continue
        if path.name == DAMAGED:
            entry = entry["files"].get(f"{TEXTS}/{name}")
        break
    path = folder / TEXTS / name
    if entry is None or not path.exists() or checksum(path) != entry["sha256"]:
        return None
    return entry


# -------------------------------------------------------------------------------------- making the copies


class _Maker:
    """Makes the copies of one part after another; Ray Data keeps one per actor."""

    def __init__(
        self,
        folder: str,
        settings: dict[str, Any],
        seed: int,
        use_gpu: bool = False,
        mirror: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.mirror = attach(mirror)
        if self.mirror is not None:
            self.mirror.pull(self.folder)
        self.settings = TextAugmentConfig(**settings)
        classes = candidates = None
        if self.settings.pos_probability:
            classes = WordClasses(**read_json(self.folder / WORDS))
        if self.settings.word_probability:
            lm, vectors = self.settings.masked_lm, self.settings.word_vectors
            candidates = Candidates(
                self.settings.candidates,
                MaskedWords(lm, use_gpu) if lm is not None else None,
                WordVectors(vectors) if vectors is not None else None,
            )
        self.augmenter = TextAugmenter(self.settings, seed, classes, candidates)

    def make(self, name: str) -> str:
        ids: list[str] = []
        made: list[tuple[str, ...]] = []
        width = 1
        for row, fields in _source_rows(self.folder / SOURCE / name):
            width = len(fields)
            for copy, texts in enumerate(self.augmenter.copies(row, fields)):
                if texts is not None:
                    ids.append(f"augmented-{row}-{copy}")
                    made.append(texts)
        columns = {f"text{i}": pa.array([texts[i] for texts in made], pa.string()) for i in range(width)}
        _write(self.folder / MADE / name, {"id": pa.array(ids, pa.string()), **columns})
        return name

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = [self.make(str(name)) for name in batch["name"]]
        if self.mirror is not None:
            self.mirror.push(*(self.folder / MADE / name for name in names))
        return {"name": np.array(names, dtype=object)}


def _in_process(context: Context, todo: list[str], arguments: dict[str, Any]) -> Iterator[str]:
    from ensemble_kd.train.process import borrowed

    large = _settings(context.config).masked_lm is not None
    use_gpu = large and context.runtime.local and context.runtime.gpus_per_worker() > 0
    with borrowed(1) if large else nullcontext():
        maker = _Maker(**arguments, use_gpu=use_gpu)
        for name in todo:
            yield maker.make(name)


def _in_actors(context: Context, todo: list[str], arguments: dict[str, Any]) -> Iterator[str]:
    """Yields the names of parts as they are made, in any order."""
    runtime = context.runtime
    gpus = runtime.gpus_per_worker() if _settings(context.config).masked_lm is not None else 0.0
    folder = Path(arguments["folder"])
    if (mirror := attached()) is not None:
        mirror.push(folder)
    import ray.data

    dataset = ray.data.from_items(
        [{"name": name} for name in todo], override_num_blocks=len(todo)
    ).map_batches(
        _Maker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(runtime.capacity(), len(todo)))),
        num_cpus=context.config.compute.cpus_per_worker,
        num_gpus=gpus or None,
        fn_constructor_kwargs={**arguments, "use_gpu": gpus > 0, "mirror": attached_spec()},
    )
    for row in dataset.iter_rows():
        ensure(folder / MADE / str(row["name"]))
        yield str(row["name"])


class Augment(Stage):
    name = "augment"
    decides = True

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run)

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan)

    def rewrite(self, config: Config, artifact: Artifact) -> Config:
        return with_texts(config, artifact.plan)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        return f"{summary['texts']} texts from {summary['rows']} rows"


STAGE = Augment()
