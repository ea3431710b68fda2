"""Soft targets in other people's loops: step by step the losses of our own loop on the same rows."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import AugmentConfig, Config, TrainingConfig, load_config
from ensemble_kd.data.records import load_split
from ensemble_kd.data.store import StoreLayout, load_columns
from ensemble_kd.errors import ArtifactError, ConfigError, InputError
from ensemble_kd.integrations import SoftTargets
from ensemble_kd.integrations.place import find
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.logits import KL
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.batches import Batches, Targets
from ensemble_kd.train.blocks import TensorSource, as_tensor
from ensemble_kd.train.loop import make_optimizer, train
from ensemble_kd.train.stored import StoredLogits

pytestmark = pytest.mark.slow

STEPS, SIZE = 6, 16
TEMPERATURE, ALPHA = 3.0, 0.7
SGD = TrainingConfig(
    epochs=1,
    batch_size=SIZE,
    optimizer="sgd",
    learning_rate=0.05,
    schedule="constant",
    warmup_fraction=0,
    precision="float32",  # theirs is; ours would be bfloat16 where the processor computes in it
)
TINY = [
    "compute.executor=local",
    "tracking.enabled=false",
    "teachers.num_members=2",
    "teachers.training={epochs: 3, batch_size: 16, precision: float32}",
    "student.training={epochs: 1, batch_size: 16}",
    "student.seeds=1",
    "student.temperature=3",
    "student.alpha=0.7",
    "data.shard_rows=200",
]
DIGITS = [
    "specialists=null",
    "sweep=null",
    "teachers.model={name: mlp, hidden: [16]}",
    "student.model.hidden=[16]",
    "soft_targets.views=3",
]
WORDS = ["red", "green", "blue", "cold", "warm", "wet"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a student, whose settings say how our own loop averages the members."""
    run = tmp_path_factory.mktemp("digits")
    pipeline.run(load_config("digits", [*TINY, *DIGITS]), run, until="student")
    return run


def texts() -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(260):
        label = i % 3
        words = [*generator.choice(WORDS, 3), WORDS[label]]
        rows.append({"id": f"t{i}", "text": " ".join(words), "kind": f"k{label}"})
    return rows


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    lines = "\n".join(json.dumps(row) for row in texts())
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    (folder / "test.jsonl").write_text("\n".join(lines.splitlines()[:30]), encoding="utf-8")
    settings = {
        "name": "words",
        "data": {
            "path": str(folder),
            "kind": "text",
            "columns": {"input": "text", "label": "kind", "id": "id"},
        },
        "teachers": {"model": {"name": "bag", "embedding": 8}},
        "student": {"model": {"name": "bag", "embedding": 4}},
    }
    pipeline.run(configured(folder, settings, TINY), folder / "run", until="soft-targets")
    return folder / "run"


def configured(folder: Path, settings: dict[str, Any], overrides: list[str]) -> Config:
    file = folder / "settings.yaml"
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML too
    return load_config(str(file), overrides)


# ------------------------------------------------------------------------------------------- our own loop


class Wrapped(nn.Module):
    """Gives our loop the outputs that it takes."""

    def __init__(self, network: nn.Module, masked: bool = False) -> None:
        super().__init__()
        self.network, self.masked = network, masked

    def forward(self, inputs: Tensor, **wants: Any) -> Outputs:
        if self.masked:
            return Outputs(self.network(input_ids=inputs, attention_mask=(inputs != 0).long()).logits)
        return Outputs(self.network(inputs))


class Watched:
    """A loss that notes rows and values of each step."""

    def __init__(self, loss: DistillationLoss) -> None:
        self.loss, self.rows, self.values = loss, list[Tensor](), list[float]()

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Any) -> Tensor:
        value = self.loss(student, teacher, batch)
        self.rows.append(batch.rows)
        self.values.append(float(value.detach()))
        return value


