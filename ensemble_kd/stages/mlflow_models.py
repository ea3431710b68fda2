"""Teachers that lie in MLflow: fetched, and sorted by what they are. Nothing is ever unpickled.

One of the transformers flavour, or a plain folder of `save_pretrained`, becomes a pretrained teacher; a model
folder of ours is loaded as `predict` does; a pyfunc that was logged as code is called (the code then runs, as
a callable's does); all else is refused.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ensemble_kd.artifacts import MANIFEST, fingerprint, read_json, write_json
from ensemble_kd.config import Config, cross_field_problems, numbers_only_problems, text_source
from ensemble_kd.errors import ConfigError
from ensemble_kd.model_folder import PICKLES
from ensemble_kd.redact import redacted

MLMODEL, PLACE = "MLmodel", "place.json"
CODE_LOADERS = ("mlflow.pyfunc.loaders.code_model", "mlflow.pyfunc.model")
"""What loads a pyfunc that was logged as code; the latter unpickles where there is no `model_code_path`."""
LASTING = re.compile(r"(runs:/.+|models:/(m-[0-9a-f]+|[^/@]+/\d+)(/.*)?)$")
"""URIs behind which the model does not change: one of a run, or of a version."""


def with_models(config: Config, run: Path | None) -> Config:
    """The configuration with folders in the place of MLflow's URIs; pretrained ones become just that.

    They are fetched into the run's folder, or without one read where they are, or from a temporary copy.
    Raises ConfigError where a model cannot be had, or holds a pickle.
    """
    teachers = config.teachers
    if teachers.source != "mlflow":
        return config
    found = [
        _kind(_fetch(config, i, run), f"teachers.given.{i}", uri) for i, uri in enumerate(teachers.given)
    ]
    kinds = [kind for kind, _, _ in found]
    changes: dict[str, Any] = {"given": [str(folder) for _, folder, _ in found]}
    if "pretrained" in kinds and set(kinds) != {"pretrained"}:
        other = next(i for i, kind in enumerate(kinds) if kind != "pretrained")
        raise ConfigError(
            f"teachers.given.{other}: {teachers.given[other]} is asked about raw inputs, "
            f"{teachers.given[kinds.index('pretrained')]} becomes a network of the run; give one kind alone"
        )
    data, problems = config.data, []
    reads_pieces = data.kind == "text" and data.text.tokenizer == "pretrained"
    if "pretrained" in kinds:
        changes |= {"source": "pretrained"}
        if reads_pieces and text_source(config) is None:
            data = data.model_copy(update={"text": data.text.model_copy(update={"source": str(found[0][2])})})
    else:
        problems += numbers_only_problems(config)
        if reads_pieces and text_source(config) is None:
            problems.append(
                "data.text.source: missing, and neither a teacher nor the student has a tokenizer; give a "
                "hub name, a local folder or package:MODULE/FOLDER"
            )
    changed = config.model_copy(update={"teachers": teachers.model_copy(update=changes), "data": data})
    if problems := problems + cross_field_problems(changed):
        raise ConfigError(problems)
    return changed


def _fetch(config: Config, index: int, run: Path | None) -> Path:
    """The folder of a model; what a run fetched stays in its folder."""
    uri, where = config.teachers.given[index], f"teachers.given.{index}"
    if (local := Path(uri).expanduser()).is_dir():
        return local.absolute()
    target = None if run is None else run / "teachers" / "fetched" / fingerprint(uri)
    if target is not None and LASTING.match(uri) and (target / PLACE).exists():
        return target / str(read_json(target / PLACE)["folder"])
    if target is not None:
        shutil.rmtree(target, ignore_errors=True)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts

    server = config.tracking.uri
    try:
        with _at(server):
            got = download_artifacts(uri, dst_path=None if target is None else str(target / "model"))
    except Exception as error:  # the library, its stores and the network raise many kinds
        first = (str(error).splitlines() or [""])[0][:300]
        raise ConfigError(
            f"{where}: {uri} cannot be fetched from MLflow at {server or 'MLFLOW_TRACKING_URI'} "
            f"({type(error).__name__}: {first}); set tracking.uri to the server that holds it, or give a "
            "folder"
        ) from error
    folder = Path(got).absolute()
    if target is not None:
        write_json(
            target / PLACE, {"uri": redacted(uri), "folder": str(folder.relative_to(target.absolute()))}
        )
    return folder


@contextmanager
def _at(server: str | None) -> Iterator[None]:
    """Ask this server; told to the library as a whole, which looks up `models:/` in no other way."""
    if server is None:
        yield
        return
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _kind(folder: Path, where: str, uri: str) -> tuple[str, Path, Path]:
    """What a model's folder holds: `pretrained`, `package` or `pyfunc`, its folder, that of its tokenizer.

    Raises ConfigError for all else, with the way to log it instead.
    """
    remedy = (
        "log it with mlflow.transformers.log_model, or as code "
        "(mlflow.pyfunc.log_model(python_model='FILE.py'), where FILE.py ends with mlflow.models.set_model) "
        "beside weights as safetensors; or call it yourself: teachers.source=callable"
    )
    pickles = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix.lower() in PICKLES)
    if not (folder / MLMODEL).is_file():
        if (folder / MANIFEST).is_file() and (folder / "config.json").is_file():
            return "package", folder, folder
        if (
            folder / "config.json"
        ).is_file():  # the folder of save_pretrained; pickles are told by its reader
            return "pretrained", folder, folder
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise ConfigError(
            f"{where}: {uri} is no model: neither {MLMODEL} nor config.json, but {held}; {remedy}"
        )
    try:
        flavors = dict(yaml.safe_load((folder / MLMODEL).read_text(encoding="utf-8"))["flavors"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: {folder / MLMODEL} is no description of a model ({error}); log it anew"
        ) from error
    if "transformers" in flavors:
        inside = folder / str(flavors["transformers"].get("model_binary", "absent"))
        whole = "peft_adaptor" not in flavors["transformers"] and inside.is_dir()
        if not whole or not inside.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{where}: {uri} was logged without its whole weights; log it with save_pretrained=True, an "
                "adapter merged, or give its source: teachers.source=pretrained"
            )
        tokenizer = folder / "components" / "tokenizer"
        return "pretrained", inside, tokenizer if tokenizer.is_dir() else inside
    if pickles:
        raise ConfigError(
            f"{where}: {uri} holds {pickles[0]}, a pickle, which can run code and is never read; {remedy}"
        )
    pyfunc = flavors.get("python_function") or {}
    if pyfunc.get("loader_module") in CODE_LOADERS and pyfunc.get("model_code_path"):
        return "pyfunc", folder, folder
    raise ConfigError(f"{where}: {uri} is of the flavours {', '.join(flavors)}, which are not read; {remedy}")
