"""What must hold of a model folder, or of an exported form's, before anything in it is used. No torch.

The folder may be a stranger's: only plain files inside it are opened, and what they say is checked before it
decides what is allocated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ensemble_kd import own_code
from ensemble_kd.artifacts import MANIFEST, Manifest, damage, parsed_manifest
from ensemble_kd.config import NETWORKS
from ensemble_kd.config.plugins import load
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.model_description import described
from ensemble_kd.registry import noted
from ensemble_kd.safe_files import LINK, entries, in_one_line, kind_problem, parse_json, read_plain, shown

PACKAGE_FORMAT = 1
"""Raised when a folder's layout or meaning changes; an older version then refuses newer folders."""

CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "README.md"
EXPORT = "export"
"""Below a model folder: the forms that were exported from it, a folder each."""
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"}
MOST_JSON = 16_000_000
"""Bytes of config.json and of the manifest: 100,000 classes with long names take half of it."""
MOST_TOLD = 8
"""Problems of one folder."""
TRUST = "ENSEMBLE_KD_TRUST"
"""Environment variable: modules, separated by commas, whose code a model folder may ask for."""


def model_in(folder: Path) -> Path:
    """The model of a run folder; any other folder as it is."""
    inside = folder / "model"
    return inside if not (folder / CONFIG).exists() and (inside / CONFIG).exists() else folder


def checked_folder(folder: Path, stage: str, needed: tuple[str, ...]) -> tuple[dict[str, Any], Manifest]:
    """The folder's config.json and manifest, after comparing every file with the manifest of that `stage`.

    Raises ArtifactError that names the file: missing, changed, outside the folder, a link, a pickle, not in
    the manifest although in `needed`, or of a newer format.
    """
    check_kinds(folder)
    config = read_format(folder)
    manifest = read_folder_manifest(folder)
    if manifest is None or manifest.stage != stage:
        raise ArtifactError(f"{folder / MANIFEST}: missing or not a model's; the folder is incomplete")
    problems = [f"{folder / n}: not in the manifest" for n in needed if n not in manifest.files]
    if kind_problem(folder / TOKENIZER) is None and TOKENIZER not in manifest.files:
        problems.append(f"{folder / TOKENIZER}: not in the manifest")
    problems = [*map(str, damage(folder, manifest)), *problems]
    if problems:
        more = [f"and {len(problems) - MOST_TOLD} more"] if len(problems) > MOST_TOLD else []
        told = "\n".join([*problems[:MOST_TOLD], *more])
        raise ArtifactError(f"{told}\ncopy the model folder again, or run again")
    return config, manifest


def check_kinds(folder: Path) -> None:
    """Raises ArtifactError for what is no plain file, or a pickle, anywhere below the folder."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; expected a model folder (RUN/model)")
    for path in entries(folder):
        if path.suffix.lower() in PICKLES:
            name = shown(path.relative_to(folder))
            raise ArtifactError(
                f"{folder / name}: a pickle can run code and is never read; remove it from the folder"
            )


def read_format(folder: Path) -> dict[str, Any]:
    """config.json, its format before anything else, so that a newer folder is told apart from a damaged one.

    Raises ArtifactError, on one line, where a field is missing or odd.
    """
    path = folder / CONFIG
    content = read_plain(path, MOST_JSON)
    config = parse_json(content, str(path))
    found = config.get("format") if isinstance(config, dict) else None
    if found != PACKAGE_FORMAT or isinstance(found, bool):
        raise ArtifactError(
            f"{path}: format {shown(found)}, this version reads format {PACKAGE_FORMAT}; upgrade ensemble-kd"
        )
    return described(content, str(path))


def read_folder_manifest(folder: Path) -> Manifest | None:
    """As `read_manifest`, of a folder that a stranger may have written."""
    path = folder / MANIFEST
    if kind_problem(path) == "missing":
        return None
    return parsed_manifest(parse_json(read_plain(path, MOST_JSON), str(path)), path)


def form_folder(folder: Path, form: str) -> Path | None:
    """The folder of an exported form below a model folder; None where there is none.

    Raises ArtifactError for one that is a link, or leads through one.
    """
    path = folder
    for name in (EXPORT, form):
        path = path / name
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            raise ArtifactError(f"{path}: {LINK}")
        if not stat.S_ISDIR(mode):
            raise ArtifactError(f"{path}: not a folder")
    return path


def check_trust(folder: Path, config: dict[str, Any], trust: Collection[str] = ()) -> None:
    """Before anything is imported: whether the user allows the code that a folder's settings ask for.

    `config` is its config.json; `trust` are modules besides those of the environment variable. Raises
    ArtifactError that says how to allow it, or that it never is.
    """
    where, model = folder / CONFIG, config["model"]
    if model["name"] == "transformer":
        if model.get("trust_remote_code"):
            raise ArtifactError(
                f"{where}: model.trust_remote_code is true, and code that comes with a model never runs "
                "because a folder says so; export it as onnx from its own run, and use that form"
            )
        if model.get("source") is not None:
            raise ArtifactError(
                f"{where}: model.source is {shown(repr(model['source']))}; a model folder is complete in "
                "itself and reads nothing outside; its architecture belongs in model.architecture"
            )
    asked = [(module, f"plug-in {shown(module)}") for module in plugins_of(config)]
    if model["name"] == "custom":
        module = str(model["callable"]).partition(":")[0]
        asked.append((module, shown(model["callable"])))
    allowed = {*trust, *(name.strip() for name in os.environ.get(TRUST, "").split(","))}
    for module, what in asked:
        # What this process was given by its user is there already: nothing is imported for the folder's sake.
        given = model["name"] == "custom" and own_code.find(model["callable"]) is not None
        if module not in allowed and not (given and what == shown(model["callable"])):
            own = f"; {own_code.advice(module)}" if own_code.MODULE.fullmatch(module) else ""
            raise ArtifactError(
                f"{where}: the network is made by {what}, code from outside the folder; "
                f"if you trust it: --trust {shown(module)} (or {TRUST}={shown(module)}){own}"
            )


def plugins_for(model: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of the plug-in that a network's settings need; nothing without one."""
    plugin = NETWORKS.origin(str(model["name"]))
    return {} if plugin is None else {"plugins": noted([plugin])}


def plugins_of(config: dict[str, Any]) -> list[str]:
    """Modules that a folder's network needs, by its config.json; nothing is imported."""
    return [str(plugin["module"]) for plugin in config.get("plugins", [])]


def import_plugins(folder: Path, config: dict[str, Any]) -> None:
    """Import what `check_trust` has allowed. Raises ArtifactError where that brings no such network."""
    wanted, where = plugins_of(config), folder / CONFIG
    try:
        load(wanted, "plugins")
    except ConfigError as error:
        raise ArtifactError(f"{where}: {in_one_line(error, 600)}") from error
    name = config["model"]["name"]
    if name not in NETWORKS.registry:
        found = f"plug-in {', '.join(map(shown, wanted))} registers" if wanted else "nothing here registers"
        raise ArtifactError(
            f"{where}: model.name is {shown(repr(name))}, and {found} no network of that name; use the "
            "version of the plug-in that the model was made with"
        )
