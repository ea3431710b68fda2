"""`ensemble-kd ui`: the pages show what the run folder holds, whoever wrote it, and write nothing."""

from __future__ import annotations

import fcntl
import html
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.cli import app as commands
from ensemble_kd.config import load_config
from ensemble_kd.data.store import StoreLayout, read_shard

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from ensemble_kd.ui import said
from ensemble_kd.ui.app import create_app
from ensemble_kd.ui.examples import png, text_of
from ensemble_kd.ui.folders import checked_root, runs_below
from ensemble_kd.ui.graph import draw
from ensemble_kd.ui.progress import locks, planned_stages, standing

TINY = [
    "compute.executor=local",
    "teachers.num_members=3",
    "teachers.training.epochs=3",
    "teachers.model={name: mlp, hidden: [16]}",
    "student.training.epochs=3",
    "student.seeds=2",
    "student.model.hidden=[8]",
    "data.shard_rows=300",
    "tracking.enabled=false",
    "specialists.training.epochs=2",
    "sweep={search: grid, space: {temperature: [1, 2]}, num_seeds: 1, scheduler: none, fuse: 1}",
]
PAGES = ("/", "/run?name=one", "/examples?name=one", "/examples?name=one&tab=differ", "/clusters?name=one")
EVIL = "<img src=x onerror=alert(1)>\"'"
LOCK = Path("/proc/locks").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run; tests take copies."""
    folder = tmp_path_factory.mktemp("ui") / "one"
    pipeline.run(load_config("digits", TINY), folder)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the run, `one`."""
    shutil.copytree(made, tmp_path / "runs" / "one")
    return tmp_path / "runs"


def client(root: Path, host: str = "127.0.0.1") -> Any:
    from starlette.testclient import TestClient

    return TestClient(create_app(root, host), base_url="http://127.0.0.1:8001")


def get(root: Path, path: str, status: int = 200) -> str:
    answer = client(root).get(path)
    assert answer.status_code == status, (path, answer.text[:500])
    return str(answer.text)


def only(folder: Path, stage: str) -> Path:
    found = [each.parent for each in folder.glob(f"{stage}/*/manifest.json")]
    assert len(found) == 1
    return found[0]


def change(path: Path, edit: Any) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(edit(value) or value))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    shares: np.ndarray = e / e.sum(-1, keepdims=True)
    return shares


pytestmark = pytest.mark.slow  # the run behind them takes some seconds


# ------------------------------------------------------------------------------------------------- the list


def test_the_list_shows_what_the_report_says(runs: Path) -> None:
    page = get(runs, "/")
    report = json.loads((runs / "one/report.json").read_text())
    for role in ("distilled", "hard", "ensemble"):
        assert f"{100 * report['summary'][role]['accuracy']['mean']:.2f}" in page
    assert report["verdict"]["outcome"] in page
    assert "all 10 stages" in page and 'class="state finished"' in page
    assert "Leaderboard" not in page  # of one run


def test_a_leaderboard_of_runs_on_the_same_rows(runs: Path) -> None:
    shutil.copytree(runs / "one", runs / "group" / "two")

    def worse(report: dict[str, Any]) -> None:
        report["summary"]["distilled"]["accuracy"]["mean"] -= 0.01

    change(runs / "group/two/report.json", worse)
    page = get(runs, "/")
    board = page[page.index("Leaderboard") :]
    assert board.index(">one<") < board.index(">group/two<")
    assert "0.00 (-0.11 to +0.11)" in board  # the same predictions: only the step of a count, 1 in 899
    shutil.rmtree(runs / "group/two/student/members")
    os.utime(runs / "group/two/report.json")
    assert "run it again to compare it row by row" in get(runs, "/")


def test_the_folder_may_be_a_run_itself(runs: Path) -> None:
    assert list(runs_below(runs / "one")) == ["one"]
    assert "Stages" in get(runs / "one", "/run?name=one")


# ----------------------------------------------------------------------------------------------- progress


