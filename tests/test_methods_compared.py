"""`python -m benchmarks.methods`: what is measured, that it goes on, and that docs/methods.md says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import methods, methods_page
from benchmarks.methods import METHODS, QUICK, Comparison
from benchmarks.methods_page import BEGIN, END, PAGE, RESULTS
from ensemble_kd.artifacts import write_json

ROWS = 200


def result(name: str, *per_seed: np.ndarray, **more: Any) -> dict[str, Any]:
    packed = [np.packbits(right).tobytes().hex() for right in per_seed]
    seeds = [{"right": bits, "nll": 0.5, "cpu_seconds": 10.0, "parameters": 7} for bits in packed]
    common = {"method": name, "title": name, "paper": "", "seeds": seeds, "test_rows": ROWS}
    return {**common, "peak_mb": 400, "settings": {"a": 1, "student": {"seeds": len(seeds)}}, **more}


def write(folder: Path, *found: dict[str, Any]) -> Path:
    for each in found:
        write_json(folder / f"{each['method']}.json", each)
    return folder


def test_differences_are_paired_by_seed_and_row(tmp_path: Path) -> None:
    """Seeds differ by 20 points, the method is 5 points better in each: the interval sees the 5 alone."""
    kd = [np.arange(ROWS) < count for count in (100, 140)]
    better = [np.arange(ROWS) < count + 10 for count in (100, 140)]
    folder = write(tmp_path, result("kd", *kd), result("hint", *better))
    first, second = methods_page.rows(methods_page.results(folder))
    assert (first.name, second.name) == ("kd", "hint")
    assert first.accuracy == 60 and second.accuracy == 65 and first.against == {}
    assert first.error == pytest.approx(10)
    interval = second.against["kd"]
    assert interval.points == pytest.approx(5)
    # Over seeds nothing varies; over rows 20 of 200 differ, each in one seed of two.
    spread = np.sqrt((20 * 0.5**2 / ROWS - 0.05**2) / ROWS)
    assert interval.low == pytest.approx(5 - 100 * (1.959964 * spread + 1 / ROWS), abs=1e-4)
    line = methods_page.table(methods_page.results(folder)).splitlines()[-1]
    assert line.startswith("| hint (`hint`) | 2 | 65.00 ± 10.00 | **+5.00 (+2.42 to +7.58)** |")
    assert line.endswith("| 0.500 | 10 | 400 |")


def test_results_of_other_settings_are_not_put_side_by_side(tmp_path: Path) -> None:
    right = np.ones(ROWS, dtype=bool)
    folder = write(
        tmp_path, result("kd", right), result("fsp", right, settings={"a": 2, "student": {"seeds": 1}})
    )
    with pytest.raises(ValueError, match=r"fsp\.json: other settings than those of kd\.json"):
        methods_page.results(folder)


def test_with_more_seeds_than_the_baseline_the_common_ones_are_compared(tmp_path: Path) -> None:
    kd = [np.arange(ROWS) < count for count in (100, 140)]
    folder = write(tmp_path, result("kd", *kd), result("fsp", *kd, np.zeros(ROWS, dtype=bool)))
    (_, more) = methods_page.rows(methods_page.results(folder))
    assert more.seeds == 3 and more.accuracy == pytest.approx(40)
    assert more.against["kd"].points == 0 and more.against["kd"].over.startswith("2 seeds")


def test_right_rows_come_back_from_the_file() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(37, 4, generator=generator)
    labels = torch.randint(4, (37,), generator=generator).numpy()
    entry = methods.judged(logits, labels)
    expected = logits.argmax(1).numpy() == labels
    assert np.array_equal(methods.right(entry, 37), expected) and 0 < expected.sum() < 37
    p = torch.softmax(logits.double(), 1)[torch.arange(37), labels]
    assert entry["nll"] == pytest.approx(float(-p.log().mean()), abs=1e-5)


def test_a_member_costs_what_it_learns_from_but_its_teachers(tmp_path: Path) -> None:
    def member(name: str, role: str, seconds: list[float], *before: str) -> None:
        epochs = {str(i + 1): value for i, value in enumerate(seconds)}
        write_json(tmp_path / f"{name}.json", {"role": role, "epochs": epochs, "before": before})

    member("t", "teacher", [100.0])
    member("first", "generation-1", [1.0, 2.0])
    member("hint", "phase", [4.0], "t")
    member("last", "distilled", [8.0, 16.0], "first")
    assert methods.seconds_of("last", tmp_path) == 27
    member("last", "distilled", [8.0, 16.0], "hint", "t")
    assert methods.seconds_of("last", tmp_path) == 28
    assert methods.seconds_of("unknown", tmp_path) is None


def test_pixels_are_means_of_squares(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    column = pa.array([image.tobytes() for image in images], pa.binary(3072))
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": column, "label": [0, 1, 2]}), source / f"{split}.parquet")
    (source / "labels.txt").write_text("a\nb\nc\n")
    small = methods.halved(source, tmp_path / "small", 16)
    read = pq.read_table(small / "test.parquet")
    found = np.frombuffer(read["image"][1].as_py(), np.uint8).reshape(16, 16, 3)
    for y, x, channel in ((0, 0, 0), (3, 9, 2), (15, 15, 1)):
        square = images[1, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2, channel]
        assert abs(int(found[y, x, channel]) - square.astype(float).mean()) <= 0.5
    assert read["label"].to_pylist() == [0, 1, 2]
    assert methods.halved(source, tmp_path / "unused", 32) == source


@pytest.mark.slow
def test_methods_share_teachers_and_a_comparison_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "found"
    compare = Comparison(QUICK, None, run, output, apart=False)
    names = [methods.TEACHERS, "hard", "kd", "born_again", "mutual"]
    found = {name: compare(name) for name in names}
    assert len(list((run / "teachers/members").iterdir())) == QUICK.teachers
    assert len([path for path in (run / "soft_targets").iterdir() if path.is_dir()]) == 1
    costs = {name: [entry["cpu_seconds"] for entry in found[name]["seeds"]] for name in names}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in costs.values())
    # The first generation is the student of KD: trained once, counted in both.
    assert min(costs["born_again"]) > min(costs["kd"])
    # Twice 2 on hard labels, as a method and as the stages' own baseline; 2 kd, 2 x 2 further generations, 2
    # with peers.
    assert len(list((run / "student/members").iterdir())) == 12

    when = (output / "kd.json").stat().st_mtime_ns
    (output / "mutual.json").unlink()  # stopped before it was written: its students are there
    again = Comparison(QUICK, None, run, output, apart=False)
    assert again("kd") == found["kd"] and (output / "kd.json").stat().st_mtime_ns == when
    assert again("mutual")["seeds"] == found["mutual"]["seeds"]

    lines = methods_page.table(methods_page.results(output)).splitlines()
    assert len(lines) == 2 + len(names) and lines[2].startswith("| ensemble of 2 teachers")


def test_results_of_other_settings_are_not_taken_over(tmp_path: Path) -> None:
    compare = Comparison(QUICK, None, tmp_path / "run", tmp_path, apart=False)
    write_json(tmp_path / "kd.json", {"settings": {}})
    with pytest.raises(Exception, match="is of other settings; choose another --output"):
        compare("kd")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "kd,fitnet", "--quick"], "no method 'fitnet'; there are hard, kd, hint"),
        ([], "name the folder of cifar10_small, or give --quick"),
        (["x", "--pixels", "20"], "--pixels 20: 8, 16 or 32"),
    ],
)
def test_bad_input(arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(methods.app, arguments)
    assert done.exit_code == 2 and says in done.output


@pytest.mark.long
@pytest.mark.slow
def test_every_method_runs(tmp_path: Path) -> None:
    compare = Comparison(QUICK, None, tmp_path / "run", tmp_path / "found", apart=False)
    for name in METHODS:
        assert len(compare(name)["seeds"]) == 2


# ------------------------------------------------------------------------------------------------- the page


def test_the_page_s_table_is_of_the_results() -> None:
    page, found = PAGE.read_text(encoding="utf-8"), methods_page.results(RESULTS)
    assert methods_page.with_table(page, methods_page.table(found)) == page, (
        "write it anew: python -m benchmarks.methods_page"
    )
    assert {"kd", "hard"} <= set(found)
    assert methods_page.PICTURE in page and (PAGE.parent / methods_page.PICTURE).is_file()


def test_the_page_says_of_every_method_when_to_use_it() -> None:
    after = PAGE.read_text(encoding="utf-8").split(END)[1]
    missing = [name for name in METHODS if f"**`{name}`**" not in after]
    assert not missing


def test_a_page_without_marks_is_told() -> None:
    with pytest.raises(ValueError, match="needs the marks"):
        methods_page.with_table(f"{BEGIN} no end", "lines")


def test_results_name_nothing_of_this_machine() -> None:
    for path in RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert (
            "/work" not in text and "/tmp" not in text and json.loads(text)["settings"]["name"] == "methods"
        )
