"""A run folder in a store: two nodes' copies of it, against a real server that speaks S3."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from stores import BUCKET, Store, running_store

from ensemble_kd.artifacts import MANIFEST
from ensemble_kd.attached import attach, ensure, forget
from ensemble_kd.errors import EnsembleKDError, InputError
from ensemble_kd.lease import leased
from ensemble_kd.mirror import Mirror, is_kept, is_remote


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    pytest.importorskip("moto")
    with running_store(gated=True) as running:
        yield running


@pytest.fixture
def nodes(store: Store, tmp_path: Path) -> tuple[Mirror, Mirror]:
    """Two copies of one run folder."""
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    return Mirror(uri, tmp_path / "first", 20.0), Mirror(uri, tmp_path / "second", 20.0)


def write(mirror: Mirror, name: str, text: str) -> Path:
    path = mirror.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_one_node_sends_the_other_fetches(nodes: tuple[Mirror, Mirror]) -> None:
    first, second = nodes
    write(first, "data/0123/part-0.parquet", "rows")
    write(first, "data/0123/manifest.json", "{}")
    write(first, "data/0123/.part-1.parquet.7.tmp", "half")
    first.push(first.root)
    second.pull()
    assert (second.root / "data/0123/part-0.parquet").read_text() == "rows"
    assert (second.root / "data/0123/manifest.json").exists()
    assert not list(second.root.rglob("*.tmp")) and not list(second.root.rglob("*.part"))


def test_the_newer_state_wins_on_both_sides(nodes: tuple[Mirror, Mirror]) -> None:
    first, second = nodes
    file = write(first, "teachers/members/a/checkpoint", "epoch 1")
    first.push(file)
    second.pull()
    time.sleep(1.1)  # the store's times are whole seconds
    write(second, "teachers/members/a/checkpoint", "epoch 2")  # as long as before
    second.push(second.root)
    first.pull()
    assert file.read_text() == "epoch 2"
    file.write_text("epoch 3")  # not sent yet: what the store has is older
    first.pull()
    assert file.read_text() == "epoch 3"


def test_nothing_is_sent_twice(nodes: tuple[Mirror, Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nodes
    write(first, "a", "1")
    first.push(first.root)
    at = first.listed(first.root)["a"].mtime_ns
    time.sleep(1.1)
    first.push(first.root)
    # Another process of the same node, which knows of nothing, asks first.
    Mirror(first.uri, first.root).push(first.root, check=True)
    assert first.listed(first.root)["a"].mtime_ns == at
    second.pull()
    monkeypatch.setattr(second, "_download", lambda *arguments: pytest.fail("fetched twice"))
    second.pull()


def test_manifests_are_sent_after_what_they_list(
    nodes: tuple[Mirror, Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = nodes
    for name in ("a/manifest.json", "a/z", "b/manifest.json", "b/y"):
        write(first, name, name)
    sent: list[str] = []
    upload = first._upload

    def recorded(file: Path, relative: str, check: bool) -> None:
        sent.append(relative)
        upload(file, relative, check)

    monkeypatch.setattr(first, "_upload", recorded)
    first.push(first.root)
    assert [Path(name).name == MANIFEST for name in sent] == [False, False, True, True]


def test_what_is_gone_here_goes_there_too(nodes: tuple[Mirror, Mirror]) -> None:
    first, second = nodes
    folder = write(first, "members/a/checkpoint", "1").parent
    write(first, "members/b/checkpoint", "1")
    first.push(first.root)
    (folder / "checkpoint").unlink()
    write(second, "members/c/checkpoint", "of another node")
    second.push(second.root)
    first.push(folder, tidy=True)
    assert set(first.listed(first.root)) == {"members/b/checkpoint", "members/c/checkpoint"}
    first.push(first.root, tidy=True)  # what it never had is left alone
    assert set(first.listed(first.root)) == {"members/b/checkpoint", "members/c/checkpoint"}


def test_a_process_fetches_what_it_is_about_to_read(nodes: tuple[Mirror, Mirror], tmp_path: Path) -> None:
    first, second = nodes
    write(first, "teachers/members/a/weights", "w")
    write(first, "teachers/members/a/manifest.json", "{}")
    first.push(first.root)
    attach(second.spec())
    try:
        folder = second.root / "teachers/members/a"
        ensure(folder)
        assert (folder / "weights").read_text() == "w"
        ensure(tmp_path / "elsewhere")  # outside the run: nothing to fetch
        forget(folder)
        assert first.listed(first.root) == {}
    finally:
        attach(None)
    ensure(second.root / "teachers/members/b")  # no mirror: nothing happens


def test_a_name_that_leaves_the_folder_is_not_fetched(nodes: tuple[Mirror, Mirror]) -> None:
    first, second = nodes
    system, base = first.store
    with system.open_output_stream(f"{base}/ok") as stream:
        stream.write(b"1")
    import boto3

    key = f"{base.split('/', 1)[1]}/../outside"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"2")
    second.pull()
    assert sorted(p.name for p in second.root.parent.rglob("*") if p.is_file()) == ["ok"]


def test_a_store_that_refuses_for_a_while_costs_a_warning(nodes: tuple[Mirror, Mirror], store: Store) -> None:
    first, _ = nodes
    write(first, "a", "1")
    first.push(first.root)
    warnings: list[str] = []
    first.warn = warnings.append
    write(first, "b", "2")
    assert store.gate is not None
    store.gate.close()
    back = threading.Timer(10.0, store.gate.open)
    back.start()
    began = time.monotonic()
    first.push_soon(first.root)
    assert time.monotonic() - began < 0.5, "who trains does not wait for the store"
    first.flush()
    back.join()
    assert "b" in first.listed(first.root)
    assert len(warnings) == 1 and "trying again" in warnings[0]


def test_a_full_disk_is_told_at_once_and_not_blamed_on_the_store(
    nodes: tuple[Mirror, Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    write(first, "a", "1")
    first.push(first.root)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    began = time.monotonic()
    with pytest.raises(EnsembleKDError, match=f"No space left on device; make room in {second.root}"):
        second.pull()
    assert time.monotonic() - began < 5  # of 20 seconds of patience


def test_a_store_that_stays_away_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    mirror = Mirror("s3://runs/x?endpoint_override=127.0.0.1:9&scheme=http&region=r", tmp_path, patience=0)
    with pytest.raises(EnsembleKDError, match=r"s3://runs/x: cannot list files: .*credentials"):
        mirror.pull()


def test_a_bucket_that_is_not_there_is_told_at_once(store: Store, tmp_path: Path) -> None:
    mirror = Mirror("s3://no-such-bucket/x", tmp_path)
    write(mirror, "a", "1")
    began = time.monotonic()
    with pytest.raises(EnsembleKDError, match="cannot write a"):
        mirror.push(mirror.root)
    assert time.monotonic() - began < 60


def test_a_kind_of_store_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--run-dir: cannot open nosuch://a/b"):
        Mirror("nosuch://a/b", tmp_path).pull()


def test_urls_and_what_is_shown_of_them() -> None:
    assert is_remote("s3://b/x") and not is_remote("/tmp/x") and not is_remote(Path("runs/x"))
    mirror = Mirror.of("s3://KEY:SECRET@b/runs/tickets/?region=r", "/scratch")
    assert mirror.shown == "s3://b/runs/tickets/" and "SECRET" not in str(mirror.root)
    assert mirror.root.parent == Path("/scratch") and mirror.root.name.startswith("tickets-")
    assert Mirror.of("s3://b/x").root != Mirror.of("s3://c/x").root
    assert is_kept("a/b") and is_kept(".before-fresh-members/a") and not is_kept("a/.lock")


# ------------------------------------------------------------------------------------------ the lease


def holder(mirror: Mirror, host: str) -> str:
    return f'{{"owner": "other", "host": "{host}", "pid": {os.getpid()}, "beat": 1}}'


def test_a_second_run_is_refused_while_the_first_is_alive(nodes: tuple[Mirror, Mirror]) -> None:
    first, second = nodes
    with leased(first, lambda: None):
        with pytest.raises(EnsembleKDError, match="another run is at work here"), leased(second, print, 12):
            pass
    assert first.read_object(".lock") is None
    with leased(second, print):  # and not once it has left
        pass


def test_a_run_that_was_killed_elsewhere_is_taken_over(nodes: tuple[Mirror, Mirror]) -> None:
    first, _ = nodes
    first.write_object(".lock", holder(first, "another-host"))
    began = time.monotonic()
    with leased(first, print, 2.0):
        assert time.monotonic() - began >= 2.0
        assert '"other"' not in str(first.read_object(".lock"))


def test_a_run_that_lost_its_lease_is_told(
    nodes: tuple[Mirror, Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_kd.lease.BEAT", 0.2)
    first, _ = nodes
    lost = threading.Event()
    with leased(first, lost.set):
        first.write_object(".lock", holder(first, "another-host"))
        assert lost.wait(10)
    assert first.read_object(".lock") is not None, "it is the other's"


def test_a_model_in_a_store_answers(nodes: tuple[Mirror, Mirror], tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    from model_cases import case, info_of, inputs_of
    from typer.testing import CliRunner

    from ensemble_kd.cli import app

    model, _ = case(tmp_path, "numbers")
    there = Mirror(nodes[0].uri + "/model", model)
    there.push(model)
    rows = inputs_of(info_of("numeric"), 3)
    pq.write_table(pa.table({"input": [row.tolist() for row in rows]}), tmp_path / "rows.parquet")
    answers = [
        CliRunner().invoke(app, ["predict", place, str(tmp_path / "rows.parquet")])
        for place in (there.uri, str(model))
    ]
    assert answers[0].exit_code == 0, answers[0].output
    assert answers[0].stdout == answers[1].stdout and answers[0].stdout.count("\n") >= 3
    missing = CliRunner().invoke(app, ["predict", there.uri + "s", str(tmp_path / "rows.parquet")])
    assert missing.exit_code == 2 and "there is no model folder" in missing.output
    unknown = CliRunner().invoke(app, ["predict", "nosuch://a/b", str(tmp_path / "rows.parquet")])
    assert unknown.exit_code == 2 and "MODEL: cannot open nosuch://a/b" in unknown.output
