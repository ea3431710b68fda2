"""Stage 1: the data set as arrays on disk, split, checked and fingerprinted. Needs no Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import (
    Config,
    CsvConfig,
    class_name_problems,
    has_class_weights,
    text_source,
    with_class_weights,
    with_epochs,
)
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_labels
from ensemble_kd.data.sources import source_fingerprint
from ensemble_kd.redact import redacted
from ensemble_kd.stages.base import Artifact, DataFound, Done, Stage
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.targets import target_in


def plan(config: Config, run: Any) -> StagePlan:
    """Reads the source once to fingerprint it."""
    settings = config.data.model_dump(mode="json")
    settings.pop("augment")  # used by teachers and soft targets, which carry it in their own settings
    settings.pop("text_augment")  # its texts are among the unlabelled ones
    settings.pop("path")  # the content counts, not where it lies
    settings["text"].pop("source")
    if config.data.csv == CsvConfig():
        settings.pop("csv")
    if settings["target"] == "class":
        settings.pop("target")
    later: tuple[tuple[dict[str, Any], str, Any], ...] = (  # settings that version 0.1 did not have
        (settings, "splits", {}),
        (settings, "duplicates", "keep"),
        (settings["image"], "mode", "auto"),
        (settings["image"], "resize", None),
    )
    for block, name, default in later:
        if block[name] == default:
            block.pop(name)
    for name in ("unlabelled", "class_names"):  # files of which the source's fingerprint holds the content
        if isinstance(settings[name], str):
            settings.pop(name)
    tokenizer = text_source(config) if config.data.kind == "text" else None
    source = source_fingerprint(config.data, tokenizer)
    return StagePlan.of(run, "data", {"data": settings, "seed": config.seed}, {"source": source})


def run(context: Context, plan: StagePlan) -> Manifest:
    """Prepare the data. Raises InputError with everything that is wrong with the source."""
    began = time.perf_counter()
    plan.folder.mkdir(parents=True, exist_ok=True)
    warnings: list[str] = []
    try:
        info, files = prepare(context.config, plan.folder, warnings.append)
    finally:
        for line in warnings:
            context.console.warning(line)
    summary = {"info": info.to_dict(), "seconds": time.perf_counter() - began, "warnings": redacted(warnings)}
    return plan.finish(files, summary)


class Data(Stage):
    name = "data"
    decides = True

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run)

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan)

    def problems(self, config: Config, found: DataFound) -> list[str]:
        return class_name_problems(config, found.info.get("class_names", []))

    def rewrite(self, config: Config, artifact: Artifact) -> Config:
        """Epochs and weights of classes as numbers: only the rows tell what `auto` and `balanced` come to."""
        config = with_epochs(config, artifact.known("info")["counts"])
        if not has_class_weights(config):
            return config
        names = artifact.known("info")["class_names"]
        labels = load_labels(artifact.folder, "transfer")
        counts = np.bincount(labels[labelled(labels)], minlength=len(names)).tolist()
        return with_class_weights(config, names, counts)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        info = summary["info"]
        counts = info["counts"]
        unlabelled = counts["transfer"] - counts["labelled"]
        extra = f" and {unlabelled} without" if unlabelled else ""
        return (
            f"{counts['labelled']} rows with label{extra}, {counts['validation']} validation, "
            f"{counts['test']} test, " + target_in(info).summary(info["class_names"])
        )


STAGE = Data()
