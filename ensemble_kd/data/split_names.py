"""Which files or splits of a source are train, validation and test: by `data.splits`, else by their names.

A name that says so (`train`, `dev`) is taken, and one that only contains it (`validation_matched`) where
nothing else could be meant. Whatever is left over is told.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

from ensemble_kd.data.pieces import SPLIT_NAMES
from ensemble_kd.data.problems import Problems

OURS = ("train", "validation", "test")
SHARD = re.compile(
    r"[-_. ]?(?:part|shard|chunk|piece|split)?[-_. ]?\d+(?:[-_. ]?of[-_. ]?\d+)?(?:-[0-9a-f]{8,})?$", re.I
)
"""-00000-of-00002, _0, -part-3: the number at the end of a shard's name."""
SHOWN = 8

Wanted = Mapping[Any, str | list[str] | None]
"""`data.splits`."""


class Named(Protocol):
    """A file, called by its path in the folder."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> str: ...


P = TypeVar("P", bound=Named)


def said(name: str) -> str | None:
    """The split that a name says."""
    return SPLIT_NAMES.get(name.lower())


def contained(name: str) -> str | None:
    """The split whose name is a word of this one: `validation_matched`, `sst2-train`; None where two are."""
    found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


@dataclass
class Resolved:
    """The names of the source's splits for each of ours, and what is left over."""

    names: dict[str, list[str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def resolve(have: list[str], wanted: Wanted, where: str, problems: Problems) -> Resolved:
    """Ours from the names that the source has. `where` is the field that names the source."""
    result, free = Resolved(), list(have)
    for ours, names in wanted.items():
        for name in [] if names is None else [names] if isinstance(names, str) else names:
            if name not in have:
                close = difflib.get_close_matches(name, have, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                problems.add(f"data.splits.{ours}: no {name!r} in the source; it has {_some(have)}{hint}")
                continue
            result.names.setdefault(ours, []).append(name)
            if name in free:
                free.remove(name)
            else:
                problems.add(f"data.splits.{ours}: {name!r} is named twice; name it once")
    for ours in OURS:
        if ours in wanted:
            continue
        exact = [name for name in free if said(name) == ours]
        loose = [name for name in free if said(name) is None and contained(name) == ours]
        own = [name for name in exact if name.lower() == ours]
        chosen = own or exact or loose
        if len(chosen) > 1 and not (wanted and ours != "train"):
            problems.add(
                f"{where}: {_some(chosen)} could each be {ours}; say which, as in data.splits="
                f"{{{ours}: {chosen[0]}}}, or name all of them in a list"
            )
        if len(chosen) != 1:
            continue
        if not own:
            problems.warn(f"{where}: {chosen[0]!r} is taken as {ours}")
        result.names[ours] = chosen
        free.remove(chosen[0])
    result.left = free
    return result


def tell_left(found: Resolved, left: list[str], where: str, problems: Problems) -> None:
    """What is not used of a source that has train: `left`, as messages call it."""
    if not left or problems:
        return
    absent = next((ours for ours in ("validation", "test") if ours not in found.names), None)
    cut = f", and {absent} rows are held out of train" if absent is not None else ""
    key = next((key for key in map(contained, found.left) if key is not None), "unlabelled")
    taken = found.names.get(key)
    name = f"[{', '.join([*taken, found.left[0]])}]" if taken else found.left[0]
    problems.warn(
        f"{where}: {_some(left)} not used{cut}; to use {'both' if taken else 'it'}, set "
        f"data.splits={{{key}: {name}}}"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


# --------------------------------------------------------------------------------------------- files


def stem(name: str) -> str:
    """The file's name without the ending of its format and of its compression."""
    parts = PurePosixPath(name).name
    for endings in ((".gz", ".bz2", ".zst"), None):
        head, dot, tail = parts.rpartition(".")
        if head and dot and (endings is None or f".{tail.lower()}" in endings):
            parts = head
    return parts


def split_name(name: str) -> str:
    """What a file in a folder is a part of: its own name or that of a folder above, without a shard's number.

    The first that says a split; else the first that contains one; else the file's own.
    """
    *folders, file = PurePosixPath(name).parts
    own = stem(file)
    parts = [*folders, SHARD.sub("", own) or own]
    if saying := next((part for part in parts if said(part)), None):
        return saying.lower()
    return next((part for part in parts if contained(part)), parts[-1])


def assign(pieces: list[P], wanted: Wanted, path: str, where: str, problems: Problems) -> dict[str, list[P]]:
    """The files of each split of a folder. All are train where no name says or contains a split."""
    explicit = {n for v in wanted.values() if v is not None for n in ([v] if isinstance(v, str) else v)}
    groups: dict[str, list[P]] = {}
    whole = explicit & {piece.name for piece in pieces}  # and no other file of that name in another folder
    for piece in pieces:
        # A file may be named by itself, by its folder, or as what it is a shard of.
        ways = [piece.name, PurePosixPath(piece.name).name, stem(piece.name), split_name(piece.name)]
        ways += [*PurePosixPath(piece.name).parts[:-1], SHARD.sub("", stem(piece.name))]
        named = next((w for w in ways if w in explicit and (w == piece.name or w not in whole)), ways[3])
        groups.setdefault(named, []).append(piece)
    if not explicit and not any(said(name) or contained(name) for name in groups):
        return {"train": pieces} if same_rows(pieces, where, problems) else {}
    have = list(groups)
    found = resolve(have, wanted, where, problems)
    splits = {ours: [p for name in names for p in groups[name]] for ours, names in found.names.items()}
    for ours, names in found.names.items():
        if ours not in wanted:
            _check_group(groups[names[0]], ours, where, problems)
    if "train" not in splits and not problems:
        shown = ", ".join(piece.name for piece in pieces[:5])
        problems.add(
            f"{where}: no train.* in {path}; found {shown}. Give data.path as a block per split, or say "
            f"which is train: data.splits={{train: {have[0]}}}"
        )
    left = [piece.name for name in found.left for piece in groups[name]]
    tell_left(found, left, where, problems)
    return splits


def _check_group(pieces: list[P], ours: str, where: str, problems: Problems) -> None:
    """Files that one name stands for must be shards of one set, not forms or versions of it."""
    if not same_rows(pieces, where, problems):
        return
    within = any(said(part) for piece in pieces for part in PurePosixPath(piece.name).parts[:-1])
    by_format = {piece.format: piece.name for piece in reversed(pieces)}
    names = sorted(by_format.values())
    why = "in two formats"
    if len(names) == 1:
        numbered = {bool(SHARD.search(stem(piece.name))): piece.name for piece in reversed(pieces)}
        depths = {len(PurePosixPath(piece.name).parts): piece.name for piece in reversed(pieces)}
        if within or max(len(numbered), len(depths)) < 2:
            return  # shards, or a file for each of several folders side by side
        odd, why = (depths, "one above the other") if len(depths) > 1 else (numbered, "one of them numbered")
        names = [name for _, name in sorted(odd.items())]
    problems.add(
        f"{where}: {names[0]} and {names[1]} are both {ours}, {why}: the same rows twice? Remove one, or "
        f"name those to use: data.splits={{{ours}: [{names[0]}]}}"
    )


def same_rows(pieces: list[P], where: str, problems: Problems) -> bool:
    """Whether no two files of a folder differ in their ending alone; told where they do."""
    seen: dict[str, str] = {}
    for piece in pieces:
        other = seen.setdefault(
            str(PurePosixPath(piece.name).with_name(stem(piece.name))).lower(), piece.name
        )
        if other != piece.name:
            problems.add(
                f"{where}: {other} and {piece.name} differ in their ending alone: the same rows twice? "
                "Remove one, or give data.path as a block per split that names the one to use"
            )
            return False
    return True
