"""Do specialists help on real data? banking77 (arXiv 2003.04807), two regimes, five seeds, with controls.

    python -m benchmarks.banking77 PATH/TO/banking77 --output docs/results/banking77-specialists.json

Texts become 256 numbers each: TF-IDF of words and characters, reduced by SVD, fitted on the training texts
without their labels. Teachers are small networks on these, so that five seeds with all controls take
minutes. A seed has its own validation split, labelled rows and initialisations; the test rows are the same.
Every choice (weights of specialists, early stopping, T of a student) is made on validation rows.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.harness import fresh_processes, machine, say
from ensemble_kd.artifacts import write_atomic
from ensemble_kd.config import TrainingConfig, validate
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.ensemble.assign import assign_classes
from ensemble_kd.ensemble.choice import calibrated, choose, with_specialists
from ensemble_kd.ensemble.clusters import cluster_columns
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.ensemble.covariance import StreamingCovariance
from ensemble_kd.ensemble.store_covariance import softened
from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.blocks import as_tensor, mix
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.loop import predict, train
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.specialist import Specialty
from ensemble_kd.train.task import MemberTask, finished

CPU = torch.device("cpu")
FEATURES = 256
MEMBERS = 5
REGIMES = {"all labels": 1.0, "20% of the labels": 0.2}
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Setup:
    """What a generalist, its specialists and a student are; chosen on validation rows of other seeds."""

    hidden: int = 32
    dropout: float = 0.2
    input_dropout: float = 0.2
    epochs: int = 30
    """With all labels; with fewer of them twice as many."""
    learning_rate: float = 3e-3
    clusters: int = 20
    classes: int = 10
    output: str = "full"
    specialist_epochs: int = 10
    student_hidden: int = 8
    student_epochs: int = 40
    batch_size: int = 32


# ---------------------------------------------------------------------------------------------- data


def write_features(source: Path, target: Path) -> None:
    """train.parquet and test.parquet with `input` (FEATURES numbers) and `label`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from scipy.sparse import hstack
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    tables = {split: pq.read_table(source / f"{split}.parquet") for split in ("train", "test")}
    texts = {split: table["text"].to_pylist() for split, table in tables.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2)
    counts = hstack([part.fit_transform(texts["train"]) for part in (words, characters)]).tocsr()
    reduction = TruncatedSVD(FEATURES, random_state=0).fit(counts)
    for split, table in tables.items():
        rows = hstack([part.transform(texts[split]) for part in (words, characters)]).tocsr()
        values = reduction.transform(rows)
        values *= FEATURES**0.5 / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
        flat = pa.array(values.astype(np.float32).ravel())
        inputs = pa.FixedSizeListArray.from_arrays(flat, FEATURES)
        pq.write_table(pa.table({"input": inputs, "label": table["label"]}), target / f"{split}.parquet")


def prepared(features: Path, folder: Path, seed: int, fraction: float) -> TrainingData:
    """Splits and labels of one seed."""
    folder.mkdir(parents=True)
    data = {"path": str(features), "kind": "numeric", "label_fraction": fraction}
    config = validate({"name": "banking77", "seed": seed, "data": data})
    prepare(config, folder)
    info = load_info(folder).to_dict()
    validation, test, transfer = (load_split(folder, name) for name in ("validation", "test", "transfer"))
    return TrainingData(info, validation, test, transfer)


# -------------------------------------------------------------------------------------------- one seed


class Stored:
    """Soft targets in memory: (N, M, C)."""

    num_views = 1

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        return self.logits[rows]