@pytest.mark.skipif(not LOCK, reason="this system does not list locks")
def test_a_run_at_work(runs: Path) -> None:
    run = runs / "one"
    for name in ("report.json", "report.html"):
        (run / name).unlink()
    for name in ("report", "student"):
        (only(run, name) / "manifest.json").unlink()
    members = sorted((run / "student/members").iterdir())
    for name in ("manifest.json", "weights.safetensors", "predictions.safetensors"):
        (members[0] / name).unlink()
    history = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}]
    text = json.dumps({"epoch": 2, "history": history})
    save_file({"model/a": np.zeros(3)}, members[0] / "checkpoint.safetensors", {"progress": text})
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        page = get(runs, "/")
        assert 'class="state running"' in page and "8 of 10 stages; student" in page
        assert "1 in training at epoch 2 of 3" in page and '<progress value="8" max="10">' in page
        page = get(runs, "/run?name=one")
        assert 'data-refresh="4"' in page and "epoch 2 of 3" in page and members[0].name[:8] in page
    page = get(runs, "/")
    assert 'class="state stopped"' in page and "8 of 10 stages; student" in page
    assert 'data-refresh="0"' in get(runs, "/run?name=one")


def test_a_stack_in_training(runs: Path) -> None:
    run = runs / "one"
    (run / "report.json").unlink()
    (only(run, "student") / "manifest.json").unlink()
    members = run / "student/members"
    shutil.rmtree(members)
    first, second = "0" * 16, "1" * 16
    progress = {
        "numbers": [0, 1],
        "members": [{"fingerprint": f, "progress": {"epoch": 1, "history": []}} for f in (first, second)],
    }
    (members / first).mkdir(parents=True)
    save_file(
        {"a": np.zeros(1)}, members / first / f"{'2' * 16}.safetensors", {"progress": json.dumps(progress)}
    )
    found = standing(runs_below(runs)["one"]).training
    assert found is not None and found.running == [(first, 1), (second, 1)]


def test_planned_stages_are_those_of_the_configuration() -> None:
    for more in (
        [],
        ["specialists=null", "sweep=null"],
        ["student.temperature=auto"],  # which the sweep searches
        ["student.alpha=auto"],
        ["specialists=null", "sweep=null", "student.temperature=auto"],
        ["export={forms: [onnx]}"],
    ):
        config = load_config("digits", [*TINY, *more])
        assert planned_stages(config.model_dump(mode="json")) == list(pipeline.stages_of(config))
    assert len(planned_stages({"data": 3})) == 13


def test_locks_of_whole_files(tmp_path: Path) -> None:
    text = "1: FLOCK  ADVISORY  WRITE 7 fe:00:12 0 EOF\n2: POSIX  ADVISORY  READ 8 fe:00:13 0 9\nodd\n"
    (tmp_path / "locks").write_text(text)
    assert locks(tmp_path / "locks") == {"fe:00:12"}


# ----------------------------------------------------------------------------------------- one run, examples


def test_one_run(runs: Path) -> None:
    page = get(runs, "/run?name=one")
    manifest = read_manifest(only(runs / "one", "teachers"))
    assert manifest is not None
    assert f"<td>{manifest.summary['seconds']:,.1f}</td>" in page
    for part in (
        "combined-targets",
        "Sweep",
        "Best so far",
        "Training of every member",
        "3 members",
    ):
        assert part in page
    assert "cannot be shown" not in page and 'href="/report?name=one"' in page
    report = client(runs).get("/report?name=one")
    assert report.content == (runs / "one/report.html").read_bytes()
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_what_each_teacher_says_at_three_temperatures(runs: Path) -> None:
    store = only(runs / "one", "soft_targets")
    manifest = read_manifest(store)
    assert manifest is not None
    rows, columns = read_shard(store / "part-00001.parquet", StoreLayout(**manifest.summary["layout"]))
    logits = columns["logits"][:, 0]
    p = softmax(logits)
    mean = p.mean(1)
    divergence = (p * np.log(p / mean[:, None])).sum(-1).mean(1)  # the mean of KL(p_m || mean)
    first = int(divergence.argmax())
    page = get(runs, "/examples?name=one&shard=1")
    example = re.search(r"<section class=example>.*?</section>", page, re.S)
    assert example is not None and f"row {rows[first]}," in example[0]
    for member in range(3):
        for temperature in (1, 2, 4):
            said_ = softmax(logits[first, member] / temperature)
            assert f"{said_.argmax()}: {100 * said_.max():.1f}%" in example[0]
    assert "shard 2 of 3" in page and "data:image/png;base64," in example[0]
    assert example[0].count("<svg") == 4 * 3  # three teachers and the ensemble


