"""The files that a run reads beside its data: whether pretrained models are there, and their digests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ensemble_kd.config import Config, student_blocks, student_models, text_source, variants
from ensemble_kd.config.start import StaticEmbeddingConfig
from ensemble_kd.data.corpus import corpus_problems
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.models.pooling import LIBRARY, source_pooling
from ensemble_kd.pretrained import (
    adapter_problem,
    read_tokenizer,
    resolve_source,
    source_folder,
    weights_digest,
)
from ensemble_kd.stages.corpora import corpus_name


def source_problems(config: Config) -> list[str]:
    """Pretrained models that are not where the configuration says: folders, installed packages."""
    start = getattr(config.student.model, "start", None)
    wanted = [(f"{path}.source", getattr(m, "source", None)) for path, m in student_models(config.student)]
    wanted += [("student.model.start.source", getattr(start, "source", None))]
    wanted += [(f"{path}.online.source", block.online.source) for path, block in student_blocks(config)]
    if config.teachers.source in ("pretrained", "transformers"):
        wanted += [(f"teachers.given.{i}", source) for i, source in enumerate(config.teachers.given)]
    if config.teachers.source == "train":
        models = [config.teachers.model, *(o.model for _, o in variants(config.teachers) if o.model)]
        wanted += [("teachers.model.source", getattr(model, "source", None)) for model in models]
    problems: list[str] = []
    for path, phase in student_blocks(config)[1:]:
        if phase.corpus is not None:
            problems += [f"{path}.{line}" for line in corpus_problems(phase.corpus)]
    folders: dict[str, str] = {}
    for path, source in wanted:
        try:
            if source and (folder := source_folder(source, path)) is not None:
                adapter = adapter_problem(folder, path)
                problems += [adapter] if adapter else []
                folders[path] = str(folder)
        except ConfigError as error:
            problems += error.problems
    for path, model in student_models(config.student):
        if getattr(model, "weights", "") == "random":
            folders.pop(f"{path}.source", None)  # only its architecture is taken over
    if config.teachers.source == "transformers":  # each reads its own word pieces
        folders = {path: folder for path, folder in folders.items() if not path.startswith("teachers.")}
    return problems or _tokenizer_problems(config, folders)


def _tokenizer_problems(config: Config, folders: dict[str, str]) -> list[str]:
    """Sources whose weights know other word pieces than those that the data's texts are cut into."""
    usual = text_source(config)
    if usual is None or not folders:
        return []
    own = _vocabulary(str(source_folder(usual) or resolve_source(usual)))
    problems = []
    for path, folder in folders.items():
        theirs = _vocabulary(folder) if own else {}
        if not theirs or theirs == own:
            continue
        other = next(piece for piece in sorted(own | theirs) if own.get(piece) != theirs.get(piece))
        problems.append(
            f"{path}: its tokenizer has {len(theirs)} word pieces and is not the one that the texts are cut "
            f"by, that of {usual} with {len(own)} (for one, {other!r} is {theirs.get(other)} there and "
            f"{own.get(other)} here); teachers and students read the same pieces: use models that share a "
            + (
                "tokenizer, or ask each with its own: teachers.source=transformers"
                if path.startswith("teachers.given")
                else "tokenizer, or set weights: random for this one"
            )
        )
    return problems


@cache
def _vocabulary(folder: str) -> dict[str, int]:
    """Numbers of the word pieces of a source's tokenizer; empty where it has none that can be read."""
    try:
        vocabulary: dict[str, int] = read_tokenizer(folder).get_vocab(with_added_tokens=True)
    except (ConfigError, InputError):
        return {}
    return vocabulary


def source_digests(config: Config) -> list[str]:
    """Fingerprints of the files that a student reads beside the run's own: pretrained models, corpora."""
    student = config.student
    sources = [getattr(student.model, "source", None), student.online.source]
    sources += [getattr(model, "source", None) for model in student.assistants]
    start = getattr(student.model, "start", None)
    if isinstance(start, StaticEmbeddingConfig) and start.weights == "pretrained":
        sources.append(start.source or text_source(config))
    found = []
    for phase in student.phases:
        sources.append(phase.online.source)
        found += [corpus_name(phase.corpus)] if phase.corpus else []
    for source in filter(None, sources):
        folder = resolve_source(source)
        found.append(weights_digest(folder) if Path(folder).is_dir() else folder)
    if (pooling := source_pooling(student.model)) != LIBRARY:
        found.append(pooling)
    return found
