"""Colour or grey by a sample of all images, the settings of data.image, and what predict does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config
from pictures import picture, saved, tripping, turned
from PIL import Image

from ensemble_kd.config import Config, validate
from ensemble_kd.data import survey
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.stages import data as data_stage


def images_of(rows: int, mode: str = "RGB") -> list[bytes]:
    return [saved(picture(6, 5, mode, seed=i)) for i in range(rows)]


def written(folder: Path, rows: list[Any], group: int = 1000, form: str = "parquet", **data: Any) -> Config:
    folder.mkdir(exist_ok=True)
    table = pa.table({"input": rows, "label": np.arange(len(rows)) % 2})
    if form == "parquet":
        pq.write_table(table, folder / "train.parquet", row_group_size=group)
    else:
        with pa.ipc.new_file(str(folder / "train.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=group)
    return make_config(path=str(folder), **data)


def prepared(config: Config, folder: Path) -> tuple[Any, np.ndarray, list[str]]:
    """The description, all pixels by row of the source, and the warnings."""
    warnings: list[str] = []
    info, _ = prepare(config, folder, warnings.append)
    inspected: list[str] = []
    assert inspect_source(config, inspected.append) == [] and inspected == warnings
    pixels: dict[int, np.ndarray] = {}
    for split in ("transfer", "validation", "test"):
        arrays = load_split(folder, split)
        pixels |= dict(zip(arrays.ids.tolist(), arrays.inputs, strict=True))
    return info, np.stack([pixels[i] for i in range(len(pixels))]), warnings


def pixels(raw: bytes, mode: str) -> np.ndarray:
    import io

    found = np.asarray(Image.open(io.BytesIO(raw)).convert(mode))
    return found[..., None] if found.ndim == 2 else found


@pytest.mark.parametrize("place", [0, 17, 39])
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_one_grey_image_does_not_decide(tmp_path: Path, place: int, form: str) -> None:
    rows = images_of(40)
    rows[place] = saved(picture(6, 5, "L"))
    info, found, warnings = prepared(written(tmp_path / "set", rows, 7, form), tmp_path / "out")
    assert info.input_shape == [6, 5, 3]
    np.testing.assert_array_equal(found, [pixels(raw, "RGB") for raw in rows])
    assert warnings == ["data.image.mode: 1 of 40 sampled images are grey; read as RGB"]


def test_one_colour_image_makes_the_set_colour(tmp_path: Path) -> None:
    rows = images_of(40, "L")
    rows[23] = saved(picture(6, 5))
    info, found, warnings = prepared(written(tmp_path / "set", rows), tmp_path / "out")
    np.testing.assert_array_equal(found, [pixels(raw, "RGB") for raw in rows])
    assert warnings == ["data.image.mode: 39 of 40 sampled images are grey; read as RGB"]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("P", 3)])
def test_sets_of_one_mode_need_no_warning(tmp_path: Path, mode: str, channels: int) -> None:
    rows = images_of(40, mode)
    info, found, warnings = prepared(written(tmp_path / "set", rows), tmp_path / "out")
    assert info.input_shape == [6, 5, channels]
    np.testing.assert_array_equal(found, [pixels(raw, "L" if channels == 1 else "RGB") for raw in rows])
    assert not [line for line in warnings if "grey" in line]
    assert info.preprocess["image"] == {"shape": [6, 5, channels]}


def test_transparency_is_dropped_with_a_warning_or_kept(tmp_path: Path) -> None:
    rows = images_of(40, "RGBA")
    config = written(tmp_path / "set", rows)
    info, found, warnings = prepared(config, tmp_path / "out")
    np.testing.assert_array_equal(found, [pixels(raw, "RGB") for raw in rows])
    assert warnings == [
        "data.image.mode: 40 of 40 sampled images have transparency, which is dropped; set "
        "data.image.mode=RGBA to keep it"
    ]
    config = written(tmp_path / "set", rows, image={"mode": "RGBA"})
    info, found, warnings = prepared(config, tmp_path / "kept")
    np.testing.assert_array_equal(found, [pixels(raw, "RGBA") for raw in rows])
    assert not warnings


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_mode_can_be_set(tmp_path: Path, mode: str) -> None:
    rows = images_of(20) + images_of(20, "L")
    info, found, warnings = prepared(written(tmp_path / "set", rows, image={"mode": mode}), tmp_path / "out")
    np.testing.assert_array_equal(found, [pixels(raw, mode) for raw in rows])
    assert not warnings


def test_colour_that_no_sample_shows_is_an_error_not_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SAMPLED", 4)
    rows = images_of(40, "L")
    rows[5] = saved(picture(6, 5))
    config = written(tmp_path / "set", rows)
    with pytest.raises(InputError) as caught:
        prepare(config, tmp_path / "out")
    (line,) = caught.value.problems
    assert line.startswith(
        "row 5 of train.parquet: image of mode RGB in a set whose sampled images are all grey"
    )
    assert "data.image.mode=RGB" in line and inspect_source(config) == [line]
    config = written(tmp_path / "set", rows, image={"mode": "L"})
    assert prepared(config, tmp_path / "out")[0].input_shape == [6, 5, 1]


def test_samples_are_spread_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_kd.data.pieces import TablePiece
    from ensemble_kd.data.sources import open_source

    numbers = [str(i).encode() for i in range(20_000)]
    config = written(tmp_path / "set", numbers, 50)
    piece = open_source(config.data, survey.Problems()).splits["train"][0]
    for each in (piece, TablePiece("x", pa.table({"input": numbers}))):
        found = np.concatenate([np.array(a.to_pylist(), int) for a in survey.sample(each, "input", 1000)])
        assert len(np.unique(found)) == len(found) and 500 <= len(found) <= 4000
        assert found[0] == 0 and (np.histogram(found, 8, (0, 20_000))[0] > 10).all()


def test_exif_is_applied_as_datasets_does(tmp_path: Path) -> None:
    upright = [np.asarray(picture(6, 5, seed=i)) for i in range(40)]
    rows = [turned(image, 1 + i % 8, ("PNG", "WEBP")[i % 2]) for i, image in enumerate(upright)]
    info, found, warnings = prepared(written(tmp_path / "set", rows), tmp_path / "out")
    assert info.input_shape == [6, 5, 3] and not warnings
    np.testing.assert_array_equal(found, upright)
    table = pa.table({"input": rows})
    inputs, problems = Preprocessor(load_info(tmp_path / "out"), tmp_path / "out").transform(table)
    np.testing.assert_array_equal(inputs, upright)
    assert problems == [None] * 40


def test_resize_takes_pictures_of_any_size_in_predict_too(tmp_path: Path) -> None:
    rows = [saved(picture(5 + i, 40 - i, seed=i)) for i in range(36)]
    config = written(tmp_path / "set", rows)
    with pytest.raises(InputError, match=r"data.image.resize=\[5,40\]"):
        prepare(config, tmp_path / "out")
    config = written(tmp_path / "set", rows, image={"resize": [8, 9]})
    info, found, _ = prepared(config, tmp_path / "out")
    assert info.input_shape == [8, 9, 3]
    assert info.preprocess["image"] == {"shape": [8, 9, 3], "resize": [8, 9]}
    import io

    expected = [
        np.asarray(Image.open(io.BytesIO(raw)).resize((9, 8), Image.Resampling.BILINEAR)) for raw in rows
    ]
    np.testing.assert_array_equal(found, expected)
    predictor = Preprocessor(load_info(tmp_path / "out"), tmp_path / "out")
    inputs, problems = predictor.transform(
        pa.table({"input": [*rows, bytes(8 * 9 * 3), saved(picture(9, 9, "L"))]})
    )
    np.testing.assert_array_equal(inputs[:36], expected)
    assert problems == [None] * 38 and not inputs[36].any()


def test_raw_pixels_are_not_resized(tmp_path: Path) -> None:
    rows = [picture(6, 5, "L", seed=i) for i in range(40)]
    lists = [np.asarray(image).tolist() for image in rows]
    config = written(tmp_path / "set", lists, image={"resize": [3, 3]})
    with pytest.raises(
        InputError, match="data.image.resize: 'input' of train.parquet holds .*raw pixels"
    ) as caught:
        prepare(config, tmp_path / "out")
    assert inspect_source(config) == caught.value.problems
    for image in ({"mode": "L"}, {"mode": "L", "shape": [6, 5, 1]}):
        config = written(tmp_path / "set", lists, image=image)
        with pytest.raises(InputError, match="data.image.mode: 'input' of train.parquet holds"):
            prepare(config, tmp_path / "out")


def test_a_path_that_is_not_there_is_told_as_absent(tmp_path: Path) -> None:
    """A column of Hugging Face's form without bytes; version 0.1 spoke of neither PNG nor JPEG."""
    rows: list[Any] = [{"bytes": None, "path": f"{tmp_path}/{i}.png"} for i in range(40)]
    config = written(tmp_path / "set", rows)
    with pytest.raises(InputError, match=f"no such file: {tmp_path}/0.png") as caught:
        prepare(config, tmp_path / "out")
    assert "PNG" not in str(caught.value)
    for row in rows[1:]:
        row["bytes"] = saved(picture(6, 5))
    with pytest.raises(InputError) as caught:
        prepare(written(tmp_path / "set", rows), tmp_path / "out")
    assert caught.value.problems == [f"row 0 of train.parquet: no such file: {tmp_path}/0.png"]