def test_every_row_comes_once_in_each_order(runs: Path) -> None:
    found = said.setting(runs_below(runs)["one"])
    for seed in (None, 0):
        rows = [r for first in range(0, 300, 64) for r in said.of_store(found, 0, seed, first, 64).rows]
        assert sorted(rows) == list(range(300))
    assert said.of_store(found, 0, 0, 0, 8).rows != said.of_store(found, 0, 1, 0, 8).rows


def test_student_and_ensemble(runs: Path) -> None:
    run = runs / "one"
    found = said.setting(runs_below(runs)["one"])
    told = said.of_test(found, 0, 5)
    student = read_manifest(only(run, "student"))
    assert student is not None
    shipped = next(m for m in student.summary["members"] if m["name"] == student.summary["shipped"])
    own = load_file(run / "student/members" / shipped["fingerprint"] / "predictions.safetensors")["test"]
    teachers = read_manifest(only(run, "teachers"))
    assert teachers is not None
    calibration = teachers.summary["calibration"]["temperatures"]
    each = [
        softmax(
            load_file(run / "teachers/members" / m["fingerprint"] / "predictions.safetensors")["test"] / t
        )
        for m, t in zip(teachers.summary["members"], calibration, strict=True)
    ]
    ensemble, p = np.mean(each, 0), softmax(own)
    middle = (ensemble + p) / 2
    differ = ((ensemble * np.log(ensemble / middle)).sum(1) + (p * np.log(p / middle)).sum(1)) / 2
    assert differ[told.rows[0]] == pytest.approx(differ.max(), rel=1e-4)
    np.testing.assert_allclose(told.at(0, 4, 1.0), p[told.rows[0]], atol=1e-5)
    np.testing.assert_allclose(told.at(0, 3, 1.0), ensemble[told.rows[0]], atol=1e-5)
    assert told.names == ["teacher-000", "teacher-001", "teacher-002", "ensemble", "student"]


def test_a_store_of_the_largest_logits(runs: Path, tmp_path: Path) -> None:
    settings = load_config("digits", [*TINY, "soft_targets.top_k=4", "specialists=null", "sweep=null"])
    pipeline.run(settings, tmp_path / "more" / "top", until="soft-targets")
    page = get(tmp_path / "more", "/examples?name=top")
    assert page.count("<section class=example>") == 8
    assert "no student yet" in get(tmp_path / "more", "/examples?name=top&tab=differ")
    assert "3 of 6 stages; gap" in get(tmp_path / "more", "/")  # soft targets do not wait for it


def test_odd_numbers_in_an_address_are_taken_for_zero(runs: Path) -> None:
    for query in (
        "shard=-1",
        "shard=99999999999999999999",
        "first=%C2%B2",
        "tab=%3Cb%3E&seed=x",
        "first=1e9",
    ):
        assert "class=example" in get(runs, f"/examples?name=one&{query}")
    assert "class=example" not in get(runs, "/examples?name=one&first=5000")


def test_pieces_of_an_example() -> None:
    words = {0: "[CLS]", 1: "a", 2: "##b", 3: "▁new", 4: "er"}
    assert text_of([1, 2, 3], words) == "[CLS] ab" and text_of([4, 5, 4], words) == "newer new"
    assert png(np.zeros((2, 3, 1), np.uint8)).startswith("data:image/png;base64,iVBOR")
    picture = draw([0, 1, 2], [(0, 1, 0.5)], [[0, 1]], [EVIL, "b", "c"])
    assert picture.count("<circle") == 3 and picture.count("<path") == 1 and "<img" not in picture


