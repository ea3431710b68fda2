"""Images in predict and serve: the decoder of training, a folder as input, no file of the server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_cases import MODELS, NAMES, info_of, package
from pictures import READ, picture, saved, tripping, turned, write
from PIL import Image
from typer.testing import CliRunner

from ensemble_kd.cli import app as commands
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import DataInfo
from ensemble_kd.errors import InputError
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.build import build
from ensemble_kd.models.package import save_package
from ensemble_kd.predict import predict_file
from ensemble_kd.predict_files import Options, predict_files


def resizing(folder: Path) -> Path:
    """A model folder of pictures that are scaled to 5x4."""
    from pydantic import TypeAdapter

    from ensemble_kd.config import ModelConfig

    info = info_of("image")
    info["preprocess"]["image"]["resize"] = [5, 4]
    kind, model = MODELS["mlp"]
    network = build(TypeAdapter[Any](ModelConfig).validate_python(model), info).eval()
    save_package(folder / "resizing", network, model, info, "card", None, lineage={"student": "x"})
    return folder / "resizing"


def rows_of(model: Path, source: Path, batch_size: int = 3) -> tuple[list[dict[str, Any]], list[str]]:
    shown: list[str] = []
    problems = predict_file(model, str(source), None, batch_size, shown.append)
    return [json.loads(line) for line in shown], problems


def expected(model: Path, images: list[np.ndarray]) -> np.ndarray:
    cells = pa.array([image.tobytes() for image in images], pa.binary())
    return Predictor(model).answer(pa.table({"input": cells})).probabilities


# ------------------------------------------------------------------------------------------ predict


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "image")
    folder, images = tmp_path / "new", [picture(5, 4, seed=i) for i in range(7)]
    for i, image in enumerate(images):
        write(folder / ("ab"[i % 2]) / f"{i}.png", image)
    (folder / "notes.txt").write_text("hello")
    (folder / "b" / "broken.png").write_bytes(tripping(5, 4))
    found, problems = rows_of(model, folder)
    order = [0, 2, 4, 6, 1, 3, 5]
    assert [row["id"] for row in found] == [f"{'ab'[i % 2]}/{i}.png" for i in order]
    np.testing.assert_allclose(
        [row["probabilities"] for row in found],
        expected(model, [np.asarray(images[i]) for i in order]),
        rtol=1e-6,
    )
    (line,) = problems
    assert line.startswith("row 7 (b/broken.png): image cannot be decoded: ")
    result = CliRunner().invoke(commands, ["predict", str(model), str(folder), "--on-bad-row", "null"])
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 8
    assert "left out, as no picture: 1 file: notes.txt" in " ".join(result.stderr.split())


@pytest.mark.parametrize("format", READ)
def test_one_picture_of_any_format(tmp_path: Path, format: str) -> None:
    model, _ = package(tmp_path, "image")
    raw = saved(picture(5, 4), format)
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(raw)
    (row,), problems = rows_of(model, path)
    assert row["id"] == path.name and not problems and row["label_name"] in NAMES


def test_workers_take_data_files(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "image")
    write(tmp_path / "new" / "a.png", picture(5, 4))
    with pytest.raises(InputError, match="--workers: INPUT is a folder of pictures"):
        predict_files(model, str(tmp_path / "new"), tmp_path / "out", 2, Options())


def test_a_picture_of_any_size_where_training_resized(tmp_path: Path) -> None:
    model = resizing(tmp_path)
    images = [picture(9 + i, 30 - i, seed=i) for i in range(4)]
    for i, image in enumerate(images):
        write(tmp_path / "new" / f"{i}.png", image)
    found, problems = rows_of(model, tmp_path / "new")
    scaled = [np.asarray(image.resize((4, 5), Image.Resampling.BILINEAR)) for image in images]
    assert not problems
    np.testing.assert_allclose([r["probabilities"] for r in found], expected(model, scaled), rtol=1e-6)


def test_predict_opens_no_file_that_a_row_names(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "image")
    write(tmp_path / "secret.png", picture(5, 4))
    cells = [
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": saved(picture(5, 4)), "path": "/etc/passwd"},
        {"bytes": None, "path": None},
    ]
    pq.write_table(pa.table({"input": cells}), tmp_path / "rows.parquet")
    found, problems = rows_of(model, tmp_path / "rows.parquet")
    assert [row["id"] for row in found] == [1]
    assert "only a path" in problems[0] and problems[1] == "row 2: no image (null)"


def test_turned_pictures_in_predict(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "image")
    upright = np.asarray(picture(5, 4))
    cells = [turned(upright, i, "PNG") for i in range(1, 9)]
    pq.write_table(pa.table({"input": cells}), tmp_path / "rows.parquet")
    found, problems = rows_of(model, tmp_path / "rows.parquet")
    assert not problems
    np.testing.assert_allclose(
        [row["probabilities"] for row in found], expected(model, [upright] * 8), rtol=1e-6
    )


# -------------------------------------------------------------------------------------------- serve


def post(model: Path, rows: list[Any], **more: Any) -> Any:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from test_serve import client

    return client(model).post("/predict", json={"rows": rows, **more})


def cell(raw: bytes) -> dict[str, str]:
    return {"input": base64.b64encode(raw).decode()}


def test_a_request_cannot_name_files_of_the_server(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "image")
    write(tmp_path / "secret.png", picture(5, 4))
    for value in (
        {"bytes": None, "path": f"{tmp_path}/secret.png"},
        {"path": f"{tmp_path}/secret.png"},
        f"{tmp_path}/secret.png",
        f"file://{tmp_path}/secret.png",
        base64.b64encode(f"{tmp_path}/secret.png".encode()).decode(),
        [f"{tmp_path}/secret.png"],
    ):
        answer = post(model, [{"input": value}])
        assert answer.status_code == 422, answer.text


def test_a_picture_that_trips_the_decoder_costs_its_row_alone(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "image")
    good = picture(5, 4)
    rows = [cell(saved(good)), cell(tripping(5, 4)), cell(saved(good, "WEBP")), cell(saved(good, "BMP"))]
    answer = post(model, rows, on_bad_row="null")
    assert answer.status_code == 200
    first, bad, *rest = answer.json()["rows"]
    assert "image cannot be decoded: " in bad["problem"] and bad["label"] is None
    assert all(row["probabilities"] == first["probabilities"] for row in rest)
    answer = post(model, rows)
    assert answer.status_code == 422 and answer.json()["problems"][0].startswith("rows.1.input: image cannot")


def test_a_server_resizes_as_training_did(tmp_path: Path) -> None:
    model = resizing(tmp_path)
    image = picture(31, 17)
    scaled = image.resize((4, 5), Image.Resampling.BILINEAR)
    answer = post(model, [cell(saved(image)), {"input": np.asarray(scaled).tolist()}])
    first, second = answer.json()["rows"]
    assert first["probabilities"] == second["probabilities"]


def test_training_alone_opens_paths() -> None:
    """Whoever reads a model folder's rows gets a reader that opens none."""
    info = DataInfo.from_dict(info_of("image"))
    assert not Preprocessor(info, Path(".")).reader.pictures.training


