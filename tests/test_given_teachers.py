"""Teachers that the user brings: pretrained classifiers, functions, and models in MLflow."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import asked_teachers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_roberta import write_roberta

from ensemble_kd import pipeline
from ensemble_kd.config import Config, TextConfig, load_config, validate
from ensemble_kd.data.prepared import prepare, raw_rows
from ensemble_kd.data.raw import as_frame, ask, load_callable
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.models.classifier import load_classifier
from ensemble_kd.models.foreign import class_problems, classifier_problems, taken_over
from ensemble_kd.stages.fit import fit_problems
from ensemble_kd.stages.mlflow_models import with_models

WORDS = "card lost stolen pay payment bank is it my a the cat sat on mat".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
CLASSES = ["animal", "money"]
DIGITS = [
    "student.training.epochs=1",
    "student.seeds=1",
    "student.model.hidden=[8]",
    "data.shard_rows=500",
    "compute.executor=local",
    "tracking.enabled=false",
    "specialists=null",
    "sweep=null",
    "data.augment={}",
    "soft_targets.views=1",
    "data.label_fraction=1",
]


def digits(*overrides: str) -> Config:
    return load_config("digits", [*DIGITS, *overrides])


# ------------------------------------------------------------------------------------------- pretrained


def write_classifier(folder: Path, names: list[str] | None = None, count: int = 2) -> Path:
    """A small BERT with a WordPiece tokenizer, as `save_pretrained` leaves it."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    named: dict[str, Any] = {"num_labels": count} if names is None else {"id2label": dict(enumerate(names))}
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
        **named,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_texts(folder: Path, rows: int = 120) -> Path:
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 8))) for _ in range(rows)]
    labels = [CLASSES[int(generator.integers(2))] for _ in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"input": texts, "label": labels}), folder / "train.parquet")
    return folder / "train.parquet"


def texts_config(tmp_path: Path, teachers: dict[str, Any], **student: Any) -> Config:
    own = teachers["source"] in ("callable", "transformers")
    data = {
        "source": "files",
        "path": str(write_texts(tmp_path / "data")),
        "kind": "text",
        "text": {"tokenizer": "hashed" if own else "pretrained"},
    }
    training = {"epochs": 1, "batch_size": 16}
    student = {"model": {"name": "bag"}, "training": training, "seeds": 1, **student}
    return validate(
        {
            "name": "texts",
            "data": data,
            "teachers": teachers,
            "student": student,
            "compute": {"executor": "local"},
            "tracking": {"enabled": False},
        }
    )


def info_of(names: list[str], kind: str = "text", shape: tuple[int, ...] = (16,)) -> dict[str, Any]:
    return {
        "kind": kind,
        "input_shape": list(shape),
        "num_classes": len(names),
        "class_names": names,
        "mean": [0.5] * shape[-1],
        "std": [0.5] * shape[-1],
        "vocabulary_size": len(VOCABULARY) + 1,
        "preprocess": {"special": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}},
    }