def test_hashed_texts_are_shown_from_the_rows_that_were_given(tmp_path: Path) -> None:
    """By their ids, also once the run has been moved; without them the page says why there are none."""
    import ensemble_kd

    topics = ["tea", "sea"]
    texts = [f"the {topics[i % 2]} number {i}" for i in range(60)]
    labels = [topics[i % 2] for i in range(60)]
    ensemble_kd.distill(
        (texts[:30], labels[:30]),
        (texts[30:40], labels[30:40]),
        test=(texts[40:50], labels[40:50]),
        unlabelled=texts[50:],
        teachers=lambda rows: np.array([[float("sea" in text), float("tea" in text)] for text in rows]),
        classes=["sea", "tea"],
        source="none",
        student={
            "model": {"name": "bag"},
            "training": {"epochs": 1},
            "seeds": 1,
            "temperature": 1,
            "alpha": 1,
        },
        output=tmp_path / "made" / "one",
        compute__executor="local",
        tracking__enabled=False,
        progress=False,
    )
    (tmp_path / "made").rename(tmp_path / "moved")
    of_transfer = "".join(
        get(tmp_path / "moved", f"/examples?name=one&tab=random&first={first}") for first in range(0, 40, 8)
    )
    shown = set(re.findall(r"<p class=text>(.*?)</p>", of_transfer))
    assert shown == set(texts[:30] + texts[50:])
    row = re.search(r"id (\d+)</span></p><p class=text>the \w+ number (\d+)</p>", of_transfer)
    assert row is not None and row[2] == str(int(row[1]) + 20 * (int(row[1]) >= 30))
    of_test = get(tmp_path / "moved", "/examples?name=one&tab=differ")
    assert set(re.findall(r"<p class=text>(.*?)</p>", of_test)) <= set(texts[40:50])
    (rows,) = (tmp_path / "moved" / "one" / "input").glob("*/test.parquet")
    rows.unlink()
    assert "hashed n-grams" in get(tmp_path / "moved", "/examples?name=one&tab=differ")


def test_clusters(runs: Path) -> None:
    page = get(runs, "/clusters?name=one")
    assert page.count("<circle") == 10 and "2 clusters hold" in page and "cannot be shown" not in page
    shutil.rmtree(runs / "one/clusters")
    assert "has no clusters" in get(runs, "/clusters?name=one")


# ----------------------------------------------------------------------------------- strangers' folders


def test_hostile_names_and_texts_are_escaped(runs: Path) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        keep = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}|.*\.(parquet|safetensors|json)", value)
        return EVIL if isinstance(value, str) and not keep else value

    for path in (runs / "one").rglob("*.json"):
        change(path, spoil)
    (runs / "one").rename(runs / EVIL)
    name = urllib.parse.quote(EVIL)
    for where in PAGES:
        page = get(runs, where.replace("=one", f"={name}"))
        assert "<img src=x" not in page and EVIL not in page, where
        assert html.escape("<img src=x") in page, where
    assert "<img" not in get(runs, f"/run?name={name}x", 404)


@pytest.mark.parametrize(
    "value", ["<img src=x onerror=alert(1)>", -1, None, [], {}, True, 1e308, "../../etc"]
)
def test_any_value_anywhere_in_a_report(runs: Path, value: Any) -> None:
    """Every block and number of the report's first levels replaced, one at a time."""
    original = json.loads((runs / "one/report.json").read_text())
    for stage in ("sweep", "teachers", "specialists"):  # nothing to draw, which takes time
        shutil.rmtree(runs / "one" / stage)
    shutil.rmtree(runs / "one/student/members")

    def places(block: Any, depth: int = 0) -> Iterator[list[Any]]:
        for key in list(block) if isinstance(block, dict) else range(min(len(block), 1)):
            yield [key]
            if isinstance(block[key], dict | list) and depth < 2:
                yield from ([key, *rest] for rest in places(block[key], depth + 1))

    rng = np.random.default_rng(0)
    every = list(places(original))
    for n in rng.choice(len(every), 25, replace=False):
        changed = json.loads(json.dumps(original))
        block = changed
        for key in every[n][:-1]:
            block = block[key]
        block[every[n][-1]] = value
        (runs / "one/report.json").write_text(json.dumps(changed))
        for path in ("/", "/run?name=one"):
            assert "<img src=x" not in get(runs, path), every[n]


