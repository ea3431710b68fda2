"""Bytes of a text file as UTF-8, whatever they were: encodings are found by the bytes themselves.

A byte order mark decides, or zero bytes at every second place (UTF-16). What is not UTF-8, with nothing but
ASCII before it, is Windows-1252, of which Latin-1 is a part. Read in chunks, at the speed of a memory copy
where the text is UTF-8 already.
"""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import pyarrow as pa

from ensemble_kd.errors import InputError

CHUNK = 2**20
MARKS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\x28\xb5\x2f\xfd", "zstd"))
BINARY = (
    (b"PAR1", "a Parquet file", ".parquet"),
    (b"ARROW1", "an Arrow file", ".arrow"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", ".csv, after saving it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", ".csv, after saving it as CSV"),
)
"""How files begin that are no text, what they are, and the ending that they should have."""
WINDOWS = "".join(bytes([i]).decode("cp1252", "ignore") or chr(i) for i in range(256))
"""The character of each byte; the five that Windows-1252 leaves out are as in Latin-1."""
MARK = "\U0010fffe"
"""Stands for a byte that is not UTF-8 where others than its row are to be read; it is no character."""
CONTROL = bytes(i for i in range(32) if i not in (9, 10, 11, 12, 13, 27))

Tell = Callable[[str], None]
Wrong = Literal["raise", "keep", "mark"]

MARKED = "ensemble_kd.marked"
codecs.register_error(MARKED, lambda error: (MARK, getattr(error, "end", 0)))


def decompressed(raw: Any, suffix: str) -> Iterator[bytes]:
    """The chunks of an uncompressed or compressed pyarrow stream, by its first bytes; of an ending that
    says so (`.gz`) what is not compressed is read as it is."""
    head = raw.read(4)
    kind = next((kind for magic, kind in COMPRESSED if head.startswith(magic)), None)
    if kind == "bz2" and suffix != ".bz2":  # three letters that a text may begin with
        kind = None
    rejoined = io.BufferedReader(ChunkStream(_rest(head, raw)), CHUNK)
    source = pa.CompressedInputStream(pa.PythonFile(rejoined, "r"), kind) if kind else rejoined
    while chunk := source.read(CHUNK):
        yield chunk


def _rest(head: bytes, raw: Any) -> Iterator[bytes]:
    yield head
    while chunk := raw.read(CHUNK):
        yield chunk


def utf8(
    chunks: Iterable[bytes],
    name: str,
    encoding: str | None = None,
    tell: Tell = lambda text: None,
    wrong: Wrong = "raise",
    fallback: str | None = None,
) -> Iterator[bytes]:
    """The text in UTF-8 without a byte order mark, in chunks that end at a line's end or wherever they do.

    Without an `encoding` it is found, and `tell` told where it is not UTF-8; what is neither that nor UTF-16
    is taken for `fallback`, or Windows-1252. `wrong` says what becomes of single bytes that are not UTF-8 in
    a text that is: an error, kept as they are, or `MARK`. Raises InputError for bytes that are no text.
    """
    source = iter(chunks)
    head = next(source, b"")
    for magic, what, ending in BINARY:
        if head.startswith(magic):
            raise InputError(f"{name}: cannot be read as text: it is {what}; its name must end in {ending}")
    mark, found = next(((mark, found) for mark, found in MARKS if head.startswith(mark)), (b"", None))
    head = head[len(mark) :]
    if encoding is None:
        encoding = found or _zeros(head)
        if encoding is not None and encoding != "utf-8":
            tell(f"{name}: read as {encoding.upper()}")
    if encoding is not None and codecs.lookup(encoding).name != "utf-8":
        yield from _decoded(head, source, name, encoding)
        return
    yield from _checked(
        head,
        source,
        name,
        tell,
        wrong,
        fallback=fallback if encoding is None else None,
        sniffs=encoding is None,
    )


def _zeros(head: bytes) -> str | None:
    """UTF-16 without a byte order mark: every second byte of Western text is 0."""
    sample = head[:4096]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if half >= 8 and max(even, odd) > half / 3 and min(even, odd) < half / 20:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _decoded(head: bytes, source: Iterator[bytes], name: str, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    lines = 0
    try:
        for chunk in _chain(head, source):
            text = decoder.decode(chunk)
            lines += text.count("\n")
            yield text.encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise InputError(
            f"{name}: cannot be read as {encoding.upper()} near line {lines + 1}: "
            f"{str(error)[:200]}; set data.csv.encoding to the encoding that it was written in"
        ) from error


def _chain(head: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from source


def _checked(
    head: bytes,
    source: Iterator[bytes],
    name: str,
    tell: Tell,
    wrong: Wrong,
    *,
    fallback: str | None,
    sniffs: bool,
) -> Iterator[bytes]:
    """UTF-8 as it is; with `sniffs` and only ASCII before it, `fallback` from the first byte that is not."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    plain, lines = True, 0
    waiting = b""  # a character that a chunk's end cuts
    chunks = _chain(head, source)
    for chunk in chunks:
        data = waiting + chunk
        waiting = b""
        if not data.isascii():
            try:
                decoder.reset()
                decoder.decode(data)
                if rest := decoder.getstate()[0]:
                    data, waiting = data[: -len(rest)], rest
                plain = plain and data.isascii()
            except UnicodeDecodeError as error:
                at = error.start
                if sniffs and plain and data[:at].isascii():
                    line = lines + data.count(b"\n", 0, at) + 1
                    yield from _foreign(data, chunks, name, tell, fallback, line)
                    return
                if wrong == "raise":
                    raise InputError(
                        f"{name}: line {lines + data.count(10, 0, at) + 1}: byte 0x{data[at]:02x} is not "
                        "UTF-8, as the text before it is; mend the line, or set data.csv.encoding"
                    ) from error
                plain = False
                if wrong == "mark":
                    data = data.decode("utf-8", MARKED).encode()
        lines += data.count(b"\n")
        yield data
    if waiting and sniffs and plain:
        yield from _foreign(waiting, iter(()), name, tell, fallback, lines + 1)
    elif waiting and wrong == "raise":
        raise InputError(f"{name}: ends within a character of UTF-8; it is cut off, write it again")
    elif waiting:
        yield MARK.encode() if wrong == "mark" else waiting


def _foreign(
    data: bytes, chunks: Iterator[bytes], name: str, tell: Tell, fallback: str | None, line: int
) -> Iterator[bytes]:
    """The rest of a text that is not UTF-8 from this `line` on."""
    _check_text(data, name)
    if fallback is not None:
        tell(f"{name}: not UTF-8 from line {line} on, so read as {fallback}, as the training data were")
        yield from _decoded(data, chunks, name, fallback)
        return
    tell(
        f"{name}: not UTF-8 from line {line} on, so read as Windows-1252 (Latin-1); set data.csv.encoding if "
        "it is another"
    )
    for chunk in _chain(data, chunks):
        yield codecs.charmap_decode(chunk, "strict", WINDOWS)[0].encode()


def _check_text(data: bytes, name: str) -> None:
    """Raises InputError for bytes that no encoding makes a text of."""
    sample = data[:4096]
    if len(sample) - len(sample.translate(None, CONTROL)) > len(sample) / 100:
        raise InputError(
            f"{name}: cannot be read as text: it holds binary data; it is damaged, or its name must end in "
            "what it is"
        )


class ChunkStream(io.RawIOBase):
    """A readable stream of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._left):
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def decode_text(content: bytes, name: str) -> str:
    """A small text file as a whole. Raises InputError where it is none."""
    try:
        return b"".join(utf8(iter([content]), name)).decode()
    except (UnicodeError, zlib.error) as error:
        raise InputError(f"{name}: cannot be read as text: {error}; write it as UTF-8") from error