def plain_predictions(folder: Path, texts: list[str]) -> np.ndarray:
    """What transformers alone makes of the texts."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, model = (
        c.from_pretrained(folder) for c in (AutoTokenizer, AutoModelForSequenceClassification)
    )
    with torch.inference_mode():
        logits: np.ndarray = model.eval()(
            **tokenizer(texts, padding=True, return_tensors="pt")
        ).logits.numpy()
    return logits


@pytest.mark.slow
def test_a_pretrained_classifier_teaches_as_it_is(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "classifier", CLASSES)
    config = texts_config(tmp_path, {"source": "pretrained", "given": [str(folder)]})
    pipeline.run(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    rows = [(name, values) for name, _, values in raw_rows(config)]
    texts = [text for name, values in rows if name == "test" for text in values]
    labels = load_split(next((tmp_path / "run").glob("data/*/manifest.json")).parent, "test").labels
    accuracy = float((plain_predictions(folder, texts).argmax(1) == labels).mean())
    teacher = next(system for system in report["systems"] if system["role"] == "teacher")
    assert teacher["accuracy"] == pytest.approx(accuracy)
    assert 0 < accuracy < 1, "it says both"


@pytest.mark.parametrize(
    ("names", "ours", "message"),
    [
        (CLASSES, CLASSES, None),
        (None, CLASSES, None),
        (["negative", "positive"], ["0", "1"], None),
        (["Money", "animal"], CLASSES, None),
        (
            ["money", "other"],
            CLASSES,
            r"class 1 of .* is 'other', of the data 'money'.*teachers\.class_order",
        ),
        (
            ["a", "b", "c"],
            CLASSES,
            r"tells 3 classes apart \(a, b, c\), the data has 2 \(animal, money\); relabel",
        ),
    ],
)
def test_classes_of_a_source_against_those_of_the_data(
    tmp_path: Path, names: list[str] | None, ours: list[str], message: str | None
) -> None:
    folder = write_classifier(tmp_path / "classifier", names)
    problems = classifier_problems(str(folder), info_of(ours), "teachers.given.0")
    if message is None:
        assert problems == []
    else:
        assert len(problems) == 1
        with pytest.raises(ConfigError, match=r"teachers\.given\.0: .*" + message):
            raise ConfigError(problems)


def test_classes_that_are_listed_elsewhere_are_told_apart() -> None:
    names = ["a", "b", "x"]
    assert class_problems("m", 3, names, info_of(["a", "b", "c"]), "f") == []
    assert (
        "class 1 of m is 'b', of the data 'x'"
        in class_problems("m", 3, names, info_of(["a", "x", "c"]), "f")[0]
    )


def test_an_encoder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = texts_config(tmp_path, {"source": "pretrained", "given": [str(folder)]})
    problems = fit_problems(config, info_of(CLASSES))
    assert problems == [
        f"teachers.given.0: {folder} has no classifier for these classes (animal, money); fine-tune it: "
        f"teachers.source=train with teachers.model.source={folder}"
    ]


def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    config = texts_config(tmp_path, {"source": "pretrained", "given": [str(folder)]})
    (problem,) = fit_problems(config, info_of(CLASSES))
    assert problem.startswith("teachers.given.0.source: ") and "pytorch_model.bin" in problem
    assert "safe_serialization=True" in problem


def test_an_image_classifier_of_other_sizes_is_refused_and_keeps_its_own_moments(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    sizes["num_labels"] = 2
    config = ViTConfig(image_size=8, patch_size=4, num_channels=3, **sizes)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    said = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    source, field = str(tmp_path), "teachers.given.0"
    assert classifier_problems(source, info_of(CLASSES, "image", (8, 8, 3)), field) == []
    (problem,) = classifier_problems(source, info_of(CLASSES, "image", (9, 8, 3)), field)
    assert "takes images of [8, 8, 3]" in problem and "the data has [9, 8, 3]" in problem
    said["image_mean"] = [0.1, 0.2, 0.3]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    info = info_of(CLASSES, "image", (8, 8, 3))
    assert classifier_problems(source, info, field) == []
    own = taken_over(source, info, None)["pixels"]
    assert own["scale"] == pytest.approx([2 / 255] * 3) and own["shift"] == pytest.approx([-0.2, -0.4, -0.6])


# ---------------------------------------------------------------------------------------------- callable


def store(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("soft_targets/*/part-*.parquet"))}


def asked(*names: str) -> list[str]:
    given = [f"asked_teachers:{name}" for name in names]
    return ["teachers.source=callable", f"teachers.given={json.dumps(given)}"]


@pytest.mark.slow
@pytest.mark.parametrize("values", ["logits", pytest.param("probabilities", marks=pytest.mark.long)])
def test_a_function_leads_where_the_same_numbers_as_files_do(tmp_path: Path, values: str) -> None:
    name = {"logits": "linear", "probabilities": "probabilities"}[values]
    own = [*asked(name), f"teachers.values={values}", "soft_targets.batch_size=100"]
    asked_teachers.CALLS.clear()
    pipeline.run(digits(*own), tmp_path / "asked")
    assert max(asked_teachers.CALLS) <= 100 and sum(asked_teachers.CALLS) == 1797
    data = next((tmp_path / "asked").glob("data/*/manifest.json")).parent
    overrides = ["teachers.source=predictions", f"teachers.predictions.values={values}"]
    for key, split in (("train", "transfer"), ("validation", "validation"), ("test", "test")):
        arrays, file = load_split(data, split), tmp_path / f"{split}.parquet"
        numbers = np.asarray(getattr(asked_teachers, name)(arrays.inputs))
        pq.write_table(pa.table({"id": arrays.ids, "logits": numbers.tolist()}), file)
        overrides.append(f"teachers.predictions.{key}=[{json.dumps(str(file))}]")
    pipeline.run(digits(*overrides), tmp_path / "files")
    assert store(tmp_path / "asked") == store(tmp_path / "files") != {}
    one, two = (json.loads((tmp_path / n / "report.json").read_text()) for n in ("asked", "files"))
    assert one["summary"]["teacher"]["accuracy"] == two["summary"]["teacher"]["accuracy"]


@pytest.mark.parametrize("unlabelled", [False, True])
def test_raw_rows_are_in_the_order_of_the_prepared_data(tmp_path: Path, unlabelled: bool) -> None:
    overrides = ["data.shard_rows=300", "data.label_fraction=0.5"]
    if unlabelled:
        pq.write_table(pa.table({"input": [bytes([7] * 64)] * 5}), tmp_path / "more.parquet")
        overrides += [f"data.unlabelled={tmp_path}/more.parquet"]
    config = digits(*overrides)
    prepare(config, tmp_path / "data")
    found: dict[str, list[np.ndarray]] = {"transfer": [], "validation": [], "test": []}
    for split, first, values in raw_rows(config):
        assert first == sum(map(len, found[split]))
        found[split].append(values)
    for split, parts in found.items():
        assert np.array_equal(np.concatenate(parts), load_split(tmp_path / "data", split).inputs)


def test_only_members_that_are_not_done_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked_teachers, "FAILING", tmp_path / "down")
    (tmp_path / "down").touch()
    config = digits(*asked("linear", "fragile"))
    message = (
        r"teachers\.given\.1: asked_teachers:fragile: raised RuntimeError on rows 0 to \d+ of transfer: "
    )
    with pytest.raises(InputError, match=message):
        pipeline.run(config, tmp_path / "run", until="teachers")
    (tmp_path / "down").unlink()
    asked_teachers.CALLS.clear()
    manifests = pipeline.run(config, tmp_path / "run", until="soft-targets")
    assert sum(asked_teachers.CALLS) == 1797, "the first was done"
    assert [m["name"] for m in manifests["teachers"].summary["members"]] == ["teacher-000", "teacher-001"]
    asked_teachers.CALLS.clear()
    pipeline.run(config, tmp_path / "run", until="soft-targets")
    assert asked_teachers.CALLS == []
    states = {stage.name: stage.state for stage in pipeline.check(config, tmp_path / "run")}
    assert all(states[name].startswith("done") for name in ("data", "teachers", "soft-targets"))
    assert states["gap"].startswith("to do"), "whoever wants soft targets alone trains no student for them"


def test_texts_and_pairs_are_handed_over_as_they_are(tmp_path: Path) -> None:
    config = texts_config(tmp_path, {"source": "callable", "given": ["asked_teachers:lengths"]})
    pipeline.run(config, tmp_path / "run", until="soft-targets")
    (file,) = (tmp_path / "run").glob("teachers/*/teacher-000.test.parquet")
    texts = [text for name, _, values in raw_rows(config) if name == "test" for text in values]
    found = pq.read_table(file)["logits"].to_pylist()
    assert found == [[0.0, len(text) - 12.0] for text in texts]
    assert asked_teachers.lengths([("a", "b")]).tolist() == [[0.0, -9.0]]


@pytest.mark.parametrize(
    ("answer", "values", "message"),
    [
        ([[0.0, 1.0]] * 2, "logits", r"returned shape \(2, 2\) for rows 0 to 2 of test, expected \(3, 2\)"),
        (np.zeros((3, 2, 1)), "logits", r"returned shape \(3, 2, 1\)"),
        ([[0.0, 1.0], [np.nan, 0.0], [0.0, 2.0]], "logits", "not finite in row 1 of rows 0 to 2 of test"),
        (torch.tensor([[0.5, 0.5], [0.5, 0.4], [1.0, 0.0]]), "probabilities", r"row 1 .*\(sum 0\.9000"),
        ([[0.5, 0.5], [0.5, 0.5], [1.5, -0.5]], "probabilities", r"row 2 .* least -0\.5000"),
        ([[0.5, 0.5]] * 3, "logits", "returned probabilities .* set teachers.values=probabilities"),
        ([["yes", "no"]] * 3, "logits", "returned list .* which are no numbers"),
        ([[1.0], [1.0, 2.0], [3.0]], "logits", "returned list .* which are no numbers"),
    ],
)
def test_wrong_answers_are_told(answer: Any, values: str, message: str) -> None:
    with pytest.raises(InputError, match=r"teachers\.given\.0: .*" + message):
        ask(lambda inputs: answer, [1, 2, 3], 2, values, "teachers.given.0", "rows 0 to 2 of test")


def test_answers_may_be_of_many_kinds() -> None:
    rows = [[0.0, 1.0], [2.0, 3.0]]
    frame = as_frame(np.array(rows, np.float32), ["a", "b"])
    assert list(frame.columns) == ["a", "b"]
    half = torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True)
    answers = {"a list": rows, "an array": np.array(rows), "a tensor": half, "a frame": frame}
    for kind in answers:
        found = ask(lambda inputs: answers[inputs[0]], [kind, kind], 2, "logits", "f", "rows")
        assert found.dtype == np.float32 and found.tolist() == rows
    assert as_frame(["x", "y"], "text").to_dict("list") == {"text": ["x", "y"]}
    assert as_frame([("x", "y")], ["one", "two"]).to_dict("list") == {"one": ["x"], "two": ["y"]}
    assert as_frame(np.zeros((2, 3, 3, 1)), "image")["image"][1].shape == (3, 3, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_module:f", "cannot be imported .*PYTHONPATH"),
        ("asked_teachers:absent", "has no attribute 'absent'"),
        ("asked_teachers:NOT_A_FUNCTION", "is int, not callable"),
    ],
)
def test_a_function_that_is_not_to_be_had(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"teachers\.given\.0: '{name}'.*{message}"):
        load_callable(name, "teachers.given.0")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["teachers.source=callable", "teachers.given=[nonsense]"],
            "'nonsense' is not of the form module:callable",
        ),
        (
            ["teachers.source=mlflow", "teachers.given=[nonsense]"],
            "'nonsense' is no model URI, and no folder either",
        ),
        ([*asked("linear"), "soft_targets.views=2", "data.augment.shift=1"], "soft_targets.views: 2, but"),
        ([*asked("linear"), "specialists={}"], "specialists: .* teachers.source=callable has none"),
        ([*asked("linear"), "sweep={refit: hold_out}"], "sweep.refit: "),
    ],
)
def test_what_the_settings_alone_tell(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        digits(*overrides)


def test_wrong_shape_names_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"asked_teachers:three: returned shape \(\d+, 3\) .* expected \(\d+, 10\)"
    ):
        pipeline.run(digits(*asked("three")), tmp_path / "run", until="teachers")


def test_losses_that_read_a_teacher_beside_the_student_need_one(tmp_path: Path) -> None:
    config = texts_config(
        tmp_path,
        {"source": "callable", "given": ["asked_teachers:lengths"]},
        terms=[{"name": "hidden_mse"}],
    )
    (problem,) = fit_problems(config, info_of(CLASSES))
    assert problem.startswith("student.terms: a loss reads a teacher beside the student, and ")
    assert "teachers.source=callable has only numbers" in problem and "student.online.source" in problem


# ------------------------------------------------------------------------------------------------ MLflow

AS_CODE = """
import numpy as np
from asked_teachers import linear
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Model(PythonModel):
    def predict(self, context, model_input, params=None):
        return linear(np.stack(model_input["input"].tolist())).numpy()


