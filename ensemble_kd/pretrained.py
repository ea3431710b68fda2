"""Where a pretrained model lies, and what its folder holds: tokenizer, weights.

A source is a hub name, a local folder, or `package:MODULE/FOLDER` inside an installed Python package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from ensemble_kd.artifacts import checksum
from ensemble_kd.errors import ConfigError, InputError

PACKAGE = "package:"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
ADAPTER = "adapter_config.json"
TOKENIZER_JSON = "tokenizer.json"
VOCABULARIES = (TOKENIZER_JSON, "vocab.txt", "vocab.json", "*.model", "tokenizer.tiktoken")
"""Files of which a tokenizer needs one."""
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
"""Files that together say what a tokenizer does; of them `tokenizer.json` alone is complete."""


def resolve_source(source: str, where: str = "source") -> str:
    """The folder of a source as a path; a hub name as it is. `where` is the field that names it.

    Raises ConfigError where a package is not installed, or a folder does not exist.
    """
    if source.startswith(PACKAGE):
        return str(_package_folder(source, where))
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if path.is_file():
        raise ConfigError(f"{where}: {source} is a file; give its folder, {path.parent}")
    if source.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"{where}: no such folder: {source}{_beside(path)}")
    return source


def _beside(path: Path) -> str:
    names = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    return f"; {path.parent} holds {_some(names)}" if names else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _package_folder(source: str, where: str) -> Path:
    """Found without importing the package."""
    module, _, inside = source.removeprefix(PACKAGE).partition("/")
    top, *below = module.split(".")
    if not all(part.isidentifier() for part in (top, *below)) or ".." in PurePosixPath(inside).parts:
        raise ConfigError(f"{where}: {source!r} is not of the form package:MODULE/FOLDER")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a specification, such as __main__
        spec = None
    if spec is None:
        raise ConfigError(
            f"{where}: the Python package {top!r} of {source} is not installed; run: pip install {top}"
        )
    roots = [Path(root).joinpath(*below) for root in spec.submodule_search_locations or []]
    for root in roots:
        if (root / inside).is_dir():
            return (root / inside).absolute()
    held = sorted(
        entry.name for root in roots if root.is_dir() for entry in root.iterdir() if _visible(entry)
    )
    raise ConfigError(
        f"{where}: the package {module!r} has no folder {inside!r}; its folders: {_some(held) or 'none'}"
    )


def _visible(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "__"))


def source_folder(source: str, where: str = "source") -> Path | None:
    """Where the files of a source lie: its folder, or of a hub name the snapshot in the cache, if any.

    Raises ConfigError as `resolve_source`.
    """
    resolved = resolve_source(source, where)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(resolved, "config.json")
    except HFValidationError:  # no name that the hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def source_file(source: str, name: str, where: str = "source") -> Path | None:
    """A file of a source by its name: in its folder, in the cache of the hub, or fetched; None without it."""
    resolved = resolve_source(source, where)
    if Path(resolved).is_dir():
        path = Path(resolved) / name
        return path if path.is_file() else None
    from transformers.utils import cached_file

    quiet: dict[str, Any] = {
        f"_raise_exceptions_for_{what}": False
        for what in ("missing_entries", "connection_errors", "gated_repo")
    }
    try:
        found = cached_file(resolved, name, **quiet)
    except (OSError, ValueError):  # no such model: whoever reads its configuration says so
        return None
    return Path(found) if found is not None else None


def adapter_problem(folder: Path, where: str) -> str | None:
    """Of a folder that holds the difference to a base model alone: how to make it whole."""
    whole = [path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter")]
    if not (folder / ADAPTER).is_file() or whole:
        return None
    try:
        said = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base, of_texts = str(said["base_model_name_or_path"]), said.get("task_type") == "SEQ_CLS"
    except (OSError, ValueError, KeyError, TypeError):
        base, of_texts = "BASE", True
    adapted = (
        f"peft.AutoPeftModelForSequenceClassification.from_pretrained({str(folder)!r}, num_labels=CLASSES)"
    )
    kind = "Tokenizer"
    if not of_texts:
        model = f"transformers.AutoModelForImageClassification.from_pretrained({base!r}, num_labels=CLASSES)"
        adapted, kind = f"peft.PeftModel.from_pretrained({model}, {str(folder)!r})", "ImageProcessor"
    return (
        f"{where}: {folder} is an adapter (PEFT), of no use without the model that it changes, {base}. Merge "
        "them and give the merged folder:\n"
        f"    {adapted}.merge_and_unload().save_pretrained('merged')\n"
        f"    transformers.Auto{kind}.from_pretrained({base!r}).save_pretrained('merged')"
    )


def source_files_problems(folder: str | Path, where: str = "source") -> list[str]:
    """What keeps a local folder from being loaded as a model: one line each."""
    folder, problems = Path(folder), []
    if (problem := adapter_problem(folder, where)) is not None:
        return [problem]
    if not (folder / "config.json").is_file():
        held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        problems.append(
            f"{where}: no config.json in {folder}; it holds {_some(held) or 'nothing'}. "
            "Give the folder that save_pretrained wrote"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = [
            path.name
            for path in sorted(folder.glob("*"))
            if path.suffix.lower() in PICKLED and path.name not in NOT_WEIGHTS
        ]
        if pickled:
            problems.append(
                f"{where}: the weights {pickled[0]} in {folder} are a pickle, which can run code and is "
                "never read; load them in a place you trust and write them anew with "
                "model.save_pretrained(FOLDER, safe_serialization=True), then give that folder"
            )
    return problems


def weights_digest(folder: str | Path) -> str:
    """16 hexadecimal digits that change with the weights or config.json, not with where they lie."""
    folder, digest = Path(folder), hashlib.sha256()
    for path in [*sorted(folder.glob("*.safetensors")), folder / "config.json"]:
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.name}\0{_checksum(str(path), stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _checksum(path: str, size: int, changed: int) -> str:
    """Gigabytes are read once, not for every member that starts from them."""
    return checksum(Path(path))


# --------------------------------------------------------------------------------------- tokenizers


def read_tokenizer(source: str, where: str = "data.text.source") -> Any:
    """The tokenizer of a source, as an object of the tokenizers library that neither cuts nor pads.

    Raises ConfigError or InputError, with the field `where`, where there is none or it cannot be read.
    """
    resolved = resolve_source(source, where)
    folder = Path(resolved)
    if folder.is_dir():
        if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
            held = sorted(entry.name for entry in folder.iterdir())
            raise InputError(
                f"{where}: no tokenizer in {folder}, which holds {_some(held) or 'nothing'}; "
                "copy tokenizer.json or vocab.txt of the model there"
            )
        if (folder / TOKENIZER_JSON).is_file():
            return _plain(_from_json(folder / TOKENIZER_JSON, where))
    return _plain(_from_transformers(resolved, folder.is_dir(), where))


def _plain(tokenizer: Any) -> Any:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_json(path: Path, where: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise InputError(f"{where}: {path} is not a tokenizer ({error}); fetch it again") from error


def _from_transformers(source: str, local: bool, where: str) -> Any:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=local)
    except Exception as error:  # the library and the network raise many kinds
        first = (str(error).splitlines() or [""])[0]
        remedy = (
            "give a folder with tokenizer.json"
            if local
            else "without a network give a local folder or package:MODULE/FOLDER"
        )
        raise InputError(
            f"{where}: cannot load the tokenizer of {source!r}: {type(error).__name__}: {first}; {remedy}"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{where}: the tokenizer of {source!r}, {type(loaded).__name__}, has no fast form; "
            "give a folder with tokenizer.json"
        )
    return backend


def tokenizer_digest(source: str, where: str = "data.text.source") -> str:
    """16 hexadecimal digits that change with what the tokenizer does, not with where it lies.

    Raises ConfigError or InputError where there is none.
    """
    folder = Path(resolve_source(source, where))
    digest = hashlib.sha256()
    if folder.is_dir():
        whole = [folder / TOKENIZER_JSON] if (folder / TOKENIZER_JSON).is_file() else []
        for path in whole or sorted({p for pattern in TOKENIZER_FILES for p in folder.glob(pattern)}):
            digest.update(f"{path.name}\0{checksum(path)}\n".encode())
    else:
        digest.update(read_tokenizer(source, where).to_str().encode())
    return digest.hexdigest()[:16]