class Seed:
    """Everything that is trained for one seed of one regime."""

    def __init__(self, setup: Setup, data: TrainingData, seed: int, members: Path) -> None:
        self.setup, self.data, self.seed, self.members = setup, data, seed, members
        data.generalists = members
        labels = data.transfer.labels if data.transfer is not None else np.empty(0)
        self.labelled = labels[labels >= 0]
        self.inputs = {
            "validation": as_tensor(data.validation.inputs),
            "test": as_tensor(data.test.inputs),
            "transfer": as_tensor(data.transfer.inputs) if data.transfer is not None else torch.empty(0),
        }
        self.labels = {
            "validation": as_tensor(data.validation.labels),
            "test": as_tensor(data.test.labels),
        }

    def training(self, **changes: Any) -> TrainingConfig:
        setup = self.setup
        usual = {"batch_size": setup.batch_size, "learning_rate": setup.learning_rate}
        return TrainingConfig.model_validate({**usual, "precision": "float32", **changes})

    def trained(self, **fields: Any) -> MemberTask:
        task = MemberTask(**{"inputs": {"data": f"seed {self.seed}"}, "name": fields["role"], **fields})
        if not train_member(task, self.data, self.members):
            raise RuntimeError(f"{task.role}: the loss is not finite")
        return task

    def outputs(self, task: MemberTask) -> dict[str, Tensor]:
        """Logits of a finished member on all three sets of rows."""
        manifest = finished(task, self.members)
        assert manifest is not None
        network = load_network(manifest.config, self.data.info, task.folder(self.members))
        found = {split: predict(network, inputs, CPU) for split, inputs in self.inputs.items()}
        if task.specialist:
            specialty = Specialty(**task.specialist)
            found = {split: specialty.logits(logits) for split, logits in found.items()}
        return found

    def teacher(self, number: int, hidden: int | None = None) -> MemberTask:
        setup = self.setup
        few = len(self.labelled) < len(self.inputs["transfer"])
        epochs = setup.epochs * (2 if few else 1)
        model = {
            "name": "mlp",
            "hidden": [hidden or setup.hidden],
            "dropout": setup.dropout,
            "input_dropout": setup.input_dropout,
        }
        return self.trained(
            role="teacher",
            seed=mix(self.seed, 1, number),
            model=model,
            training=self.training(epochs=epochs).model_dump(mode="json"),
            examples_per_epoch=len(self.labelled),
        )

    def specialist(self, teacher: MemberTask, number: int, classes: Sequence[int]) -> MemberTask:
        setup = self.setup
        rows = int(np.isin(self.labelled, classes).sum())
        training = self.training(epochs=setup.specialist_epochs, early_stopping=3)
        full = {
            "alpha": 1.0,
            "objective": {"name": "kl"},
            "weights": [float(i == number) for i in range(MEMBERS)],
            "rows": {"labelled": False, "bootstrap": False, "fraction": 1.0},
        }
        return self.trained(
            role="specialist",
            seed=mix(self.seed, 2, number, *classes),
            model=teacher.model,
            training=training.model_dump(mode="json"),
            examples_per_epoch=2 * rows,
            specialist={
                "classes": list(classes),
                "generalist": teacher.fingerprint,
                "natural_share": rows / len(self.labelled),
                "output": setup.output,
            },
            **(full if setup.output == "full" else {}),
        )

    def trained_on(self, teacher: MemberTask, steps: int) -> dict[str, Tensor]:
        """The control: a generalist that goes on for as many steps as a specialist gets."""
        manifest = finished(teacher, self.members)
        assert manifest is not None
        network = load_network(manifest.config, self.data.info, teacher.folder(self.members))
        epochs = self.setup.specialist_epochs
        training = self.training(epochs=epochs, early_stopping=3)
        task = MemberTask(
            name="on",
            role="teacher",
            seed=mix(teacher.seed, 3),
            model=teacher.model,
            training=training.model_dump(mode="json"),
            inputs={},
            examples_per_epoch=max(1, steps // epochs) * training.batch_size,
        )

        def evaluate(network: Any) -> dict[str, float]:
            logits = predict(network, self.inputs["validation"], CPU)
            return {"validation_loss": float(cross_entropy(logits, self.labels["validation"]).mean())}

        batches = make_batches(task, self.data, training, CPU)
        train(network, batches, DistillationLoss(), training, seed=task.seed, evaluate=evaluate)
        return {split: predict(network, self.inputs[split], CPU) for split in ("validation", "test")}

    def student(self, role: str, targets: Tensor | None = None) -> dict[str, Any]:
        """Test accuracy of a student on `targets` (N, M, C), at the T that is best on validation rows."""
        setup = self.setup
        self.data.teacher = None if targets is None else Stored(targets)
        soft = role not in ("hard", "pseudo")
        found = []
        for temperature in TEMPERATURES if soft else (1.0,):
            task = self.trained(
                role=role,
                seed=mix(self.seed, 4),
                inputs={"data": f"seed {self.seed}", "soft_targets": role},
                model={"name": "mlp", "hidden": [setup.student_hidden]},
                training=self.training(epochs=setup.student_epochs).model_dump(mode="json"),
                rows={"labelled": role == "hard", "bootstrap": False, "fraction": 1.0},
                examples_per_epoch=len(self.inputs["transfer"]),
                alpha=0.9 if soft else 0.0,
                objective={"name": "kl"} if soft else None,
                temperature=temperature,
                pseudo_labels=role == "pseudo",
            )
            logits = self.outputs(task)
            right = {
                split: float((logits[split].argmax(1) == labels).float().mean())
                for split, labels in self.labels.items()
            }
            found.append({"temperature": temperature, **right})
        best = max(found, key=lambda entry: entry["validation"])
        return {"accuracy": 100 * best["test"], "temperature": best["temperature"] if soft else None}


def measure(setup: Setup, features: str, regime: str, seed: int) -> dict[str, Any]:
    """All systems and controls of one seed; accuracies in percent of the test rows."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        data = prepared(Path(features), Path(name) / "data", seed, REGIMES[regime])
        one = Seed(setup, data, seed, Path(name) / "members")
        found = _measure(one)
    return {"regime": regime, "seed": seed, **found, "seconds": time.perf_counter() - began}


def _measure(one: Seed) -> dict[str, Any]:
    setup, labels = one.setup, one.labels
    teachers = [one.teacher(i) for i in range(MEMBERS)]
    each = [one.outputs(task) for task in teachers]
    logits = {split: torch.stack([part[split] for part in each], 1) for split in one.inputs}
    one.data.teacher = Stored(logits["transfer"])
    num_classes = logits["test"].shape[2]

    sets = find_clusters(logits["transfer"], setup, one.seed)
    generator = np.random.default_rng(one.seed)
    random = [sorted(generator.choice(num_classes, len(s), replace=False).tolist()) for s in sets]
    accuracy: dict[str, float] = {}

    def score(name: str, members: Tensor) -> np.ndarray:
        right: np.ndarray = (mean_logits(members, 1.0).argmax(1) == labels["test"]).numpy()
        accuracy[name] = 100 * float(right.mean())
        return right

    def specialised(groups: list[list[int]]) -> tuple[dict[str, Any], list[MemberTask]]:
        """Log q of all members by split, for G alone and for E, each with its own choice."""
        tasks = [[one.specialist(teachers[i], i, s) for s in groups] for i in range(MEMBERS)]
        outputs = [[one.outputs(task) for task in row] for row in tasks]
        found: dict[str, Any] = {}
        for system, chosen in (("G", [0]), ("E", list(range(MEMBERS)))):
            clusters = {
                split: [
                    (s, {place: outputs[i][k][split] for place, i in enumerate(chosen)})
                    for k, s in enumerate(groups)
                ]
                for split in one.inputs
            }
            choice = choose(logits["validation"][:, chosen], clusters["validation"], labels["validation"])
            found[system] = {
                split: with_specialists(logits[split][:, chosen], clusters[split], choice.weights)
                for split in one.inputs
            }
            found[f"{system} choice"] = choice.text
            always = with_specialists(logits["test"][:, chosen], clusters["test"], [1.0] * len(groups))
            found[f"{system} always"] = always
        return found, [task for row in tasks for task in row]

    generalist = score("G", logits["test"][:, :1])
    score("E", logits["test"])
    special, tasks = specialised([list(s) for s in sets])
    with_own = score("G + specialists", special["G"]["test"])
    score("E + specialists", special["E"]["test"])
    score("G + specialists, always on", special["G always"])
    score("E + specialists, always on", special["E always"])
    shuffled, _ = specialised(random)
    score("control: G + specialists on random clusters", shuffled["G"]["test"])
    score("control: E + specialists on random clusters", shuffled["E"]["test"])
    steps = round(np.mean([task.examples_per_epoch // setup.batch_size for task in tasks]))
    further = [one.trained_on(task, steps * setup.specialist_epochs) for task in teachers]
    score("control: G trained on", further[0]["test"][:, None])
    score("control: E trained on", torch.stack([part["test"] for part in further], 1))
    wide = one.teacher(100, setup.hidden * (setup.clusters + 1))
    score("control: one net as wide as G and its specialists", one.outputs(wide)["test"][:, None])

    students = {
        "hard": one.student("hard"),
        "pseudo": one.student("pseudo", logits["transfer"]),
        "from G": one.student("from G", logits["transfer"][:, :1]),
        "from E": one.student("from E", logits["transfer"]),
        "from G + specialists": one.student("from G + specialists", special["G"]["transfer"]),
        "from E + specialists": one.student("from E + specialists", special["E"]["transfer"]),
    }
    improved = [
        float(with_own[rows].mean() - generalist[rows].mean())
        for rows in (np.isin(labels["test"].numpy(), s) for s in sets)
    ]
    train_right = one.data.transfer is not None and _train_accuracy(one, logits["transfer"][:, 0])
    return {
        "accuracy": accuracy,
        "students": students,
        "clusters_improved": sum(change > 0 for change in improved) / len(improved),
        "clusters_not_worse": sum(change >= 0 for change in improved) / len(improved),
        "choice": {"G": special["G choice"], "E": special["E choice"]},
        "ensemble_temperature": calibrated(logits["validation"], labels["validation"])[0],
        "generalist_train_accuracy": train_right,
        "specialist_steps_per_epoch": steps,
    }


def _train_accuracy(one: Seed, logits: Tensor) -> float:
    assert one.data.transfer is not None
    labels = as_tensor(one.data.transfer.labels)
    known = labels >= 0
    return 100 * float((logits[known].argmax(1) == labels[known]).float().mean())


def find_clusters(logits: Tensor, setup: Setup, seed: int) -> list[tuple[int, ...]]:
    """As the clusters stage does it: covariance at T = 3, normalised columns, the nearest ones."""
    covariance = StreamingCovariance(logits.shape[2])
    covariance.update(softened(logits, 3.0))
    matrix = covariance.covariance()
    clustering = cluster_columns(matrix, num_clusters=setup.clusters, seed=seed)
    return assign_classes(matrix, clustering, classes_per_specialist=setup.classes)


# ---------------------------------------------------------------------------------------------- report


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over seeds of every system, and of the paired differences that matter."""
    found: dict[str, Any] = {}
    for regime in dict.fromkeys(run["regime"] for run in runs):
        rows = [run for run in runs if run["regime"] == regime]
        systems = {name: [run["accuracy"][name] for run in rows] for name in rows[0]["accuracy"]}
        students = {
            f"student {name}": [run["students"][name]["accuracy"] for run in rows]
            for name in rows[0]["students"]
        }
        values = {name: np.array(numbers) for name, numbers in {**systems, **students}.items()}
        paired = {f"{a} - {b}": values[a] - values[b] for a, b in DIFFERENCES}
        gap = values["E + specialists"].mean() - values["student hard"].mean()
        gain = values["student from E + specialists"].mean() - values["student hard"].mean()
        found[regime] = {
            "systems": {name: _mean(numbers) for name, numbers in values.items()},
            "differences": {name: _mean(numbers) for name, numbers in paired.items()},
            "gap_recovered_from_E_specialists": float(gain / gap) if gap > 0 else None,
            "clusters_improved": float(np.mean([run["clusters_improved"] for run in rows])),
            "clusters_not_worse": float(np.mean([run["clusters_not_worse"] for run in rows])),
        }
    return found


DIFFERENCES = [
    ("G + specialists", "G"),
    ("G + specialists", "control: G trained on"),
    ("G + specialists", "control: G + specialists on random clusters"),
    ("G + specialists", "control: one net as wide as G and its specialists"),
    ("E", "G"),
    ("E + specialists", "E"),
    ("E + specialists", "control: E trained on"),
    ("E + specialists", "control: E + specialists on random clusters"),
    ("student from E", "student hard"),
    ("student from E + specialists", "student from E"),
    ("student from E + specialists", "student pseudo"),
    ("student from G + specialists", "student from G"),
]


def _mean(numbers: np.ndarray) -> list[float | None]:
    error = float(numbers.std(ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else None
    return [round(float(numbers.mean()), 3), None if error is None else round(error, 3)]


def main(
    source: Annotated[Path, typer.Argument(help="Folder with train.parquet and test.parquet of banking77.")],
    output: Annotated[Path | None, typer.Option(help="Where the JSON goes; the screen without it.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    first: Annotated[int, typer.Option(help="First seed.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one seed each.")] = 2,
    change: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A field of Setup.")] = None,
) -> None:
    """Systems, controls and students on banking77, by regime: mean and standard error over seeds."""
    changes = dict(part.split("=", 1) for part in change or [])
    setup = Setup(**{name: type(getattr(Setup(), name))(value) for name, value in changes.items()})
    before, runs = machine(), []
    with tempfile.TemporaryDirectory() as features, fresh_processes(workers) as pool:
        write_features(source, Path(features))
        waiting = [
            pool.submit(measure, setup, features, regime, seed)
            for regime in REGIMES
            for seed in range(first, first + seeds)
        ]
        for done in as_completed(waiting):
            runs.append(done.result())
            say(f"{runs[-1]['regime']}, seed {runs[-1]['seed']}: {runs[-1]['seconds']:.0f} s")
    runs.sort(key=lambda run: (run["regime"], run["seed"]))
    result = {"setup": asdict(setup), "summary": summarise(runs), "runs": runs, "machine": before}
    text = json.dumps(result, indent=1) + "\n"
    if output is None:
        print(text)
    else:
        write_atomic(output, text)


if __name__ == "__main__":
    typer.run(main)