set_model(Model())
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URIs of models in a database of MLflow: one logged as code, one pickled; and the database."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    (folder / "as_code.py").write_text(AS_CODE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)

        class Pickled(mlflow.pyfunc.PythonModel):  # type: ignore[misc, unused-ignore]
            def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def, unused-ignore]
                return model_input

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(uri)
        try:
            experiment = mlflow.create_experiment("models", artifact_location=(folder / "artifacts").as_uri())
            with mlflow.start_run(experiment_id=experiment):
                options: dict[str, Any] = {"pip_requirements": ["mlflow"]}
                code = mlflow.pyfunc.log_model(
                    name="code", python_model=str(folder / "as_code.py"), **options
                )
                pickled = mlflow.pyfunc.log_model(name="pickled", python_model=Pickled(), **options)
        finally:
            mlflow.set_tracking_uri(before)
    return {"code": code.model_uri, "pickled": pickled.model_uri, "uri": uri}


def in_mlflow(*given: str, uri: str = "") -> list[str]:
    found = ["teachers.source=mlflow", f"teachers.given={json.dumps(given)}"]
    return found + ([f"tracking.uri={uri}"] if uri else [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_logged_as_code_is_asked(tmp_path: Path, logged: dict[str, str]) -> None:
    pipeline.run(digits(*asked("linear")), tmp_path / "asked", until="soft-targets")
    config = digits(*in_mlflow(logged["code"], uri=logged["uri"]))
    for _ in range(2):
        asked_teachers.CALLS.clear()
        pipeline.run(config, tmp_path / "mlflow", until="soft-targets")
    assert asked_teachers.CALLS == [], "nothing was left to do"
    assert store(tmp_path / "mlflow") == store(tmp_path / "asked") != {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pickled_model_is_refused(tmp_path: Path, logged: dict[str, str]) -> None:
    config = digits(*in_mlflow(logged["pickled"], uri=logged["uri"]))
    with pytest.raises(
        ConfigError, match=r"teachers\.given\.0: .* holds python_model.pkl, a pickle.* as code"
    ):
        pipeline.run(config, tmp_path / "run", until="data")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_not_there(tmp_path: Path, logged: dict[str, str]) -> None:
    config = digits(*in_mlflow("models:/m-0123456789abcdef0123456789abcdef", uri=logged["uri"]))
    with pytest.raises(ConfigError, match=r"teachers\.given\.0: .* cannot be fetched .* set tracking.uri"):
        with_models(config, None)


def test_a_transformer_in_mlflow_becomes_a_pretrained_teacher(tmp_path: Path) -> None:
    """The layout of `mlflow.transformers.log_model`: the tokenizer lies beside the model."""
    folder = write_classifier(tmp_path / "logged" / "model", CLASSES)
    tokenizer = tmp_path / "logged" / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).rename(tokenizer / name)
    flavors = "flavors:\n  python_function: {loader_module: mlflow.transformers}\n"
    (tmp_path / "logged" / "MLmodel").write_text(flavors + "  transformers: {model_binary: model}\n")
    config = texts_config(tmp_path, {"source": "mlflow", "given": [str(tmp_path / "logged")]})
    changed = with_models(config, None)
    assert changed.teachers.source == "pretrained" and changed.teachers.given == [str(folder)]
    assert changed.data.text.source == str(tokenizer)
    hashed = config.data.model_copy(update={"text": TextConfig()})
    with pytest.raises(ConfigError, match=r"data\.text\.tokenizer: 'hashed', but the classifiers"):
        with_models(config.model_copy(update={"data": hashed}), None)
    (tmp_path / "logged" / "MLmodel").write_text(flavors + "  transformers: {source_model_name: bert}\n")
    with pytest.raises(ConfigError, match="logged without its whole weights"):
        with_models(config, None)
    (tmp_path / "logged" / "MLmodel").write_text("flavors: {onnx: {}, python_function: {}}\n")
    with pytest.raises(ConfigError, match="is of the flavours onnx, python_function, which are not read"):
        with_models(config, None)


@pytest.mark.slow
def test_a_model_folder_of_ours_teaches_others(tmp_path: Path) -> None:
    pipeline.run(digits(*asked("linear"), "student.training.epochs=5"), tmp_path / "first")
    config = digits(*in_mlflow(str(tmp_path / "first" / "model")))
    pipeline.run(config, tmp_path / "second", until="soft-targets")
    student = json.loads((tmp_path / "first" / "report.json").read_text())["summary"]["distilled"]
    (file,) = (tmp_path / "second").glob("teachers/*/teacher-000.test.parquet")
    labels = load_split(next((tmp_path / "second").glob("data/*/manifest.json")).parent, "test").labels
    found = np.array(pq.read_table(file)["logits"].to_pylist()).argmax(1)
    assert float((found == labels).mean()) == pytest.approx(student["accuracy"]["mean"])
    with pytest.raises(ConfigError, match="neither MLmodel nor config.json"):
        with_models(digits(*in_mlflow(str(tmp_path))), None)


def test_a_bert_and_a_roberta_each_read_their_own_word_pieces(tmp_path: Path) -> None:
    """One ensemble of two tokenizers, beside a student that reads words."""
    given = [
        str(write_classifier(tmp_path / "bert", CLASSES)),
        str(write_roberta(tmp_path / "roberta", [" ".join(WORDS)])),
    ]
    config = texts_config(tmp_path, {"source": "transformers", "given": given, "on_mismatch": "warn"})
    manifests = pipeline.run(config, tmp_path / "run", until="soft-targets")
    assert [m["name"] for m in manifests["teachers"].summary["members"]] == ["teacher-000", "teacher-001"]
    texts = [text for name, _, values in raw_rows(config) if name == "test" for text in values]
    info = load_info(next((tmp_path / "run").glob("data/*/manifest.json")).parent).to_dict()
    for i, folder in enumerate(given):
        (file,) = (tmp_path / "run").glob(f"teachers/*/teacher-{i:03d}.test.parquet")
        wanted = load_classifier(folder, info, "given")(texts)
        found = torch.tensor(pq.read_table(file)["logits"].to_pylist())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    fingerprint = manifests["teachers"].fingerprint
    weights = load_file(Path(given[0]) / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, Path(given[0]) / "model.safetensors")
    changed = [s for s in pipeline.check(config, tmp_path / "run") if s.name == "teachers"]
    assert not changed[0].state.startswith("done"), fingerprint
