"""Files behind https addresses: fetched once a process, by one plain GET.

Presigned addresses allow nothing else: no HEAD, no parts, and not for long. The name of the copy is that of
the address's path, so that the query, in which the secret is, is neither in messages nor in fingerprints.
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ensemble_kd.errors import InputError
from ensemble_kd.paths import shown

CONNECT, SILENCE = 10.0, 20.0
"""Seconds to a connection, and between two pieces of an answer."""

_fetched: dict[str, Path] = {}
_folder: list[Path] = []


def is_web(path: str) -> bool:
    return path.startswith(("https://", "http://"))


def web_name(url: str) -> str:
    """The name of the file that an address stands for."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name.replace("\0", "")
    return name[-200:] or "index"


def fetch(url: str, where: str) -> Path | None:
    """A copy of the file; None where the server says that there is none.

    Raises InputError, starting with the field `where`, where it cannot be had.
    """
    if (known := _fetched.get(url)) is not None and known.exists():
        return known
    import requests

    try:
        with requests.get(
            url, stream=True, timeout=(CONNECT, SILENCE), headers={"Accept-Encoding": "identity"}
        ) as answer:
            if answer.status_code in (404, 410):
                return None
            if answer.status_code >= 400:
                raise InputError(
                    f"{where}: {shown(url)}: the server answers {answer.status_code} {answer.reason}"
                    + _remedy(answer.status_code)
                )
            return _keep(url, answer)
    except requests.Timeout as error:
        raise InputError(
            f"{where}: {shown(url)}: no answer within {SILENCE:g} s; check the address and the network"
        ) from error
    except (requests.RequestException, ValueError) as error:
        raise InputError(
            f"{where}: cannot open {shown(url)}: {_cause(error)}; check the address and the network"
        ) from error


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "; a presigned address may have expired, or be meant for another request than GET"
    return "; ask again later, or fetch the file by other means and give its path"


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line; the outer ones spell out the address with its query."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _keep(url: str, answer: object) -> Path:
    if not _folder:
        _folder.append(Path(tempfile.mkdtemp(prefix="ensemble-kd-data-")))
        atexit.register(shutil.rmtree, _folder[0], ignore_errors=True)
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    target = _folder[0] / digest / web_name(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for chunk in answer.iter_content(2**20):  # type: ignore[attr-defined]
            file.write(chunk)
    _fetched[url] = target
    return target