def test_damaged_folders_do_not_break_the_list(runs: Path, tmp_path: Path) -> None:
    one = runs / "one"

    def replaced(report: Path) -> Path:
        report.unlink()
        return report

    def emptied(folder: Path) -> None:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def begun(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name != "resolved.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    kinds: dict[str, Any] = {
        "list": lambda f: (f / "report.json").write_text("[]"),
        "cut": lambda f: (f / "report.json").write_text('{"summary": {'),
        "deep": lambda f: (f / "report.json").write_text("[" * 100_000),
        "digits": lambda f: (f / "report.json").write_text('{"created": ' + "9" * 5000 + "}"),
        "binary": lambda f: (f / "resolved.json").write_bytes(b"\xff\xfe\x00"),
        "pipe": lambda f: os.mkfifo(replaced(f / "report.json")),
        "link": lambda f: replaced(f / "report.json").symlink_to("/etc/passwd"),
        "empty": emptied,
        "stage": lambda f: (only(f, "student") / "manifest.json").write_text("{}"),
        "store": lambda f: next(f.glob("soft_targets/*/*.parquet")).write_bytes(b"no parquet"),
        "tensor": lambda f: next(f.glob("clusters/*/*.safetensors")).write_bytes(b"\xff" * 99),
        "data": lambda f: shutil.rmtree(f / "data"),
        "begun": begun,
    }
    for name, damage in kinds.items():
        shutil.copytree(one, runs / name)
        damage(runs / name)
    page = get(runs, "/")
    assert all(f">{name}<" in page for name in ["one", *kinds]), page
    assert page.count('class="state damaged"') == 7  # those whose report or settings cannot be read
    for name in kinds:
        for path in PAGES[1:]:
            text = get(runs, path.replace("one", name))
            assert "root:" not in text, (name, path)
    assert "report.json: a symbolic link" in get(runs, "/run?name=link")