def ours(run: Path, network: nn.Module, inputs: Tensor, calibration: list[float] | None) -> Watched:
    """Train a copy of the network by our loop; everything is read without the integrations."""
    store = next((run / "soft_targets").glob("*/manifest.json")).parent
    manifest = read_manifest(store)
    assert manifest is not None
    layout = StoreLayout(**manifest.summary["layout"])
    columns = load_columns(store, sorted(manifest.files), layout, manifest.summary["rows"])
    labels = as_tensor(load_split(run / "data" / manifest.inputs["data"], "transfer").labels)
    teacher = StoredLogits(columns, layout)
    source = TensorSource(inputs, labels, torch.arange(len(labels)), 5, teacher, num_views=1)
    targets = Targets(TEMPERATURE, "arithmetic", soft=True, calibration=calibration)
    batches = Batches(source, SIZE, STEPS, targets, AugmentConfig())
    watched = Watched(DistillationLoss(KL(temperature=TEMPERATURE), ALPHA))
    train(Wrapped(network, inputs.dtype == torch.int64), batches, watched, SGD, seed=0)  # type: ignore[arg-type]
    assert len(watched.rows) == STEPS
    return watched


def calibration_of_student(run: Path) -> list[float] | None:
    """From the settings of the distilled student that the run trained."""
    folders = [path.parent for path in (run / "student/members").glob("*/manifest.json")]
    (config,) = (m.config for f in folders if (m := read_manifest(f)) is not None and m.config["alpha"] > 0)
    assert (config["temperature"], config["alpha"], config.get("weights")) == (3.0, 0.7, None)
    found: list[float] | None = config.get("calibration")
    return found


@dataclass
class Case:
    network: nn.Module
    targets: SoftTargets
    inputs: Tensor
    expected: Watched

    def loader(self) -> DataLoader[Any]:
        """The rows of our loop's steps in its order, as anybody's data set."""
        rows = torch.cat(self.expected.rows)
        labels = self.targets.labels[rows]
        return DataLoader(TensorDataset(self.inputs[rows], labels, rows), SIZE)


@pytest.fixture
def case(digits: Path) -> Case:
    targets = SoftTargets(digits)
    inputs = targets.inputs(torch.arange(len(targets))).float() / 255
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    calibration = calibration_of_student(digits)
    assert calibration is not None and calibration != [1.0, 1.0]
    return Case(network, targets, inputs, ours(digits, copy.deepcopy(network), inputs, calibration))


# --------------------------------------------------------------------------------------------- their loops


def test_a_plain_loop(case: Case) -> None:
    loss, optimizer = case.targets.loss(TEMPERATURE, ALPHA), make_optimizer(case.network, SGD)
    values = []
    for inputs, labels, rows in case.loader():
        optimizer.zero_grad()
        value = loss(case.network(inputs), labels, rows)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    np.testing.assert_allclose(values, case.expected.values, rtol=1e-5)
    assert len(set(values)) == STEPS


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # Lightning's own
def test_lightning(case: Case, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="pip install 'ensemble-kd[lightning]'")
    from ensemble_kd.integrations.lightning import DistillationModule

    values: list[float] = []

    class Student(DistillationModule):
        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = super().training_step(batch, index)
            values.append(float(loss.detach()))
            return loss

    student = Student(case.network, case.targets.loss(TEMPERATURE, ALPHA))
    student.configure_optimizers = lambda: make_optimizer(student.network, SGD)  # type: ignore[method-assign]
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    held_out = DataLoader(TensorDataset(case.inputs[:50], case.targets.labels[:50]), 25)
    trainer.fit(student, case.loader(), held_out)
    np.testing.assert_allclose(values, case.expected.values, rtol=1e-5)
    logged = trainer.callback_metrics
    assert 0 <= logged["validation_accuracy"] <= 1 and logged["validation_loss"] > 0


