"""Hugging Face data sets: by name, or from a local folder with nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.config import DataConfig
from ensemble_kd.data.pieces import Source
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.readable import checked
from ensemble_kd.data.split_names import resolve, tell_left
from ensemble_kd.errors import InputError
from ensemble_kd.paths import WILDCARDS, missing, path_problem


@dataclass
class HubPiece:
    """One split of a Hugging Face data set."""

    name: str
    dataset: Any

    def columns(self) -> list[str]:
        return list(self.dataset.column_names)

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        plain = self.dataset.select_columns(columns).with_format("arrow")
        for begin in range(0, len(plain), rows):
            try:
                table, bad = checked(plain[begin : begin + rows])
            except Exception as error:  # the library and Arrow raise many kinds for a damaged file
                raise InputError(f"{self.name}: rows from {begin} on cannot be read: {error}") from error
            if bad:
                row, text = next(iter(bad.items()))
                raise InputError(f"row {begin + row} of {self.name}: {text}")
            yield table


def hub_folder(data: DataConfig) -> Path | None:
    """The folder that the name is, if it is one. Raises InputError for what cannot be a path or a name."""
    name = str(data.hub_name)
    if (problem := path_problem(name)) is not None:
        raise InputError(f"data.hub_name: {problem}")
    folder = Path(name).expanduser()
    return folder if missing(name, "folder") is None else None


def load_hub(data: DataConfig) -> dict[str, Any]:
    """The data set's splits by name. Raises InputError where it cannot be loaded."""
    import datasets
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    name = str(data.hub_name)
    folder = hub_folder(data)
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # preparing data has one line of its own
    try:
        if folder is None:
            loaded = datasets.load_dataset(name, data.hub_config)
        elif (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder), data.hub_config)
    except Exception as error:  # the library, its scripts and the network raise many kinds
        first = (str(error).splitlines() or [""])[0]
        remedy = "without a network give a local folder"
        if folder is not None and any(c in str(folder) for c in WILDCARDS):
            remedy = "rename the folder: the library takes [ ], * and ? in its name for a pattern"
        raise InputError(
            f"data.hub_name: cannot load {name!r}: {type(error).__name__}: {first}; {remedy}"
        ) from error
    finally:
        if shown:
            enable_progress_bar()
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def open_hub(data: DataConfig, source: Source, problems: Problems) -> None:
    try:
        loaded = load_hub(data)
    except InputError as error:
        for line in error.problems:
            problems.add(line)
        return
    found = resolve(list(loaded), data.splits, "data.hub_name", problems)
    for split, name in ((split, name) for split, names in found.names.items() for name in names):
        dataset = loaded[name]
        labels = data.columns.labels
        feature = dataset.features.get(labels[0]) if len(labels) == 1 else None
        names = getattr(feature, "names", None)
        if names and source.class_names is None:
            source.class_names = list(names)
        piece = HubPiece(name, dataset)
        value = not data.predicts.classified
        if split == "test" and (names or value) and _withheld(dataset, labels, value):
            # Benchmarks publish test rows without labels (-1).
            problems.warn(f"data.hub_name: {name!r} has no labels (-1); test rows are held out of train")
            continue
        source.splits.setdefault(split, []).append(piece)
    if "train" not in source.splits and not problems:
        problems.add(
            f"data.hub_name: no split 'train' in {data.hub_name!r}; it has {', '.join(loaded)}; say which it "
            f"is: data.splits={{train: {next(iter(loaded))}}}"
        )
    tell_left(found, found.left, "data.hub_name", problems)


def _withheld(dataset: Any, names: list[str], value: bool) -> bool:
    if not set(names) <= set(dataset.column_names):
        return False  # told with the other columns
    columns = dataset.select_columns(names).with_format("numpy")[:]
    labels = np.concatenate([columns[name] for name in names])
    return len(labels) > 0 and bool((labels == -1 if value else labels < 0).all())
