"""The texts that phases learn from in place of the transfer set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import Identity, fingerprint, finish, read_manifest
from ensemble_kd.config import Config, CorpusConfig, student_blocks
from ensemble_kd.data.corpus import corpus_fingerprint, load_corpus, prepare_corpus, texts_up_to
from ensemble_kd.errors import InputError
from ensemble_kd.redact import redacted


def corpus_name(corpus: CorpusConfig) -> str:
    """Content and settings of a corpus."""
    return fingerprint(corpus_fingerprint(corpus), corpus.model_dump(mode="json", exclude={"path"}))


def corpora(config: Config, run: Path, data: Path) -> dict[str, Any]:
    """The phases' texts (N, L) by fingerprint, tokenised once and kept in the run's folder."""
    found: dict[str, Any] = {}
    for phase in config.student.phases:
        if phase.corpus is None:
            continue
        name = corpus_name(phase.corpus)
        folder = run / "corpus" / fingerprint("corpus", name, data.name)
        manifest = read_manifest(folder)
        if manifest is None:
            folder.mkdir(parents=True, exist_ok=True)
            summary = prepare_corpus(phase.corpus, config.data.text, data, folder, config.data.shard_rows)
            files = sorted(path.name for path in folder.glob("corpus-*.parquet"))
            manifest = finish(
                folder,
                Identity(
                    "corpus", folder.name, redacted(phase.corpus.model_dump(mode="json")), {"data": data.name}
                ),
                files,
                summary,
            )
        found[name] = load_corpus(folder, int(manifest.summary["longest"]))
    return found


def corpus_size_problems(config: Config, data: Path) -> list[str]:
    """Phases whose corpus has too few texts for one batch; reads no more texts than one takes."""
    problems = []
    for path, phase in student_blocks(config)[1:]:
        if phase.corpus is None:
            continue
        size = phase.training.batch_size
        try:
            found = texts_up_to(phase.corpus, config.data.text, data, size)
        except InputError as error:
            problems += [f"{path}.{line}" for line in error.problems]
            continue
        if found < size:
            problems.append(
                f"{path}.training.batch_size: {size}, but its corpus has {found} texts of "
                f"{phase.corpus.min_length} tokens or more (corpus.min_length, corpus.rows); lower it, or "
                "give more texts"
            )
    return problems
