"""In which order a given teacher's outputs stand: as the user says, or as its own names of the classes do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_kd.config import Config, num_teachers
from ensemble_kd.data.records import load_info
from ensemble_kd.errors import ConfigError

FIELD = "teachers.class_order"


def orders_of(config: Config, info: dict[str, Any] | None) -> list[list[int] | None]:
    """Per member the data's class of each of its outputs, where the configuration says so.

    Raises ConfigError for what is no order of the data's classes, and for a file that cannot be read.
    """
    said, count = config.teachers.class_order, num_teachers(config)
    if said is None or info is None:
        return [None] * count
    entries = said if isinstance(said, dict) else dict.fromkeys(range(count), said)
    fields = {i: f"{FIELD}.{i}" if isinstance(said, dict) else FIELD for i in entries}
    names = info["class_names"]
    return [
        _order(_names(entries[i], fields[i]), names, fields[i]) if i in entries else None
        for i in range(count)
    ]


def _names(entry: str | list[str | int], field: str) -> list[str]:
    if not isinstance(entry, str):
        return [str(name) for name in entry]
    try:
        lines = Path(entry).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{field}: {entry!r} is no list, and no file with one name a line either ({error})"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _order(given: list[str], names: list[str], field: str) -> list[int]:
    if sorted(given) != sorted(names):
        unknown = [name for name in given if name not in names]
        absent = [name for name in names if name not in given]
        wrong = [f"{len(given)} for {len(names)} classes"] if len(given) != len(names) else []
        wrong += [f"unknown {_some(unknown)}"] if unknown else []
        wrong += [f"without {_some(absent)}"] if absent else []
        raise ConfigError(
            f"{field}: {'; '.join(wrong) or 'a name comes twice'}; list each class of the data once, as the "
            f"data calls them ({_some(names)}), in the order of the teacher's outputs"
        )
    place = {name: i for i, name in enumerate(names)}
    return [place[name] for name in given]


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def order_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """What is wrong with `teachers.class_order`, held against the data's classes."""
    try:
        orders_of(config, info)
    except ConfigError as error:
        return error.problems
    return []


def info_of(run: Path, data: str) -> dict[str, Any] | None:
    """The description of prepared data; None where it is not there (yet)."""
    folder = run / "data" / data
    return load_info(folder).to_dict() if (folder / "info.json").is_file() else None