def tiny_bert(size: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = 3
    return BertForSequenceClassification(config)


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[dict[str, Any]]:
    yield {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": SIZE,
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@pytest.mark.parametrize("accumulated", [1, 2])
def test_transformers_trainer(words: Path, arguments: dict[str, Any], accumulated: int) -> None:
    pytest.importorskip("accelerate", reason="pip install 'ensemble-kd[trainer]'")
    from datasets import Dataset
    from transformers import TrainingArguments

    from ensemble_kd.integrations.trainer import DistillationTrainer

    targets = SoftTargets(words)
    number = {word: i + 1 for i, word in enumerate(WORDS)}
    mine = Dataset.from_list(
        [
            {
                "id": row["id"],
                "input_ids": [number[word] for word in row["text"].split()],
                "attention_mask": [1] * 4,
                "labels": targets.class_names.index(row["kind"]),
            }
            for row in texts()
        ]
    )
    positions, rows = targets.matched(mine["id"])
    assert len(rows) == len(targets) < len(mine)  # the others were held out
    train_rows = mine.select(positions).add_column("row", rows)
    network = tiny_bert(len(WORDS) + 1)
    in_order = torch.tensor(train_rows["input_ids"])[torch.from_numpy(np.argsort(rows))]
    expected = ours(words, copy.deepcopy(network), in_order, find(words).calibration)

    class Student(DistillationTrainer):
        values: list[float] = []

        def compute_loss(self, model: nn.Module, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(model, *given, **named)
            if model.training:
                self.values.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    at = {int(row): i for i, row in enumerate(rows)}
    order = [at[int(row)] for row in torch.cat(expected.rows)]
    arguments["per_device_train_batch_size"] = SIZE // accumulated
    optimizer = make_optimizer(network, SGD)
    trainer = Student(
        network,
        TrainingArguments(
            **arguments,
            train_sampling_strategy="sequential",
            gradient_accumulation_steps=accumulated,
            logging_steps=1,
            label_names=["labels"],
        ),
        train_dataset=train_rows.select(order),
        eval_dataset=mine.select(range(20)),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        soft_targets=targets,
        temperature=TEMPERATURE,
        alpha=ALPHA,
    )
    trainer.train()
    values = np.reshape(Student.values, (STEPS, accumulated)).mean(1)
    np.testing.assert_allclose(values, expected.values, rtol=1e-5)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(logged, expected.values, rtol=1e-4)
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        held = mine.select(range(20)).with_format("torch")
        logits = network.cpu()(
            input_ids=held["input_ids"][:], attention_mask=held["attention_mask"][:]
        ).logits
    assert found == pytest.approx(float(nn.functional.cross_entropy(logits, held["labels"][:])), rel=1e-4)
    trainer.train_dataset = train_rows.remove_columns("row")
    with pytest.raises(InputError, match="train_dataset: no column 'row'; add it"):
        trainer.train()


def examples() -> list[str]:
    text = (Path(__file__).parents[1] / "docs/integrations.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("which", ["torch", "trainer", "lightning"])
def test_the_examples_of_the_page_run(
    which: str, digits: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/digits").symlink_to(digits)
    (tmp_path / "runs/tickets").symlink_to(words)
    monkeypatch.chdir(tmp_path)
    ids, plain, trainer, lightning = examples()
    names: dict[str, Any] = {}
    if which == "trainer":
        pytest.importorskip("accelerate", reason="pip install 'ensemble-kd[trainer]'")
        from datasets import Dataset
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(WordLevel({"[PAD]": 0} | {word: i + 1 for i, word in enumerate(WORDS)}))
        tokenizer.pre_tokenizer = Whitespace()
        names["tokenizer"] = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
        names["model"] = tiny_bert(len(WORDS) + 1)
        names["dataset"] = Dataset.from_list(texts()).rename_column("kind", "label")
        trainer = trainer.replace("learning_rate=5e-5", "learning_rate=5e-3, report_to=[], use_cpu=True")
        exec(trainer, names)
        assert names["trainer"].state.global_step == 3 * -(-len(names["targets"]) // 32)
        return
    exec(plain, names)
    found: dict[str, Any] = {}
    exec(ids, {**names, "ids": names["targets"].ids[5:9]}, found)
    assert found["rows"].tolist() == [5, 6, 7, 8]
    if which == "lightning":
        pytest.importorskip("lightning", reason="pip install 'ensemble-kd[lightning]'")
        exec(lightning, names)
    agree = names["network"](names["inputs"]).argmax(1) == names["targets"].logits(names["rows"]).argmax(1)
    assert agree.float().mean() > 0.3  # of ten classes; the teachers themselves have learned little


# ----------------------------------------------------------------------------------------- the store itself


def test_views_are_those_that_the_teachers_saw(digits: Path) -> None:
    targets = SoftTargets(digits)
    rows = torch.tensor([3, 7, 11])
    assert torch.equal(targets.inputs(rows), targets.inputs(rows, torch.zeros_like(rows)))
    assert not torch.equal(targets.inputs(rows), targets.inputs(rows, torch.tensor([1, 2, 1])))
    first, second = (targets.logits(rows, 2.0, torch.full_like(rows, v)) for v in (0, 1))
    assert not torch.allclose(first, second)
    teacher = next((digits / "teachers/members").glob("*/manifest.json")).parent
    manifest = read_manifest(teacher)
    assert manifest is not None
    from ensemble_kd.train.initial import load_network

    info = json.loads(next((digits / "data").glob("*/info.json")).read_text(encoding="utf-8"))
    views = torch.tensor([1, 2, 0])
    network = load_network(manifest.config, info, teacher).eval()
    with torch.no_grad():
        said = network(targets.inputs(rows, views)).logits
    # Logits are stored without their largest, in float16; which member this is does not matter.
    stored = targets.member_logits(rows, views).float().log_softmax(-1)
    distance = (stored - said.log_softmax(-1)[:, None]).abs().amax((0, 2))
    assert distance.min() < 0.005 < 0.05 < distance.max()


def test_mean_and_temperature_against_float64(digits: Path) -> None:
    targets = SoftTargets(digits)
    rows = torch.arange(20)
    calibration = calibration_of_student(digits)
    assert calibration is not None
    members = targets.member_logits(rows).double() / torch.tensor(calibration)[:, None] / 2.5
    expected = members.softmax(-1).mean(1)
    np.testing.assert_allclose((targets.logits(rows, 2.5) / 2.5).softmax(1), expected, atol=1e-6)


def test_missing_labels_are_the_soft_part_and_pseudo_labels(digits: Path) -> None:
    targets = SoftTargets(digits)
    unlabelled = torch.nonzero(targets.labels < 0)[:8, 0]
    assert len(unlabelled) == 8
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    soft = targets.loss(2.0, 1.0)(logits, None, unlabelled)
    assert float(targets.loss(2.0, 0.5)(logits, None, unlabelled)) == pytest.approx(float(soft) / 2)
    as_transformers = torch.full((8,), -100)
    assert targets.loss(2.0, 1.0)(logits, as_transformers, unlabelled) == soft
    guesses = targets.logits(unlabelled).argmax(1)
    value = targets.loss(2.0, 0.0, pseudo=0.5)(logits, None, unlabelled)
    assert float(value) == pytest.approx(float(nn.functional.cross_entropy(logits, guesses)) / 2)


def test_values_are_in_units_of_their_deviation(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(200, 3)).astype(np.float32)
    lines = ["a,b,c,price", *(f"{a},{b},{c},{100 + 30 * a}" for a, b, c in x)]
    (tmp_path / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "test.csv").write_text("\n".join(lines[:40]), encoding="utf-8")
    settings: dict[str, Any] = {
        "name": "prices",
        "data": {"path": str(tmp_path), "kind": "numeric", "target": "value"},
        "teachers": {"model": {"name": "mlp", "hidden": [8]}},
        "student": {"model": {"name": "mlp", "hidden": [4]}},
    }
    settings["data"]["columns"] = {"input": ["a", "b", "c"], "label": "price"}
    own = [line for line in TINY if "temperature" not in line]
    pipeline.run(configured(tmp_path, settings, own), tmp_path / "run", until="soft-targets")
    targets = SoftTargets(tmp_path / "run")
    rows, std = torch.arange(9), float(targets.labels.double().std(correction=0))
    values = torch.full((9, 1), 90.0)
    mean = targets.member_logits(rows).mean(1)
    expected = (
        0.7 * ((values - mean) / std).square() + 0.3 * ((values - targets.labels[rows, None]) / std) ** 2
    )
    found = targets.loss(alpha=0.7)(values, targets.labels[rows], rows)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-5)
    with pytest.raises(ConfigError, match="pseudo: is for classes"):
        targets.loss(pseudo=0.5)
    with pytest.raises(ConfigError, match="'kl' is for classes"):
        targets.loss(objective="kl")


# -------------------------------------------------------------------------------------------- what is wrong


def test_other_rows_and_other_classes_are_told(digits: Path) -> None:
    targets = SoftTargets(digits)
    loss = targets.loss()
    rows = torch.nonzero(targets.labels >= 0)[:4, 0]
    logits = torch.zeros(4, 10)
    labels = targets.labels[rows]
    loss(logits, labels, rows)
    with pytest.raises(InputError, match=r"labels: row .* has .*, the run has .*'0', '1'.* from 0\. Rows or"):
        loss(logits, 9 - labels, rows)
    with pytest.raises(InputError, match=r"logits: \(B, 10\) expected.*got \(4, 12\)"):
        loss(torch.zeros(4, 12), labels, rows)
    with pytest.raises(InputError, match=r"rows: -1, but the transfer set has 0 to"):
        targets.logits(torch.tensor([0, -1]))
    with pytest.raises(InputError, match=r"views: 3, but the store has 0 to 2"):
        targets.logits(torch.tensor([0]), views=torch.tensor([3]))
    with pytest.raises(InputError, match=r"ids: 1 of 2 are not in the transfer set .*\('no'\).*matched"):
        targets.rows([targets.ids[0].item(), "no"])


def test_settings_of_the_loss_are_told_at_once(digits: Path) -> None:
    targets = SoftTargets(digits)
    with pytest.raises(ConfigError) as error:
        targets.loss(0.0, 1.5, pseudo=2.0)
    assert [line.split(":")[0] for line in error.value.problems] == ["alpha", "pseudo", "temperature"]
    with pytest.raises(ConfigError, match="objective: 'hidden_mse' needs the teacher's hidden"):
        targets.loss(objective="hidden_mse")
    targets.layout = replace(targets.layout, top_k=3)
    with pytest.raises(ConfigError, match="'mse' needs every logit, the store has the largest 3"):
        targets.loss(objective="mse")


def test_what_is_no_store(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished soft targets there; give a run folder"):
        SoftTargets(tmp_path)
    store = find(digits).folder
    assert SoftTargets(store).ids.tolist() == SoftTargets(digits).ids.tolist()
    import shutil

    shutil.copytree(digits, tmp_path / "run")
    shutil.copytree(store, tmp_path / "run/soft_targets/another")
    with pytest.raises(InputError, match="has 2 stores of soft targets, and no report that says which"):
        SoftTargets(tmp_path / "run")
    report = {"lineage": {"soft_targets": store.name}}
    (tmp_path / "run/report.json").write_text(json.dumps(report), encoding="utf-8")
    assert SoftTargets(tmp_path / "run").folder.name == store.name
    part = next((tmp_path / "run/soft_targets" / store.name).glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="the manifest says"):
        SoftTargets(tmp_path / "run")
