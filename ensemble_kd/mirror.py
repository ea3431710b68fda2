"""A run folder in object storage: every node works on a copy of its own on disk, and this keeps them in step.

    s3://bucket/runs/tickets   <->   SCRATCH/tickets-1f2e3d4c   on the driver's node and on each worker's

The driver fetches what is there when a run begins and sends what is new every few seconds and at the end of
each stage; a worker fetches what it is about to read and sends the members or shards that it wrote. Files are
sent before the manifest that lists them, so that what is there under a manifest is whole. The copy's path is
the same on every node, so that paths can be handed from one to another.

A store that refuses is asked again for `patience` seconds while training goes on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ensemble_kd.artifacts import MANIFEST
from ensemble_kd.disk import DiskError, free, mount_of, size
from ensemble_kd.errors import EnsembleKDError, InputError
from ensemble_kd.remote import bounded, check_amazon

ASIDE = ".before-fresh-"
"""Names that begin so are kept copies; all others that begin with a dot are scratch."""
PATIENCE = 600.0
"""Seconds for which a store that refuses is asked again."""
SECONDS_BETWEEN_PUSHES = 5.0
FINAL = (
    "AccessDenied",
    "ACCESS_DENIED",
    "NoSuchBucket",
    "NO_SUCH_BUCKET",
    "InvalidAccessKeyId",
    "INVALID_ACCESS",
)
"""Refusals that do not pass by themselves."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What is not the store's doing: this node's disk has no room."""

T = TypeVar("T")


def is_remote(folder: str | Path) -> bool:
    return "://" in str(folder)


def remote_system(url: str) -> tuple[Any, str]:
    """What is behind a URL, by pyarrow where it knows the scheme, else by fsspec; and the path inside.

    Raises ValueError or ImportError for a scheme that neither knows, OSError where nothing answers.
    """
    import pyarrow as pa
    import pyarrow.fs as pafs

    try:
        check_amazon(url)
        system, inside = pafs.FileSystem.from_uri(url)
        return bounded(system), inside
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec

        system, inside = fsspec.core.url_to_fs(url)
        return pafs.PyFileSystem(pafs.FSSpecHandler(system)), inside


