"""fuzz: what `ensemble-kd serve` answers to what nobody should send, and whether others notice.

Requests are valid ones in which things went wrong: the method, the path, the version, headers, the way
the body is framed, its bytes, its JSON, a cell of it. They go over sockets as they are, so that broken heads
and lengths arrive too. Beside them honest clients send rows, each of which must be answered. The aim is no
answer of 5xx; the reference is the number of requests.

    python -m benchmarks fuzz --seconds 120
"""

from __future__ import annotations

import base64
import contextlib
import copy
import gzip
import io
import json
import random
import re
import socket
import struct
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, benchmark, fresh_processes, say
from benchmarks.serve import image_model, load, number_model, served, text_model

THREADS = 8
"""Sockets with fuzzed requests at a time."""
HONEST = 2
QUIET, PATIENT = 0.3, 10.0
"""Seconds after which no answer is expected any more: to a request that is not whole, and to one that is."""
REQUESTS = 20_000

# ------------------------------------------------------------------------------------------------- JSON

ODD_TEXT = (
    "",
    " ",
    "\x00",
    "\ufeff",
    "🦊" * 50,
    "a" * 100_000,
    "\ud800",
    "' OR 1=1",
    "${jndi:x}",
    "../../etc",
    "a\r\nb",
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, -0.0, 1.5, 1e308, -1e308, 3.4e38, 1e-320, 2**31, 2**63, 2**64, -(2**63) - 1),
    *(float("nan"), float("inf"), float("-inf"), 10**400, [], {}, [[]], [{}], {"": None}, [None] * 3),
    *([1, "a" * 5000], ["x"] * 3000, [0] * 50_000, [1e38] * 64, {"a": {"b": [1]}}, *ODD_TEXT),
)


