"""Class folders of pictures: layouts, classes, ids, what is left out, and the same pixels as in Parquet."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_cases import make_config, real_set
from pictures import picture, saved, write
from PIL import Image

from ensemble_kd.config import Config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.folders import TABLE_BYTES, PicturePiece, list_pictures, open_pictures
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.data.sources import source_fingerprint
from ensemble_kd.errors import InputError


def fill(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), rows: int = 20, mode: str = "RGB") -> Path:
    """`rows` pictures a class, no two alike."""
    for k, name in enumerate(classes):
        for i in range(rows):
            write(folder / name / f"{i:03d}.png", picture(6, 5, mode, seed=1000 * k + i))
    return folder


def prepared(config: Config, folder: Path) -> tuple[Any, dict[str, Any], list[str]]:
    """Description, splits, and what is odd but for copies (see test_copies)."""
    warnings: list[str] = []
    prepare(config, folder, warnings.append)
    info = load_info(folder)
    inspected: list[str] = []
    assert inspect_source(config, inspected.append) == []
    assert inspected == warnings
    return (
        info,
        {s: load_split(folder, s) for s in ("transfer", "validation", "test")},
        [
            line
            for line in warnings
            if "have an input that is in" not in line and "have the input of another" not in line
        ],
    )


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("layout", ["classes", "splits", "block"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "set"
    path: Any = str(source)
    if layout == "classes":
        fill(source)
    else:
        for i, split in enumerate(("train", "val", "test")):
            fill(source / split, rows=20 - i)
        if layout == "block":
            path = {"train": f"{source}/train", "validation": f"{source}/val", "test": f"{source}/test"}
    info, splits, warnings = prepared(make_config(path=path), tmp_path / "out")
    assert not warnings
    assert info.class_names == ["cat", "dog"] and info.input_shape == [6, 5, 3]
    assert sum(len(arrays.ids) for arrays in splits.values()) == (40 if layout == "classes" else 114)
    if layout != "classes":
        assert [len(splits[s].ids) for s in ("transfer", "validation", "test")] == [40, 38, 36]
    for split, arrays in splits.items():
        base = source
        if layout == "block":
            base = source / {"transfer": "train", "validation": "val", "test": "test"}[split]
        for pixels, label, name in zip(arrays.inputs, arrays.labels, arrays.ids, strict=True):
            np.testing.assert_array_equal(pixels, pixels_of(base / name))
            assert Path(name).parts[-2] == info.class_names[label]
    assert info.preprocess["columns"]["id"] == "path"


def test_what_is_no_picture_is_left_out_with_a_notice(tmp_path: Path) -> None:
    source = fill(tmp_path / "set")
    (source / "cat" / "notes.txt").write_text("from the zoo")
    (source / "labels.csv").write_text("file,label\ncat/000.png,cat\n")
    (source / "dog" / "x.heic").write_bytes(b"0" * 100)
    for hidden in (".DS_Store", "cat/._000.png", ".cache/a.png", "__MACOSX/cat/a.png"):
        (source / hidden).parent.mkdir(exist_ok=True, parents=True)
        (source / hidden).write_bytes(b"1")
    (source / "bird").mkdir()
    write(source / "top.png", picture())
    shutil.copy(source / "cat" / "000.png", source / "cat" / "UPPER.PNG")
    write(source / "dog" / "deep" / "er" / "a.JPG", picture(6, 5))
    info, splits, warnings = prepared(make_config(path=str(source)), tmp_path / "out")
    assert warnings == [
        "data.path: left out, as no picture: 3 files: cat/notes.txt, dog/x.heic, labels.csv",
        "data.path: left out, as in no class's folder: 1 file: top.png",
        "data.path: no picture in the class folder bird; not counted as a class",
    ]
    assert info.class_names == ["cat", "dog"]
    ids = np.concatenate([arrays.ids for arrays in splits.values()])
    assert len(ids) == 42 and {"cat/UPPER.PNG", "dog/deep/er/a.JPG"} <= set(ids)


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", tuple(str(i) for i in range(12)), rows=8)
    info, splits, _ = prepared(make_config(path=str(source)), tmp_path / "out")
    assert info.class_names == [str(i) for i in range(12)]
    for arrays in splits.values():
        assert [str(label) for label in arrays.labels] == [name.split("/")[0] for name in arrays.ids]


def test_unlabelled_pictures(tmp_path: Path) -> None:
    source = tmp_path / "set"
    fill(source / "train")
    fill(source / "unlabelled", ("a",), rows=3)
    write(source / "unlabelled" / "b.png", picture(6, 5, seed=77))
    for i in range(2):
        write(tmp_path / "more" / f"{i}.png", picture(6, 5, seed=80 + i))
    config = make_config(path=str(source), unlabelled=str(tmp_path / "more"))
    info, splits, _ = prepared(config, tmp_path / "out")
    transfer = splits["transfer"]
    free = list(transfer.ids[transfer.labels == -1])
    assert free == [
        *(f"unlabelled/a/00{i}.png" for i in range(3)),
        "unlabelled/b.png",
        "more/0.png",
        "more/1.png",
    ]
    np.testing.assert_array_equal(transfer.inputs[-1], pixels_of(tmp_path / "more" / "1.png"))
    assert info.class_names == ["cat", "dog"]


def test_a_class_called_train(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", ("car", "train", "bus"))
    info, _, warnings = prepared(make_config(path=str(source)), tmp_path / "out")
    assert info.class_names == ["bus", "car", "train"] and not warnings


def test_folders_that_are_no_split_are_named(tmp_path: Path) -> None:
    source = tmp_path / "set"
    fill(source / "train")
    fill(source / "extra", rows=1)
    _, splits, warnings = prepared(make_config(path=str(source)), tmp_path / "out")
    (line,) = warnings
    assert "left out, as in no split's folder: 2 files: " in line and "extra/cat/000.png" in line
    assert sum(len(arrays.ids) for arrays in splits.values()) == 40


@pytest.mark.parametrize("layout", ["flat", "flat splits", "one split flat"])
def test_pictures_without_class_folders(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "set"
    if layout == "flat":
        fill(tmp_path, ("set",))
    else:
        fill(source, ("train", "test"))
    if layout == "one split flat":
        shutil.rmtree(source / "train")
        fill(source / "train")
    config = make_config(path=str(source))
    with pytest.raises(InputError, match="none in a folder of its class; expected") as caught:
        prepare(config, tmp_path / "out")
    assert inspect_source(config) == caught.value.problems
    assert caught.value.problems[0].startswith("data.path: ")


def test_bad_pictures_are_named_by_their_path(tmp_path: Path) -> None:
    source = fill(tmp_path / "set")
    (source / "cat" / "007.png").write_bytes(b"no picture")
    (source / "dog" / "003.png").write_bytes(saved(picture(9, 9)))
    (source / "dog" / "004.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(120))
    config = make_config(path=str(source))
    with pytest.raises(InputError) as caught:
        prepare(config, tmp_path / "out")
    first, second, third = caught.value.problems
    assert first.startswith("row 7 of train: cat/007.png: 10 bytes that are neither an image")
    assert second.startswith(
        "row 23 of train: dog/003.png: image of 9x9 pixels, expected 6x5; data.image.resize="
    )
    assert third.startswith("row 24 of train: dog/004.png: image cannot be decoded: ")
    assert inspect_source(config) == caught.value.problems


def test_data_files_beside_pictures_stay_data_files(tmp_path: Path) -> None:
    """A repository of Parquet files with a logo in it."""
    import pyarrow as pa

    table = pa.table({"input": [saved(picture(6, 5, seed=i)) for i in range(40)], "label": [0, 1] * 20})
    for name in ("part-0.parquet", "data/train-0.parquet"):
        source = tmp_path / name.replace("/", "-")
        (source / name).parent.mkdir(parents=True)
        pq.write_table(table, source / name)
        write(source / "images" / "logo.png", picture())
        info, splits, _ = prepared(make_config(path=str(source)), tmp_path / "out")
        assert info.preprocess["columns"]["id"] is None and info.class_names == ["0", "1"]


def test_images_of_other_formats_are_told(tmp_path: Path) -> None:
    """Version 0.1 and any list of data files would say that nothing is there."""
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "1.PGM").write_bytes(b"P5 1 1 255 a")
    config = make_config(path=str(tmp_path / "set"))
    (line,) = inspect_source(config)
    assert "no image that can be read" in line and "cat/1.PGM: convert them to PNG" in line


@pytest.mark.parametrize("path", ["~nosuchuser/set", "x" * 5000, "a\0b", "nosuch://x/y.png", "", "pipe.png"])
def test_paths_that_name_no_pictures(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to whoever reads data files, who says what is wrong."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert list_pictures(path) is None
    assert open_pictures(path, "input") is None
    assert open_pictures(path + ".png", "input") is None


def test_names_that_are_no_utf8_are_left_out(tmp_path: Path) -> None:
    source = fill(tmp_path / "set")
    with open(os.fsencode(source) + b"/cat/caf\xe9.png", "wb") as file:
        file.write(saved(picture(6, 5)))
    os.mkdir(os.fsencode(source) + b"/\xff")
    _, splits, warnings = prepared(make_config(path=str(source)), tmp_path / "out")
    assert warnings == [
        "data.path: left out, as of a name that is no UTF-8: 1 file: cat/caf\\udce9.png",
        "data.path: no picture in the class folder \\udcff; not counted as a class",
    ]


@pytest.mark.parametrize("name", ["part-0.csv", "rows.jsonl"])
def test_files_with_the_input_column_beside_pictures_are_the_data(tmp_path: Path, name: str) -> None:
    source = tmp_path / "set"
    for figure in ("plots/a.png", "docs/b.png"):
        write(source / figure, picture())
    rows: list[dict[str, Any]] = [{"p": [i, 1, 2, 3], "y": i % 2} for i in range(40)]
    if name.endswith("csv"):
        columns: Any = ["a", "b", "c", "d"]
        lines = [",".join(map(str, [*row["p"], row["y"]])) for row in rows]
        (source / name).write_text("\n".join(["a,b,c,d,y", *lines]) + "\n")
    else:
        columns = "p"
        (source / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        path=str(source), columns={"input": columns, "label": "y"}, image={"shape": [2, 2, 1]}
    )
    info, _, warnings = prepared(config, tmp_path / "out")
    assert info.input_shape == [2, 2, 1] and not warnings


def test_the_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(first, second)
    prints = [source_fingerprint(make_config(path=str(folder)).data) for folder in (first, second)]
    assert prints[0] == prints[1]
    (second / "cat" / "000.png").write_bytes(saved(picture(6, 5, seed=5)))
    assert source_fingerprint(make_config(path=str(second)).data) != prints[0]
    shutil.copy(first / "cat" / "000.png", second / "cat" / "000.png")
    (second / "cat" / "000.png").rename(second / "dog" / "zzz.png")
    assert source_fingerprint(make_config(path=str(second)).data) != prints[0]


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    source = fill(tmp_path / "set")
    (source / "cat" / "self").symlink_to("../cat")
    (source / "dog" / "up").symlink_to("../..")
    outside = fill(tmp_path / "elsewhere", ("bird",))
    (source / "bird").symlink_to(outside / "bird")
    (source / "dog" / "up").unlink()
    _, splits, _ = prepared(make_config(path=str(source)), tmp_path / "out")
    assert sum(len(arrays.ids) for arrays in splits.values()) == 60


def test_tables_are_bounded_in_bytes(tmp_path: Path) -> None:
    import pyarrow.fs as pafs

    (tmp_path / "a").mkdir()
    for i in range(5):
        with (tmp_path / "a" / f"{i}.png").open("wb") as file:
            file.truncate(TABLE_BYTES // 2)
    names = [f"a/{i}.png" for i in range(5)]
    piece = PicturePiece("set", pafs.LocalFileSystem(), str(tmp_path), names)
    assert [table.num_rows for table in piece.batches(["input", "path"], 100)] == [2, 2, 1]
    assert [table.num_rows for table in piece.batches(["path"], 3)] == [3, 2]


@pytest.mark.parametrize("name", ["cifar10_small", "mnist"])
def test_real_sets_written_out(tmp_path: Path, name: str) -> None:
    """The first rows as PNGs in class folders: the same pixels under the same classes."""
    table = pq.read_table(real_set(name) / "train.parquet").slice(0, 300)
    names = (real_set(name) / "labels.txt").read_text().split()
    kept = {}
    for i, (cell, label) in enumerate(
        zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
    ):
        raw = cell["bytes"] if isinstance(cell, dict) else cell
        side = 28 if name == "mnist" else 32
        image = (
            Image.open(io.BytesIO(raw))
            if raw.startswith(b"\x89PNG")
            else Image.frombytes("L" if name == "mnist" else "RGB", (side, side), raw)
        )
        write(tmp_path / "set" / names[label] / f"{i}.png", image)
        kept[f"{names[label]}/{i}.png"] = np.asarray(image)
    info, splits, _ = prepared(make_config(path=str(tmp_path / "set")), tmp_path / "out")
    assert info.class_names == sorted(names)
    assert info.input_shape == ([28, 28, 1] if name == "mnist" else [32, 32, 3])
    seen = 0
    for arrays in splits.values():
        for pixels, label, key in zip(arrays.inputs, arrays.labels, arrays.ids, strict=True):
            np.testing.assert_array_equal(pixels.squeeze(), kept[key])
            assert key.split("/")[0] == info.class_names[label]
            seen += 1
    assert seen == 300


def test_class_folders_in_a_store(tmp_path: Path) -> None:
    """By fsspec's file system in memory, which stands for any that pyarrow does not know."""
    import fsspec

    local = fill(tmp_path / "set")
    store = fsspec.filesystem("memory")
    store.put(str(local), "/pets", recursive=True)
    try:
        info, splits, warnings = prepared(make_config(path="memory://pets"), tmp_path / "out")
        here = source_fingerprint(make_config(path=str(local)).data)
        assert source_fingerprint(make_config(path="memory://pets").data) == here
    finally:
        store.rm("/pets", recursive=True)
    assert info.class_names == ["cat", "dog"] and not warnings
    for arrays in splits.values():
        for pixels, name in zip(arrays.inputs, arrays.ids, strict=True):
            np.testing.assert_array_equal(pixels, pixels_of(local / name))