class Mirror:
    """One node's copy of a run folder in a store."""

    def __init__(self, uri: str, root: Path, patience: float = PATIENCE) -> None:
        self.uri, self.root, self.patience = uri.rstrip("/"), root, patience
        self.warn: Callable[[str], None] = lambda text: None
        self.argument = "--run-dir"
        """What the user gave the URL as."""
        self.sent: dict[str, tuple[int, int]] = {}
        """Size and modification time (ns, the store's) of files as they stand in the store."""
        self._store: tuple[Any, str] | None = None
        self._pushing = threading.Lock()
        self._queue = threading.Lock()
        self._pending: set[Path] = set()
        self._sender: threading.Thread | None = None
        self._trouble: BaseException | None = None

    @classmethod
    def of(cls, uri: str, scratch: str | None = None) -> Mirror:
        """The mirror of a run folder's URL; its copy lies in `scratch`, by default the temporary folder."""
        uri = uri.rstrip("/")
        name = uri.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1] or "run"
        digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
        base = Path(scratch) if scratch else Path(tempfile.gettempdir()) / "ensemble-kd"
        return cls(uri, base.absolute() / f"{name}-{digest}")

    def spec(self) -> dict[str, Any]:
        """What a worker needs to open its own: see `attach`."""
        return {"uri": self.uri, "root": str(self.root), "patience": self.patience}

    # ------------------------------------------------------------------------------------------- the store

    @property
    def store(self) -> tuple[Any, str]:
        if self._store is None:
            try:
                self._store = remote_system(self.uri)
            except (OSError, ValueError, ImportError) as error:
                raise InputError(f"{self.argument}: cannot open {self.shown}: {error}") from error
        return self._store

    def _asked(self, what: str, work: Callable[[], T], patience: float | None = None) -> T:
        """`work()`, asked again while the store refuses. Raises EnsembleKDError at the end of patience."""
        end, wait = time.monotonic() + (self.patience if patience is None else patience), 0.5
        told = False
        while True:
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                text = str(error).split("Detail:")[0].strip()
                if error.errno in FULL:
                    room = f"; {mount_of(self.root)} has {size(free(self.root))} free"
                    raise DiskError(
                        f"{self.shown}: cannot {what}: {text[:300]}; make room in {self.root}, where this "
                        f"node's copy lies (compute.scratch){room}, then run again to go on",
                        error.errno,
                    ) from error
                if any(word in text for word in FINAL) or time.monotonic() + wait > end:
                    raise EnsembleKDError(
                        f"{self.shown}: cannot {what}: {text[:300]}; check the store and its credentials "
                        "(environment variables of the driver and of every node), then run again to go on"
                    ) from error
                if not told:
                    self.warn(f"{self.shown}: cannot {what} just now ({text[:120]}); trying again")
                    told = True
            time.sleep(wait)
            wait = min(2 * wait, 10.0)

    @property
    def shown(self) -> str:
        """The URL for people: without its options, and without a user's name and secret."""
        scheme, _, rest = self.uri.split("?", 1)[0].partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    def _remote(self, relative: str) -> str:
        base = self.store[1].rstrip("/")
        return f"{base}/{relative}" if relative not in ("", ".") else base

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def listed(self, path: Path) -> dict[str, Any]:
        """What the store has at or below a path of the copy, by path relative to the root."""
        import pyarrow.fs as pafs

        fs, base = self.store
        where = self._remote(self._relative(path))

        def ask() -> list[Any]:
            entry = fs.get_file_info(where)
            if entry.type == pafs.FileType.File:
                return [entry]
            return list(fs.get_file_info(pafs.FileSelector(where, recursive=True, allow_not_found=True)))

        found = self._asked("list files", ask)
        cut = len(base.rstrip("/")) + 1
        return {entry.path[cut:]: entry for entry in found if entry.is_file}

    def read_object(self, name: str, patience: float | None = None) -> str | None:
        """The text of an object beside the mirrored files; None where there is none."""

        def read() -> str | None:
            try:
                with self.store[0].open_input_stream(self._remote(name)) as stream:
                    return bytes(stream.read()).decode(errors="replace")
            except FileNotFoundError:
                return None

        return self._asked(f"read {name}", read, patience)

    def write_object(self, name: str, text: str) -> None:
        def write() -> None:
            with self.store[0].open_output_stream(self._remote(name)) as stream:
                stream.write(text.encode())

        self._asked(f"write {name}", write)

    def remove_object(self, name: str) -> None:
        self._asked(f"remove {name}", lambda: self._delete(name))

    # ----------------------------------------------------------------------------------------------- fetch

    def pull(self, path: Path | None = None) -> None:
        """Bring the copy at or below `path` up to date: what is missing, or older than in the store."""
        found = self.listed(path or self.root)
        for relative in sorted(found, key=_manifests_last):
            entry, local = found[relative], self.root / relative
            if not is_kept(relative) or not local.absolute().is_relative_to(self.root):
                continue
            at = entry.mtime_ns or 0
            if local.exists() and (stat := local.stat()).st_mtime_ns >= at:
                if stat.st_mtime_ns == at:  # else it changed here since, and is still to be sent
                    self.sent[relative] = (stat.st_size, stat.st_mtime_ns)
                continue
            self._asked(f"read {relative}", lambda r=relative, e=entry: self._download(r, e))  # type: ignore[misc]

    def _download(self, relative: str, entry: Any) -> None:
        local = self.root / relative
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f".{local.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            with self.store[0].open_input_stream(entry.path) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
            if partial.stat().st_size != entry.size:
                raise OSError(f"{partial.stat().st_size} of {entry.size} bytes came")
            if entry.mtime_ns:
                os.utime(partial, ns=(entry.mtime_ns, entry.mtime_ns))
            partial.replace(local)
        except FileNotFoundError:  # replaced or removed in between
            return
        finally:
            partial.unlink(missing_ok=True)
        stat = local.stat()
        self.sent[relative] = (stat.st_size, stat.st_mtime_ns)

    def ensure(self, path: Path) -> None:
        """Fetch a file or folder that this node does not have; a path outside the run is left alone."""
        path = path.absolute()
        if path.is_relative_to(self.root) and not (path.is_file() or (path / MANIFEST).exists()):
            self.pull(path)

    def ensure_all(self, value: Any) -> None:
        """`ensure` for each path in a nest of lists and dicts."""
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for inner in value:
                self.ensure_all(inner)
        elif isinstance(value, Path) or (isinstance(value, str) and value.startswith(str(self.root))):
            self.ensure(Path(value))

    # ------------------------------------------------------------------------------------------------ send

    def push(
        self,
        *paths: Path,
        tidy: bool = False,
        check: bool = False,
        skip: Callable[[str], bool] | None = None,
    ) -> None:
        """Send what changed at or below the paths, manifests last.

        `tidy` removes from the store what was there and is gone here. `check` asks before a file is sent
        whether another process of this node has sent it already. `skip` names relative paths to leave out.
        """
        with self._pushing:
            manifests = [file for path in paths for file in _files(path) if file.name == MANIFEST]
            # Manifests are looked up first: what they list was written before them.
            others = [file for path in paths for file in _files(path) if file.name != MANIFEST]
            for file in others + manifests:
                relative = self._relative(file)
                if is_kept(relative) and not (skip and skip(relative)):
                    self._asked(f"write {relative}", lambda f=file, r=relative: self._upload(f, r, check))  # type: ignore[misc]
            if tidy:
                gone = [r for r in self.sent if not (self.root / r).exists()]
                within = [r for r in gone if any((self.root / r).is_relative_to(path) for path in paths)]
                for relative in within:
                    self._asked(f"remove {relative}", lambda r=relative: self._delete(r))  # type: ignore[misc]

    def _upload(self, file: Path, relative: str, check: bool) -> None:
        fs, where = self.store[0], self._remote(relative)
        try:
            source = file.open("rb")
        except FileNotFoundError:  # replaced or removed while it was looked at: the next push sees to it
            return
        with source:
            stat = os.fstat(source.fileno())
            if self.sent.get(relative) == (stat.st_size, stat.st_mtime_ns):
                return
            there = fs.get_file_info(where) if check else None
            if there is None or not (
                there.is_file and there.size == stat.st_size and there.mtime_ns >= stat.st_mtime_ns
            ):
                with fs.open_output_stream(where) as target:
                    shutil.copyfileobj(source, target, 1 << 22)
                there = fs.get_file_info(where)
            at = there.mtime_ns or stat.st_mtime_ns
            # By its descriptor: at its path there may be a newer one by now.
            os.utime(source.fileno(), ns=(at, at))
            self.sent[relative] = (stat.st_size, at)

    def _delete(self, relative: str) -> None:
        try:
            self.store[0].delete_file(self._remote(relative))
        except FileNotFoundError:
            pass
        self.sent.pop(relative, None)

    def remove(self, path: Path) -> None:
        """Remove from the store what it has at or below a path."""
        for relative in self.listed(path):
            self._asked(f"remove {relative}", lambda r=relative: self._delete(r))  # type: ignore[misc]

    def push_soon(self, path: Path) -> None:
        """`push` in a thread of its own, so that a step never waits for the store."""
        with self._queue:
            self._pending.add(path)
            if self._sender is None:
                self._sender = threading.Thread(target=self._send, name="mirror", daemon=True)
                self._sender.start()

    def _send(self) -> None:
        while True:
            with self._queue:
                if not self._pending:
                    self._sender = None
                    return
                path = self._pending.pop()
            try:
                self.push(path, tidy=True)
            except EnsembleKDError as error:
                self._trouble = error

    def flush(self) -> None:
        """Wait for `push_soon`. Raises the EnsembleKDError of a push that failed."""
        while (sender := self._sender) is not None:
            sender.join()
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble

    @contextmanager
    def kept_sent(self) -> Iterator[None]:
        """The driver's part: what is new is sent every few seconds, and once more at the end."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(SECONDS_BETWEEN_PUSHES):
                try:
                    self.push(self.root, check=True, skip=_is_members)
                except EnsembleKDError as error:
                    self.warn(str(error))

        thread = threading.Thread(target=work, name="mirror-driver", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.push(self.root, tidy=True, check=True)


def is_kept(relative: str) -> bool:
    """Whether a file belongs into the store: not what is being written, locks and other scratch."""
    return all(not part.startswith(".") or part.startswith(ASIDE) for part in relative.split("/"))


def _is_members(relative: str) -> bool:
    """Checkpoints and the like: the workers that write them send them."""
    return "/members/" in relative


def _manifests_last(relative: str) -> tuple[bool, str]:
    return relative.rsplit("/", 1)[-1] == MANIFEST, relative


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