def test_nothing_outside_the_folder_is_read(runs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    shutil.copytree(runs / "one", secret)
    change(secret / "report.json", lambda report: report["verdict"].update(text="OUTSIDE"))
    (secret / "report.html").write_text("OUTSIDE")
    (runs / "linked").symlink_to(secret)
    for name in ("../secret", "linked", "one/../../secret", str(secret), "..", "", "one\0"):
        for page in ("run", "report", "examples", "clusters"):
            answer = client(runs).get(f"/{page}", params={"name": name})
            assert answer.status_code == 404 and "OUTSIDE" not in answer.text
    for where in ("/../secret/report.html", "/%2e%2e/secret", "/files/style.css", "/static/../app.py"):
        assert client(runs).get(where).status_code == 404
    for name in ("report.html", "soft_targets", "data", "clusters", "teachers"):
        path = runs / "one" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(secret / name)
    assert "OUTSIDE" not in get(runs, "/report?name=one", 404)
    assert "class=example" not in get(runs, "/examples?name=one")
    assert "<circle" not in get(runs, "/clusters?name=one")
    assert "3 members" not in get(runs, "/run?name=one")


def test_fingerprints_that_lead_elsewhere_are_not_followed(runs: Path) -> None:
    shutil.copytree(runs / "one", runs / "two")
    change(
        runs / "two/report.json",
        lambda report: report["lineage"].update(data="../../one/data/x", student=[1]),
    )
    change(
        only(runs / "two", "soft_targets") / "manifest.json", lambda m: m["inputs"].update(data="../../one")
    )
    assert "Leaderboard" not in get(runs, "/")
    assert "do not name their data" in get(runs, "/examples?name=two")


def test_secrets_are_masked(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted-secret-1")
    text = "see postgresql://me:planted-secret-2@host/db and planted-secret-1"
    change(runs / "one/report.json", lambda report: report["verdict"].update(text=text))
    page = get(runs, "/run?name=one")
    assert "planted-secret" not in page and "***" in page


def test_nothing_is_written(runs: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in [runs, *runs.rglob("*")]}

    before = state()
    for path in (*PAGES, "/report?name=one", "/examples?name=one&tab=random"):
        get(runs, path)
    assert state() == before


# ------------------------------------------------------------------------------------------------ HTTP


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8001", 200),
        ("localhost:8001", 200),
        ("LOCALHOST", 200),
        ("[::1]:8001", 200),
        ("192.168.1.7:8001", 200),
        ("evil.example", 421),
        ("evil.example:8001", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1:8001@evil.example", 421),
        ("[::1].evil.example", 421),
        ("", 421),
    ],
)
def test_other_names_are_refused(runs: Path, host: str, status: int) -> None:
    assert client(runs).get("/style.css", headers={"Host": host}).status_code == status


def test_a_host_of_ones_own(runs: Path) -> None:
    given = {"Host": "lab.example:8001"}
    assert client(runs, "lab.example").get("/style.css", headers=given).status_code == 200
    assert client(runs, "0.0.0.0").get("/style.css", headers=given).status_code == 421
    name = socket.gethostname()
    assert client(runs, "0.0.0.0").get("/style.css", headers={"Host": name}).status_code == 200


def test_pages_are_only_read(runs: Path) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert client(runs).request(method, "/").status_code == 405
    answer = client(runs).head("/")
    assert answer.status_code == 200 and not answer.content
    policy = client(runs).get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "http" not in re.sub(
        r"http://www.w3.org/\S+", "", get(runs, "/style.css") + get(runs, "/refresh.js")
    )


def test_a_folder_without_runs_and_a_port_that_is_taken(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, said_ in (
        ([str(tmp_path / "empty")], "holds no run; start one"),
        ([str(tmp_path / "nowhere")], "no such folder"),
        (["s3://bucket/runs"], "lies in a store"),
    ):
        done = CliRunner().invoke(commands, ["ui", *arguments])
        assert done.exit_code == 2 and said_ in done.stderr.replace("\n", " ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(commands, ["ui", str(runs), "--port", str(port)])
    assert done.exit_code == 2 and f"--port: {port} on 127.0.0.1: it is taken" in done.stderr.replace(
        "\n", " "
    )
    assert checked_root(str(runs)) == runs


@pytest.fixture
def server(runs: Path) -> Iterator[tuple[Path, int]]:
    """The command as a process of its own, ended by Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ensemble_kd", "ui", str(runs), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"on http://127\.0\.0\.1:(\d+)$", line.strip())
        assert found, line
        yield runs, int(found[1])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "stopped\n", "")
    finally:
        process.kill()
        process.wait()


def test_the_command(server: tuple[Path, int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server[1], timeout=60)
    for path in PAGES:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200 and b"</html>" in answer.read()


def test_in_a_browser(server: tuple[Path, int], tmp_path: Path) -> None:
    """The list refreshes by itself: a run that comes later is there without a new visit."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    root, port = server
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", "--timeout=12000", "--virtual-time-budget=9000", "--dump-dom"]
    asked = subprocess.Popen(
        [*command, f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    page, said_ = asked.communicate(timeout=120)
    assert "data-refreshed=" in page and ">one<" in page, page[-2000:]
    assert "CONSOLE" not in said_, said_[-2000:]  # nothing that the policy of the page forbids
    for path in PAGES[1:]:
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, timeout=120
        )
        assert "CONSOLE" not in done.stderr and "cannot be shown" not in done.stdout, path