def test_a_picture_that_trips_the_decoder_is_one_bad_row(tmp_path: Path) -> None:
    """A small TIFF at which PIL raises TypeError, which version 0.1 let through."""
    rows = images_of(40)
    rows[9] = tripping()
    config = written(tmp_path / "set", rows)
    with pytest.raises(InputError) as caught:
        prepare(config, tmp_path / "out")
    (line,) = caught.value.problems
    assert line.startswith("row 9 of train.parquet: image cannot be decoded: ")
    assert inspect_source(config) == [line]


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ({"shape": [-1, 28, 1]}, "data.image.shape"),
        ({"shape": [28, 0, 1]}, "data.image.shape"),
        ({"shape": [28, 28, 0]}, "data.image.shape"),
        ({"shape": [10**6, 10**6, 3]}, "data.image.shape: 1000000x1000000x3 is 3,000,000,000,000 numbers"),
        ({"shape": [2**70, 1, 1]}, "data.image.shape"),
        ({"resize": [0, 28]}, "data.image.resize"),
        ({"resize": [-5, 28]}, "data.image.resize"),
        ({"resize": [10**5, 10**5]}, "data.image.resize: 100000x100000 is 10,000,000,000 numbers"),
        (
            {"resize": [8, 8], "shape": [9, 9, 3]},
            "data.image.resize: [8, 8], but data.image.shape is [9, 9, 3]",
        ),
        ({"mode": "L", "shape": [9, 9, 3]}, "data.image.mode: L has 1 channels"),
        ({"mode": "grey"}, "data.image.mode"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, image: dict[str, Any], path: str) -> None:
    block = {"model": {"name": "mlp"}}
    with pytest.raises(ConfigError) as caught:
        validate(
            {
                "name": "test",
                "data": {"path": str(tmp_path), "image": image},
                "teachers": block,
                "student": block,
            }
        )
    assert all(line.startswith("data.image.") for line in caught.value.problems)
    assert caught.value.problems[0].startswith(path)


@pytest.mark.parametrize("data", [{"source": "digits"}, {"kind": "text", "path": "/"}])
def test_settings_that_would_be_ignored(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="data.image.resize: only for encoded images"):
        make_config(**data, image={"resize": [8, 8]})


def test_defaults_leave_fingerprints_as_they_were(tmp_path: Path) -> None:
    """That of version 0.1 for the same settings and bytes."""
    config = written(tmp_path / "set", images_of(40))
    plain = data_stage.plan(config, tmp_path)
    assert plain.config["data"]["image"] == {"shape": None}
    changed = written(tmp_path / "set", images_of(40), image={"resize": [4, 4], "mode": "L"})
    assert data_stage.plan(changed, tmp_path).config["data"]["image"] == {
        "shape": None,
        "mode": "L",
        "resize": [4, 4],
    }
