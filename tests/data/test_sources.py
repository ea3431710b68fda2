"""Every format and image encoding gives the arrays that numpy wrote."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from data_cases import make_config, make_images, png, real_set

from ensemble_kd.config import Config
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import Arrays, load_info, load_split
from ensemble_kd.data.sources import source_fingerprint

SHAPE = (5, 4, 3)
LABELS = np.arange(30) % 3


def prepared(config: Config, folder: Path) -> dict[str, Arrays]:
    info, files = prepare(config, folder)
    assert sorted(files) == sorted(p.name for p in folder.iterdir())  # nothing else is left behind
    assert load_info(folder) == info
    return {split: load_split(folder, split) for split in ("transfer", "validation", "test")}


def assert_covers(splits: dict[str, Arrays], inputs: np.ndarray, labels: np.ndarray) -> None:
    """All rows once, each with its own input and label."""
    ids = np.concatenate([part.ids for part in splits.values()])
    np.testing.assert_array_equal(np.sort(ids), np.arange(len(labels)))
    for part in splits.values():
        assert len(part.ids)
        assert part.inputs.dtype == inputs.dtype
        np.testing.assert_array_equal(part.inputs, inputs[part.ids])
        np.testing.assert_array_equal(part.labels, labels[part.ids])


def encoded(images: np.ndarray, encoding: str) -> pa.Array:
    rows = [image.tobytes() for image in images]
    if encoding == "fixed":
        return pa.array(rows, pa.binary(len(rows[0])))
    if encoding == "bytes":
        return pa.array(rows, pa.binary())
    if encoding == "large bytes":
        return pa.array(rows, pa.large_binary())
    if encoding == "png":
        return pa.array([png(image) for image in images], pa.binary())
    if encoding == "hugging face":
        return pa.array([{"bytes": png(image), "path": None} for image in images])
    if encoding == "flat list":
        return pa.array(images.reshape(len(images), -1).tolist(), pa.list_(pa.uint8()))
    if encoding == "fixed list":
        size = int(np.prod(images.shape[1:]))
        return pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), size)
    if encoding == "float list":
        return pa.array(images.reshape(len(images), -1).astype(float).tolist())
    return pa.array(images.tolist())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", ["given", "found"])
@pytest.mark.parametrize(
    "encoding",
    [
        "fixed",
        "bytes",
        "large bytes",
        "png",
        "hugging face",
        "flat list",
        "fixed list",
        "float list",
        "nested",
    ],
)
def test_image_encodings(tmp_path: Path, encoding: str, shape: str, channels: int) -> None:
    images = make_images(shape=(5, 4, channels))
    pq.write_table(pa.table({"input": encoded(images, encoding), "label": LABELS}), tmp_path / "a.parquet")
    image = {"shape": [5, 4, channels]} if shape == "given" else {}
    config = make_config(path=str(tmp_path / "a.parquet"), image=image, shard_rows=7)
    if shape == "found" and encoding not in ("png", "hugging face", "nested"):
        with pytest.raises(Exception, match=r"set data\.image\.shape=\[height,width,channels\]"):
            prepare(config, tmp_path / "out")
        return
    assert_covers(prepared(config, tmp_path / "out"), images, LABELS)


def test_images_without_a_last_dimension(tmp_path: Path) -> None:
    images = make_images(shape=(5, 4, 1))
    table = pa.table({"input": pa.array(images[..., 0].tolist()), "label": LABELS})
    pq.write_table(table, tmp_path / "a.parquet")
    assert_covers(prepared(make_config(path=str(tmp_path / "a.parquet")), tmp_path / "out"), images, LABELS)


def test_jpeg_is_decoded_and_gray_becomes_rgb(tmp_path: Path) -> None:
    import io

    from PIL import Image

    rows = []
    for i in range(30):
        file = io.BytesIO()
        Image.new("L" if i % 2 else "RGB", (16, 16), 8 * i if i % 2 else (8 * i,) * 3).save(file, "JPEG")
        rows.append(file.getvalue())
    pq.write_table(pa.table({"input": rows, "label": LABELS}), tmp_path / "a.parquet")
    splits = prepared(make_config(path=str(tmp_path / "a.parquet")), tmp_path / "out")
    expected = np.tile((8 * np.arange(30))[:, None, None, None], (1, 16, 16, 3)).astype(np.uint8)
    for part in splits.values():
        assert np.abs(part.inputs.astype(int) - expected[part.ids]).max() <= 2  # JPEG is lossy


def test_raw_pixels_that_begin_like_a_jpeg(tmp_path: Path) -> None:
    images = make_images()
    images.reshape(30, -1)[:, :3] = 0xFF, 0xD8, 0xFF
    pq.write_table(pa.table({"input": encoded(images, "bytes"), "label": LABELS}), tmp_path / "a.parquet")
    config = make_config(path=str(tmp_path / "a.parquet"), image={"shape": SHAPE})
    assert_covers(prepared(config, tmp_path / "out"), images, LABELS)


def write(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=11)
    elif path.suffix in (".csv", ".tsv"):
        delimiter = "\t" if path.suffix == ".tsv" else ","
        pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter=delimiter))
    elif path.suffix == ".gz":
        with gzip.open(path, "wb") as file:
            pacsv.write_csv(table, file)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif path.suffix == ".arrow":
        feather.write_feather(table, str(path), compression="uncompressed")
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=11)


FORMATS = ["a.parquet", "a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.arrow", "a.ipc"]


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_in_every_format(tmp_path: Path, name: str) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    table = pa.table({"a": rows[:, 0].astype(float), "b": rows[:, 1].astype(float), "y": LABELS})
    write(table, tmp_path / name)
    columns = {"input": ["b", "a"], "label": "y"}
    config = make_config(path=str(tmp_path / name), kind="numeric", columns=columns, shard_rows=7)
    assert_covers(prepared(config, tmp_path / "out"), rows[:, ::-1], LABELS)


@pytest.mark.parametrize("name", FORMATS)
def test_texts_and_ids_in_every_format(tmp_path: Path, name: str) -> None:
    texts = [f'line {i}, with "quotes",\na break and Ünïcode' for i in range(30)]
    names = np.array(["no", "yes", "perhaps"])[LABELS]
    table = pa.table({"input": texts, "label": names, "key": [f"k{i}" for i in range(30)]})
    write(table, tmp_path / name)
    columns = {"id": "key"}
    text = {"word_ngrams": 1, "char_ngrams": None, "vocabulary_size": 10000}
    config = make_config(path=str(tmp_path / name), kind="text", columns=columns, text=text)
    splits = prepared(config, tmp_path / "out")
    assert load_info(tmp_path / "out").class_names == ["no", "perhaps", "yes"]
    for part in splits.values():
        assert part.ids.dtype.kind == "U"
        row = np.array([int(key[1:]) for key in part.ids])
        np.testing.assert_array_equal(part.labels, np.array([0, 2, 1])[LABELS[row]])
        assert len(np.unique(part.inputs[:, 1])) == len(row)  # the second word is the row's own number
        assert len(np.unique(part.inputs[:, 0])) == 1


def test_one_column_per_pixel_in_csv(tmp_path: Path) -> None:
    images = make_images(shape=(2, 2, 1))
    pixels = {f"p{i}": images.reshape(30, 4)[:, i] for i in range(4)}
    write(pa.table({"label": LABELS, **pixels}), tmp_path / "a.csv")
    config = make_config(
        path=str(tmp_path / "a.csv"), columns={"input": list(pixels)}, image={"shape": [2, 2, 1]}
    )
    assert_covers(prepared(config, tmp_path / "out"), images, LABELS)


def numbers(rows: range) -> pa.Table:
    return pa.table({"x": [float(i) for i in rows], "y": [i % 2 for i in rows]})


@pytest.mark.parametrize("layout", ["folder", "shards", "dict", "glob", "parts", "url", "fsspec"])
def test_ways_to_name_files(tmp_path: Path, layout: str) -> None:
    path: Any = str(tmp_path)
    given: dict[str, range] = {"train": range(20)}
    if layout in ("folder", "url", "dict"):
        given |= {"validation": range(20, 26), "test": range(26, 30)}
        for split, rows in given.items():
            write(numbers(rows), tmp_path / f"{split}.csv")
        if layout == "url":
            path = tmp_path.as_uri()
        if layout == "dict":
            path = {split: str(tmp_path / f"{split}.csv") for split in given}
    elif layout == "shards":
        given["validation"] = range(20, 26)
        (tmp_path / "data").mkdir()
        write(numbers(range(10)), tmp_path / "data" / "train-00000-of-00002.parquet")
        write(numbers(range(10, 20)), tmp_path / "data" / "train-00001-of-00002.parquet")
        write(numbers(range(20, 26)), tmp_path / "data" / "dev.parquet")
    elif layout == "fsspec":
        import fsspec

        with fsspec.open("memory://folder/train.csv", "wb") as file:
            pacsv.write_csv(numbers(range(20)), file)
        path = "memory://folder/train.csv"
    else:
        write(numbers(range(10)), tmp_path / "part-0.parquet")
        write(numbers(range(10, 20)), tmp_path / "part-1.csv")
        path = f"{tmp_path}/part-*" if layout == "glob" else path
    config = make_config(path=path, kind="numeric", columns={"input": "x", "label": "y"})
    splits = prepared(config, tmp_path / "out")
    found = {"train": splits["transfer"], "validation": splits["validation"], "test": splits["test"]}
    for split, rows in given.items():
        if split == "train":
            held = [found[s].inputs for s in ("validation", "test") if s not in given]
            values = np.concatenate([found["train"].inputs, *held])
        else:
            values = found[split].inputs
        np.testing.assert_array_equal(np.sort(values[:, 0]), np.array(rows, np.float32))


def test_unlabelled_rows_come_last_in_transfer(tmp_path: Path) -> None:
    write(numbers(range(20)), tmp_path / "a.csv")
    write(pa.table({"x": [100.0, 101.0]}), tmp_path / "more.jsonl")
    config = make_config(
        path=str(tmp_path / "a.csv"),
        kind="numeric",
        columns={"input": "x", "label": "y"},
        unlabelled=str(tmp_path / "more.jsonl"),
    )
    transfer = prepared(config, tmp_path / "out")["transfer"]
    info = load_info(tmp_path / "out")
    assert transfer.inputs[-2:, 0].tolist() == [100, 101]
    assert transfer.labels[-2:].tolist() == [-1, -1] and (transfer.labels[:-2] >= 0).all()
    assert transfer.ids[-2:].tolist() == [20, 21]
    assert info.counts["transfer"] == info.counts["train"] + 2
    assert info.counts["labelled"] == info.counts["train"]
    assert info.mean[0] < 20  # statistics come from the train rows alone


def test_null_labels_in_train_are_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{i},{i % 2 if i > 4 else ''}\n" for i in range(30)))
    config = make_config(path=str(tmp_path / "a.csv"), kind="numeric", columns={"input": "x", "label": "y"})
    transfer = prepared(config, tmp_path / "out")["transfer"]
    assert transfer.inputs[transfer.labels < 0, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("form", ["parquet", "saved", "images"])
def test_hugging_face_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images, folder = make_images(), tmp_path / "set"
    names = ["ant", "bee", "cat"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "row": datasets.Value("int64")}
    )
    rows = {
        "image": [{"bytes": png(image), "path": None} for image in images],
        "label": LABELS.tolist(),
        "row": list(range(30)),
    }
    if form == "images":
        for i, image in enumerate(images):
            (folder / "train" / names[LABELS[i]]).mkdir(parents=True, exist_ok=True)
            (folder / "train" / names[LABELS[i]] / f"{i}.png").write_bytes(png(image))
    else:
        dataset = datasets.Dataset.from_dict(rows, features=features)
        if form == "saved":
            datasets.DatasetDict({"train": dataset}).save_to_disk(str(folder))
        else:
            folder.mkdir()
            dataset.to_parquet(str(folder / "train.parquet"))
    columns = {"input": "image", "label": "label"} | ({"id": "row"} if form != "images" else {})
    config = make_config(source="hub", hub_name=str(folder), columns=columns)
    splits = prepared(config, tmp_path / "out")
    assert load_info(tmp_path / "out").class_names == names
    if form != "images":
        assert_covers(splits, images, LABELS)
    else:  # the library lists files in an order of its own; pixels tell which is which
        row = {image.tobytes(): i for i, image in enumerate(images)}
        for part in splits.values():
            order = [row[image.tobytes()] for image in part.inputs]
            np.testing.assert_array_equal(part.labels, LABELS[order])
    assert source_fingerprint(config.data) == source_fingerprint(config.data)


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    config = make_config(source="digits")
    splits = prepared(config, tmp_path / "out")
    digits = load_digits()
    images = np.round(digits.images / 16 * 255).astype(np.uint8)[..., None]
    assert_covers(splits, images, digits.target)
    assert load_info(tmp_path / "out").class_names == [str(i) for i in range(10)]
    assert images.max() == 255


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    def fingerprint(folder: str, rows: range) -> str:
        (tmp_path / folder).mkdir()
        write(numbers(rows), tmp_path / folder / "train.csv")
        return source_fingerprint(make_config(path=str(tmp_path / folder), kind="numeric").data)

    first = fingerprint("a", range(20))
    assert fingerprint("b", range(20)) == first
    assert fingerprint("c", range(21)) != first
    moved = {"train": str(tmp_path / "a" / "train.csv")}
    assert source_fingerprint(make_config(path=moved, kind="numeric").data) == first


def test_real_mnist(tmp_path: Path) -> None:
    config = make_config(
        path=str(real_set("mnist")),
        columns={"input": "image"},
        image={"shape": [28, 28, 1]},
        class_names="labels.txt",
        batch_size=100,
    )
    splits = prepared(config, tmp_path / "out")
    info = load_info(tmp_path / "out")
    assert info.counts == {
        "train": 54000,
        "validation": 6000,
        "test": 10000,
        "transfer": 54000,
        "labelled": 54000,
    }
    table = pq.read_table(real_set("mnist") / "train.parquet")
    images = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(-1, 28, 28, 1)
    transfer = splits["transfer"]
    np.testing.assert_array_equal(transfer.inputs, images[transfer.ids])
    np.testing.assert_array_equal(transfer.labels, table["label"].to_numpy()[transfer.ids])
    pixels = images[transfer.ids] / np.float32(255)
    assert info.mean == pytest.approx([pixels.mean(dtype=np.float64)], rel=1e-4)
    assert info.std == pytest.approx([pixels.std(dtype=np.float64)], rel=1e-4)


def test_real_banking77(tmp_path: Path) -> None:
    config = make_config(
        path=str(real_set("banking77")), kind="text", columns={"input": "text"}, class_names="labels.txt"
    )
    splits = prepared(config, tmp_path / "out")
    info = load_info(tmp_path / "out")
    assert info.num_classes == 77 and info.counts["test"] == 3080
    assert info.vocabulary_size == 32769
    assert info.input_shape == [256]
    for part in splits.values():
        assert part.inputs.min() == 0 and part.inputs.max() <= 32768
        assert (part.inputs[:, 0] > 0).all()
