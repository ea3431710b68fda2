"""What is wrong, and what there is to do, as far as it can be told before torch is loaded, in a second."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ensemble_kd.callables import load, model_problems
from ensemble_kd.config import (
    Config,
    CustomModelConfig,
    TransformerConfig,
    corner_problems,
    student_models,
    variants,
)
from ensemble_kd.config_yaml import one_line
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.model_size import least_size, memory_at_hand, size_of, size_problems

PLAIN_OBJECTIVES = ("kl", "mse")
"""Names of losses on logits that have no needs of their own; the others are asked in torch's room."""
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "huggingface": ("transformers",), "program": ()}


def check_early(config: Config, address: str | None = None) -> None:
    """Raises ConfigError with what no data is needed for, before anything is started or built.

    `address` is that of the Ray cluster that the run will have.
    """
    memory = memory_of(config, address)

    def of_sizes(config: Config) -> list[str]:
        return size_problems(config, least_size(config), memory)

    problems = of_sizes(config) + corner_problems(config, of_sizes)
    problems += callable_problems(config) + class_problems(config, _known_classes(config))
    problems += form_problems(config)
    if address is not None and config.compute.executor == "local":
        problems.append(
            f"compute.executor: local, which is this process alone, but --address is {address}; leave one of "
            "them out"
        )
    if problems:
        raise ConfigError(problems)


def memory_of(config: Config, address: str | None) -> int | None:
    """This machine's memory; None where the run's workers are on a cluster."""
    cluster = address or (config.compute.executor != "local" and os.environ.get("RAY_ADDRESS"))
    return None if cluster else memory_at_hand()


def too_large(config: Config, info: dict[str, Any], address: str | None = None) -> list[str]:
    """Networks that this machine cannot hold, once the data is known."""
    memory = memory_of(config, address)

    def of_sizes(config: Config) -> list[str]:
        return size_problems(config, size_of(info), memory)

    return of_sizes(config) + corner_problems(config, of_sizes)


def callable_problems(config: Config) -> list[str]:
    """Callables of the user that cannot be imported, are none, or do not take what they are called with."""
    teachers, problems = config.teachers, list[str]()
    models = student_models(config.student)
    if teachers.source == "train":
        models.append(("teachers.model", teachers.model))
        models += [(f"{path}.model", each.model) for path, each in variants(teachers)]
    for path, model in models:
        if isinstance(model, CustomModelConfig):
            problems += model_problems(model.callable, model.options, path)
    if teachers.source == "callable":
        for i, name in enumerate(teachers.given):
            try:
                load(name, f"teachers.given.{i}")
            except ConfigError as error:
                problems += error.problems
    return problems


def class_problems(config: Config, classes: int | None) -> list[str]:
    """A problem where `student.without_classes` leaves no class to learn from labels."""
    left_out = set(config.student.without_classes)
    if classes is None or len(left_out & set(range(classes))) < classes:
        return []
    return [
        f"student.without_classes: all {classes} classes are left out, so that no labelled row is left to "
        "learn from; keep at least one"
    ]


def _known_classes(config: Config) -> int | None:
    if config.data.source == "digits":
        return 10
    names = config.data.class_names
    return len(names) if isinstance(names, list) and names else None


def form_problems(config: Config) -> list[str]:
    """Forms whose libraries are not installed."""
    if config.export is None:
        return []
    problems = []
    for i, form in enumerate(config.export.forms):
        needed = PACKAGES.get(form, PACKAGES["onnx"])
        if absent := [name for name in needed if find_spec(name) is None]:
            problems.append(
                f"export.forms.{i}: {form!r} needs {' and '.join(absent)}, not installed here; run: pip "
                "install 'ensemble-kd[onnx]', or leave the form out"
            )
    return problems


def folder_problems(run_dir: str) -> list[str]:
    """Whether a run folder can be made where `--run-dir` says; nothing is written to see."""
    folder = Path(run_dir).absolute()
    told = f"--run-dir: {one_line(run_dir, 200)} cannot be written"
    if not run_dir.strip():
        return ["--run-dir: empty; name a folder, or leave it out for runs/NAME"]
    if "\0" in run_dir:
        return [f"{told} (it has a NUL character); choose another"]
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        folder.stat()
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        return [f"{told} ({said}); choose another"]
    if not folder.is_dir():
        return [f"{told} ({one_line(str(folder), 200)} is not a folder); choose another"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"{told} (no permission to write into {one_line(str(folder), 200)}); choose another"]
    return []


# ------------------------------------------------------------------------------------------------- check


def quick(config: Config, folder: Path) -> bool:
    """Whether `first_plan` is all there is to say: the data is still to be read, and the rest is plain."""
    teachers, student, sweep = config.teachers, config.student, config.sweep
    models = [student.model, teachers.model, *(each.model for _, each in variants(teachers))]
    searched = [path.removeprefix("student.").split(".")[0] for path in (sweep.space if sweep else {})]
    return (
        not (folder / "data").exists()
        and config.data.predicts.classified
        and config.data.text_augment is None
        and config.soft_targets.top_k is None
        and teachers.source in ("train", "callable")
        and student.objective in PLAIN_OBJECTIVES
        and not (student.terms or student.phases or student.online.source)
        and not any(isinstance(model, TransformerConfig) for model in models)
        and not {"objective", "terms"} & set(searched)
    )


def first_plan(config: Config, folder: Path, warn: Callable[[str], None]) -> list[tuple[str, str]]:
    """Each stage of a run that has not begun, with its state. Writes nothing.

    `warn` takes what is odd about the data, but no reason to stop.
    Raises ConfigError or InputError with all problems.
    """
    from ensemble_kd.data.first_pass import inspect_source
    from ensemble_kd.stages import data as data_stage

    if problems := inspect_source(config, warn):
        raise InputError(problems)
    plan = data_stage.plan(config, folder)
    later = [(name, "to do: follows data") for name in config.stages if name != "data"]
    return [("data", f"to do: {plan.why()}"), *later]