# -------------------------------------------------------------------------------------------- check


def test_check_names_what_is_wrong_and_warns_of_what_is_odd(tmp_path: Path) -> None:
    for i in range(20):
        for name in ("cat", "dog"):
            write(tmp_path / "set" / name / f"{i}.png", picture(5, 4, "L" if i == 3 else "RGB", seed=i))
    (tmp_path / "set" / "dog" / "7.png").write_bytes(tripping(5, 4))
    (tmp_path / "set" / "notes.txt").write_text("hello")
    small = "{model: {name: mlp}, training: {batch_size: 4}}"
    (tmp_path / "c.yaml").write_text(
        f"name: x\ndata: {{path: {tmp_path}/set}}\nteachers: {small}\nstudent: {small}\n"
    )
    result = CliRunner().invoke(
        commands, ["check", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "r")]
    )
    shown = " ".join(result.stderr.split())
    assert result.exit_code == 2, result.output
    assert "error: row 37 of train: dog/7.png: image cannot be decoded: " in shown
    assert "warning: data.image.mode: 3 of 40 sampled images are grey; read as RGB" in shown
    assert "warning: data.path: left out, as no picture: 1 file: notes.txt" in shown
    (tmp_path / "set" / "dog" / "7.png").unlink()
    result = CliRunner().invoke(
        commands, ["check", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "r")]
    )
    assert result.exit_code == 0, result.output