def _nested(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


class Fuzzer:
    """Makes requests; the same seed makes the same ones."""

    def __init__(self, seed: int, valid: dict[str, Any]) -> None:
        """`valid` is a body that is answered."""
        self.random = random.Random(seed)
        self.valid = valid

    def __call__(self) -> tuple[list[bytes], bool]:
        """What to send over one connection, in pieces; and whether an answer must come."""
        r = self.random
        self.whole = True
        data = b"".join([self._request() for _ in range(r.choice((1,) * 9 + (3,)))])
        before = data
        if r.random() < 0.05:
            data = data[: r.randrange(len(data))]  # the client goes, or falls asleep
        if r.random() < 0.05:
            data = self._bytes(data)
        cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.choice((0,) * 8 + (1, 3))))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        return pieces, self.whole and data == before

    # ------------------------------------------------------------------------------------------ bodies

    def _body(self) -> bytes:
        r = self.random
        kind = r.random()
        if kind < 0.15:
            return json.dumps(self.valid).encode()
        if kind < 0.6:
            return self._text(self._changed(json.loads(json.dumps(self.valid)), r.choice((1, 1, 2))))
        whole = json.dumps(self.valid).encode()
        if kind < 0.75:
            return self._bytes(whole)
        makers: list[Callable[[], bytes]] = [
            lambda: whole[: r.randrange(len(whole))],
            lambda: b"",
            lambda: r.randbytes(r.choice((1, 100, 100_000))),
            lambda: b"\xef\xbb\xbf" + whole,
            lambda: json.dumps(self.valid).encode("utf-16"),
            lambda: whole[:-1] + b', "rows": []}',
            lambda: whole[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            lambda: b"[" * 100_000,
            lambda: b'{"rows": ' * 5000,
            lambda: whole + whole,
            lambda: b'{"rows": [' + b",".join([b"{}"] * r.choice((300, 100_000))) + b"]}",
            lambda: b'{"rows": [{' + b",".join(b'"k%d": %d' % (i, i) for i in range(20_000)) + b"}]}",
            lambda: b'{"rows": [1' + b"0" * r.choice((400, 5000)) + b"]}",
            lambda: b'{"rows": [{"input": ' + b"9" * r.choice((400, 5000)) + b"}]}",
            lambda: whole.replace(b'": ', b'": \xff', 1),
            lambda: b'{"rows": "' + b"\\ud800" * 10 + b'"}',
            lambda: json.dumps({"rows": [{"x" * 100_000: 1}]}).encode(),
            lambda: json.dumps(
                {"rows": self.valid["rows"], "on_bad_row": r.choice(["skip", 1, "null"])}
            ).encode(),
            lambda: json.dumps(
                {"rows": [self._changed(copy.deepcopy(x), 1) for x in self.valid["rows"] * 20]}
            ).encode(),
        ]
        return r.choice(makers)()

    def _text(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=self.random.random() < 0.5).encode("utf-8", "surrogatepass")

    def _changed(self, value: Any, times: int) -> Any:
        """One of its parts is another one, is missing, or comes with a stranger."""
        r = self.random
        for _ in range(times):
            places: list[tuple[Any, Any]] = []
            waiting = [value]
            while waiting:
                node = waiting.pop()
                keys = list(node) if isinstance(node, dict) else range(min(len(node), 50))
                places += [(node, key) for key in keys]
                waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
            if not places:
                return value
            node, key = r.choice(places)
            what = r.random()
            if what < 0.1 and isinstance(node, dict):
                del node[key]
            elif what < 0.2 and isinstance(node, dict):
                node[r.choice(("x", "input ", "Input", "", "\u0000", "rows", "ınput"))] = copy.deepcopy(
                    r.choice(ODD)
                )
            else:
                node[key] = self._cell(node[key])
        return value

    def _cell(self, value: Any) -> Any:
        r = self.random
        if r.random() < 0.05:
            return _nested(r.choice((2, 70, 150, 300)))
        if isinstance(value, str) and r.random() < 0.6:
            return (
                base64.b64encode(self._picture()).decode()
                if r.random() < 0.7
                else value * r.choice((0, 2, 3000))
            )
        if isinstance(value, list) and value and r.random() < 0.5:
            changed = list(value)
            changed[r.randrange(len(changed))] = copy.deepcopy(r.choice(ODD))
            return changed
        return copy.deepcopy(r.choice(ODD))

    def _picture(self) -> bytes:
        """A file of one format or another, mostly damaged."""
        from PIL import Image

        r = self.random
        if r.random() < 0.1:
            return broken_picture()
        size = r.choice(((8, 8), (8, 8), (1, 1), (3, 9), (300, 300)))
        mode = r.choice(("L", "RGB", "RGBA", "1", "I", "F", "P", "CMYK"))
        file = io.BytesIO()
        with contextlib.suppress(OSError, KeyError, ValueError):
            Image.new(mode, size).save(
                file, r.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "DDS", "PPM"))
            )
        raw = file.getvalue() or b"\x89PNG\r\n\x1a\n"
        if r.random() < 0.2:  # a PNG that says how large it is
            raw = b"\x89PNG\r\n\x1a\n" + struct.pack(
                ">I4sIIBBBBBI", 13, b"IHDR", 2**31 - 1, 60_000, 8, 2, 0, 0, 0, 0
            )
        return self._bytes(raw) if r.random() < 0.7 else raw

    def _bytes(self, raw: bytes) -> bytes:
        """A few bytes are others, more or fewer."""
        r, changed = self.random, bytearray(raw)
        for _ in range(r.choice((1, 1, 2, 8))):
            place = r.randrange(len(changed) + 1)
            how = r.random()
            if how < 0.5 and place < len(changed):
                changed[place] = r.choice((0, 255, 0x0D, 0x0A, 0x20, r.randrange(256)))
            elif how < 0.75:
                changed[place:place] = r.randbytes(r.choice((1, 4, 50)))
            else:
                del changed[place : place + r.choice((1, 4, 50))]
        return bytes(changed)

    # ------------------------------------------------------------------------------------------- heads

    def _request(self) -> bytes:
        r = self.random
        share = r.choice((0.05, 0.05, 0.05, 0.4))
        odd = [r.random() < share for _ in range(6)]
        method = b"POST" if not odd[0] else r.choice(METHODS)
        path = b"/predict" if not odd[1] else r.choice(TARGETS)
        version = b"HTTP/1.1" if not odd[2] else r.choice(VERSIONS)
        body = self._body()
        headers = [(b"Host", b"localhost" if not odd[3] else r.choice(HOSTS))]
        headers.append((b"Content-Type", b"application/json" if r.random() > 0.05 else r.choice(TYPES)))
        if odd[4]:
            headers += [r.choice(HEADERS) for _ in range(r.choice((1, 1, 2)))]
        self.whole &= not any(odd)
        if odd[5] or r.random() < 0.1:
            self.whole = False
            framed, more = self._framed(body)
        else:
            framed, more = body, [(b"Content-Length", str(len(body)).encode())]
        headers += more
        if r.random() < 0.1:
            r.shuffle(headers)
        end = b"\r\n" if r.random() < 0.98 else b"\n"
        lines = [b"%b %b %b" % (method, path, version), *(b"%b: %b" % pair for pair in headers)]
        return end.join([*lines, b"", b""]) + framed

    def _framed(self, body: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """The body as it is sent, and the headers that say how."""
        r = self.random
        length = len(body)
        if r.random() < 0.4:
            return body, [(b"Content-Length", r.choice(LENGTHS) % {b"n": str(length).encode()})]
        if r.random() < 0.15:
            packed = gzip.compress(body, mtime=0)
            return packed, [(b"Content-Length", b"%d" % len(packed)), (b"Content-Encoding", b"gzip")]
        body = body[:20_000]
        size = r.choice((1, 7, 4096, 100_000)) if len(body) < 3000 else 4096
        parts = [body[i : i + size] for i in range(0, len(body), size)]
        extension = r.choice((b"", b"", b";a=b", b";" + b"x" * 2000, b" "))
        chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
        ends = (
            b"0\r\n\r\n",
            b"0\r\n\r\n",
            b"0\r\nA: b\r\n\r\n",
            b"",
            b"-1\r\n\r\n",
            b"zz\r\n",
            b"f" * 20 + b"\r\n",
        )
        codings = (b"chunked", b"chunked", b"Chunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"x")
        headers = [(b"Transfer-Encoding", r.choice(codings))]
        if r.random() < 0.1:
            headers.append((b"Content-Length", b"%d" % length))
        return chunks + r.choice(ends), headers


def broken_picture() -> bytes:
    """128 bytes: a DDS whose pixel format Pillow has never heard of."""
    head = struct.pack("<4s7I44x", b"DDS ", 124, 0x100F, 8, 8, 24, 0, 0)
    return (head + struct.pack("<8I", 32, 0, 0, 24, 0xFF, 0xFF00, 0xFF0000, 0)).ljust(128, b"\0")


METHODS = (
    *b"GET HEAD PUT DELETE PATCH OPTIONS TRACE CONNECT PRI post P\xd6ST POST\t".split(b" "),
    *(b"", b"X" * 9000),
)
TARGETS = (
    *b"/ /predict/ //predict /predict? /predict?a=b&a=%ff /predict#x /%70redict /predict%00 /%ff * x".split(),
    *b"/metadata /healthz /metrics /openapi.json /docs /nothing /../predict /predict;x /% /%zz".split(),
    *(b"http://x/predict", b"http://[/predict", b"localhost:80", b"/\xc3\xa9", b"/a b", b"", b"/\x00"),
    *(b"/" + b"a" * 40_000, b"/?" + b"a=b&" * 5000),
)
VERSIONS = (b"", *b"HTTP/1.0 HTTP/1.0 HTTP/0.9 HTTP/2.0 HTTP/1.9 HTTP http/1.1 ICY/1.0".split())
HOSTS = (b"", b"a b", b"\xff", b"a" * 9000, *b"[::1 x:99999 x:y ] a/b ? % [v1.x] [::1]:80".split())
TYPES = (
    *(b"", b"text/plain", b"application/json;charset=utf-16", b"APPLICATION/JSON"),
    *(b"\xff", b"multipart/form-data"),
)
LENGTHS = (
    *(b"0", b"1", b"%(n)b0", b"-1", b"+%(n)b", b"%(n)b, %(n)b", b"99999999999", b"9" * 40, b"0x10", b"\xb2"),
    *(b"%(n)b\r\nContent-Length: 3", b"%(n)b\r\nContent-Length: %(n)b", b"4000001", b"00%(n)b", b"1_0"),
    *(b"", b" "),
)
HEADERS = (
    *((b"Expect", b"100-continue"), (b"Expect", b"x"), (b"Connection", b"close"), (b"Connection", b"\xff")),
    *((b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"br"), (b"Content-Encoding", b"identity")),
    (b"Upgrade", b"websocket\r\nConnection: Upgrade"),
    (b"Upgrade", b"h2c\r\nConnection: Upgrade, HTTP2-Settings"),
    *((b"Authorization", b"Bearer \xff"), (b"Authorization", b""), (b"X" * 40_000, b"a")),
    *((b"X", b"a" * 40_000), (b"A", b"\r\n".join(b"H%d: x" % i for i in range(3000)))),
    *((b"", b"a"), (b"a b", b"c"), (b"X\x00", b"a"), (b"X", b"\x00"), (b"X", b"a\r\n folded")),
    *((b"X", b"a\rb"), (b"X-Forwarded-For", b"'"), (b"Forwarded", b"for=_x"), (b"Cookie", b"a=b;;=;\xff")),
    *((b"Range", b"bytes=9-1"), (b"Accept", b"*/*;q=z"), (b"Accept-Encoding", b"gzip"), (b"Origin", b"null")),
    (b"X-HTTP-Method-Override", b"PUT"),
)

# --------------------------------------------------------------------------------------------- sending


@dataclass
class Found:
    """What came back."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    """The first requests that a 5xx answered."""
    unreachable: int = 0

    def add(self, other: Found) -> None:
        self.requests += other.requests
        self.statuses += other.statuses
        self.shown += other.shown
        self.unreachable += other.unreachable

    @property
    def errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)


def answers(raw: bytes) -> tuple[list[int], bool]:
    """The statuses of whole answers, and whether nothing of another one is there. Of heads alone: broken."""
    statuses: list[int] = []
    while raw:
        head, end, rest = raw.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        if not end or status is None:
            return statuses, False
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length and status[1] != b"100" else 0
        if len(rest) < size:
            # The answer to HEAD has a length and no body.
            return [*statuses, int(status[1])], False
        if status[1] != b"100":
            statuses.append(int(status[1]))
        raw = rest[size:]
    return statuses, True


def send(address: tuple[str, int], pieces: list[bytes], quiet: float) -> bytes:
    """Everything that comes back until nothing has come for a while, or the server has closed."""
    received = b""
    with socket.create_connection(address, timeout=10) as connection:
        connection.settimeout(quiet)
        try:
            for piece in pieces:
                connection.sendall(piece)
            while block := connection.recv(65_536):
                received += block
                statuses, whole = answers(received)
                if whole and statuses:
                    connection.settimeout(0.02)  # is there another one?
        except OSError:  # it was refused in the middle, or is waited for in vain
            pass
    return received


def attack(host: str, port: int, valid: dict[str, Any], seed: int, requests: int, seconds: float) -> Found:
    """Fuzzed requests of several threads."""
    found, end = Found(), time.monotonic() + seconds
    lock = threading.Lock()

    def one(number: int) -> None:
        fuzzer, mine = Fuzzer(1000 * seed + number, valid), Found()
        for _ in range(requests // THREADS):
            if time.monotonic() > end:
                break
            pieces, whole = fuzzer()
            mine.requests += 1
            try:
                statuses = answers(send((host, port), pieces, PATIENT if whole else QUIET))[0]
            except OSError:
                mine.unreachable += 1
                continue
            mine.statuses.update(statuses)
            if any(status >= 500 for status in statuses) and len(mine.shown) < 5:
                sent = b"".join(pieces)
                mine.shown.append(f"{statuses}: {sent[:400]!r} ... {sent[-100:]!r} ({len(sent)} bytes)")
        with lock:
            found.add(mine)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def example(host: str, port: int) -> dict[str, Any]:
    """A valid body, as /openapi.json shows one."""
    with urllib.request.urlopen(f"http://{host}:{port}/openapi.json", timeout=30) as answer:
        schema = json.load(answer)
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    return {"rows": body["rows"] * 2}


def fuzzed(
    address: tuple[str, int], seed: int, requests: int, seconds: float
) -> tuple[Found, dict[str, Any]]:
    """What fuzzed requests got, and what honest clients beside them got."""
    valid = example(*address)
    with fresh_processes(2) as pool:
        bad = pool.submit(attack, *address, valid, seed, requests, seconds)
        good = {"requests": 0, "failed": 0}
        while not good["requests"] or not bad.done():
            part = pool.submit(load, *address, [json.dumps(valid).encode()], HONEST, 1.0).result()
            good = {key: good[key] + part[key] for key in good}
        return bad.result(), good


@benchmark(
    "fuzz",
    "Answers of 5xx to fuzzed requests over HTTP, with honest clients beside, against the number of requests",
    "answers",
    "at most",
    0.0,
)
def fuzz(quick: bool, seconds: int = 600) -> Measured:
    """A third of the requests, and of the time, for a model of images, of texts and of numbers each."""
    wanted = 600 if quick else REQUESTS
    seconds = min(seconds, 30) if quick else seconds
    every, honest, detail = Found(), {"requests": 0, "failed": 0}, {}
    makers: dict[str, Callable[[Path, int], Path]] = {
        "images": image_model,
        "texts": text_model,
        "numbers": number_model,
    }
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, make) in enumerate(makers.items()):
            model = make(Path(folder) / name, 256)
            with served(model) as address:
                found, good = fuzzed(address, seed, wanted // 3, seconds / 3)
            say(f"fuzz: {name}: {found.requests:,} requests, {found.errors} answers of 5xx, {good}")
            every.add(found)
            honest = {key: honest[key] + good[key] for key in honest}
            detail[name] = {str(status): count for status, count in sorted(found.statuses.items())}
    problem = f"{honest['failed']} honest requests failed" if honest["failed"] else None
    return Measured(
        float(every.errors),
        float(every.requests),
        {
            "answers by status": detail,
            "honest": honest,
            "unreachable": every.unreachable,
            "5xx": every.shown[:10],
        },
        problem,
    )
