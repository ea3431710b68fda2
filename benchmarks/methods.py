"""Every way to learn with one student, one set of teachers, the same steps and views; hard labels and KD.

    python -m benchmarks.methods PATH/TO/cifar10_small --output docs/results/methods
    python -m benchmarks.methods_page                  # the table and the picture of docs/methods.md from it

Three residual teachers and the soft targets are made once, in one run folder; each method is a configuration
of that run, trained by the pipeline in a process of its own, whose peak memory is the method's. A method's
result is a file NAME.json, written once all its seeds are done: a comparison that was stopped goes on with
the next method, and in the middle of this one at its last epoch. `benchmarks.methods_page` has what
follows from these files: differences to KD and to hard labels on the same test rows, with intervals.

Images are halved to 16 x 16 pixels, which makes a step four times cheaper, so that all methods and seeds take
an hour or so of one core (`--pixels 32` leaves them). What learns from maps or relations does so beside KD
(T = 4, alpha = 0.9); what learns together does so beside labels alone, as in its paper. Weights of losses are
the papers', and nothing was tuned. First phases (FitNets, FSP), further generations and assistants come on
top of the student's own steps: the seconds count them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.harness import fresh_processes, machine, say
from benchmarks.specialists import _peak
from ensemble_kd import __version__, pipeline
from ensemble_kd.artifacts import read_manifest, write_atomic, write_json
from ensemble_kd.config import Config, validate
from ensemble_kd.data.records import load_labels
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import TrainingError
from ensemble_kd.stages.context import Console
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.task import MemberTask

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
TEACHERS = "teachers"
"""Name of the result that has the ensemble."""
RUN, FOUND = Path("runs/methods"), Path("runs/methods-found")
COSTS = "costs"
"""Folder of the run: processor seconds of each member's epochs."""

Report = Callable[[dict[str, float]], None]
"""Takes an epoch's entry of the history."""


@dataclass(frozen=True)
class Method:
    """One way to learn: what it adds to the student of KD."""

    title: str
    paper: str
    student: Callable[[Size], dict[str, Any]] = field(default=lambda size: {})
    """Fields of the `student` block."""


@dataclass(frozen=True)
class Size:
    """How large the comparison is."""

    pixels: int = 16
    teachers: int = 3
    teacher_width: int = 16
    teacher_epochs: int = 20
    width: int = 8
    epochs: int = 15
    phase_epochs: int = 5
    batch_size: int = 128
    seeds: int = 3
    source: str | None = None
    """`digits` for the embedded images."""


QUICK = Size(8, 2, 8, 1, 4, 1, 1, 64, 2, "digits")


def term(name: str, **fields: Any) -> Callable[[Size], dict[str, Any]]:
    return lambda size: {"terms": [{"name": name, **fields}]}


def phase(name: str, **fields: Any) -> Callable[[Size], dict[str, Any]]:
    def student(size: Size) -> dict[str, Any]:
        training = {"epochs": size.phase_epochs, "batch_size": size.batch_size, "learning_rate": 1e-3}
        return {"phases": [{"name": name, "terms": [{"name": name, **fields}], "training": training}]}

    return student


def rkd(size: Size) -> dict[str, Any]:
    return {"terms": [{"name": "rkd_distance", "weight": 25}, {"name": "rkd_angle", "weight": 50}]}


def together(**block: Any) -> Callable[[Size], dict[str, Any]]:
    return lambda size: {"alpha": 0, **block}


def assistant(size: Size) -> dict[str, Any]:
    return {"assistants": [{"name": "resnet", "width": 3 * size.width // 2, "blocks": 1}]}


LATE = {"start": 0, "end": 1, "shape": "step", "begin": 0.2}
METHODS = {
    "hard": Method("Hard labels", "", together()),
    "kd": Method("KD: soft targets", "1503.02531"),
    "hint": Method("FitNets", "1412.6550", phase("hint", layers="middle", reduction="mean")),
    "attention_transfer": Method("Attention transfer", "1612.03928", term("attention_transfer", weight=500)),
    "fsp": Method("FSP", "Yim et al., CVPR 2017", phase("fsp")),
    "rkd": Method("RKD, distances and angles", "1904.05068", rkd),
    "darkrank": Method("DarkRank, hard", "1707.01220", term("darkrank_hard")),
    "similarity_preserving": Method(
        "Similarity-preserving", "1907.09682", term("similarity_preserving", weight=3000)
    ),
    "correlation": Method("Correlation congruence", "1904.01802", term("correlation_congruence")),
    "crd": Method("CRD, negatives of the batch", "after 1910.10699", term("crd", weight=0.8)),
    "mutual": Method("Mutual learning, two peers", "1706.00384", together(peers={"count": 2})),
    "one": Method("ONE, three branches", "1806.04606", together(branches={"count": 3, "section": 3})),
    "born_again": Method("Born-again, three generations", "1805.04770", lambda size: {"generations": 3}),
    "assistant": Method("Teacher assistant", "1902.03393", assistant),
    "codistillation": Method(
        "Codistillation, copies of 20 steps",
        "1804.03235",
        together(peers={"count": 2, "refresh_steps": 20, "weight": LATE}),
    ),
}
"""In the order of the table; the first two are what the others are held against."""


def configuration(size: Size, data: Path | None, student: dict[str, Any]) -> Config:
    """The run: data, teachers and store are the same for every method."""

    def training(epochs: int) -> dict[str, Any]:
        rate = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4, "warmup_fraction": 0.2}
        return {"epochs": epochs, "batch_size": size.batch_size, **rate}

    source: dict[str, Any] = {"kind": "image", "source": "digits", "test_fraction": 0.5}
    if size.source is None:
        source = {
            "kind": "image",
            "path": str(data),
            "columns": {"input": "image", "label": "label"},
            "class_names": "labels.txt",
            "image": {"shape": [size.pixels, size.pixels, 3]},
            "augment": {"shift": 1, "horizontal_flip": True},
        }
    own = {
        "model": {"name": "resnet", "width": size.width, "blocks": 1},
        "training": training(size.epochs),
        "temperature": 4,
        "alpha": 0.9,
        "seeds": size.seeds,
    }
    return validate(
        {
            "name": "methods",
            "data": source,
            "teachers": {
                "num_members": size.teachers,
                "model": {"name": "resnet", "width": size.teacher_width, "blocks": 1},
                "training": training(size.teacher_epochs),
            },
            "soft_targets": {"keep": ["features"]},
            "student": own | student,
            "tracking": {"enabled": False},
            "compute": {"executor": "local"},
        }
    )


# ---------------------------------------------------------------------------------------------- measuring


def halved(source: Path, target: Path, pixels: int) -> Path:
    """A folder of the same images, each pixel the mean of a square; made once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if pixels == 32:
        return source
    if (target / "labels.txt").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        table = pq.read_table(source / f"{split}.parquet")
        images = np.stack([np.frombuffer(image, np.uint8) for image in table["image"].to_pylist()])
        step = 32 // pixels
        squares = images.reshape(-1, pixels, step, pixels, step, 3).astype(np.float32)
        small = squares.mean((2, 4)).round().astype(np.uint8)
        column = pa.array([image.tobytes() for image in small], pa.binary(small[0].nbytes))
        table = table.set_column(table.schema.get_field_index("image"), "image", column)
        pq.write_table(table, target / f"{split}.parquet")
    write_atomic(target / "labels.txt", (source / "labels.txt").read_text(encoding="utf-8"))
    return target


@contextmanager
def counted(folder: Path) -> Iterator[list[str]]:
    """In here each epoch's processor seconds go to FOLDER/FINGERPRINT.json; yields the names of members at
    work."""
    import ensemble_kd.member_loop as member_loop

    original, names = member_loop.train_member, []
    folder.mkdir(parents=True, exist_ok=True)

    def train(
        task: MemberTask, *args: Any, on_epoch: Callable[[dict[str, float]], None], **more: Any
    ) -> bool:
        began, path = time.process_time(), folder / f"{task.fingerprint}.json"
        names.append(task.name)
        record: dict[str, Any] = {"name": task.name, "role": task.role, "epochs": {}}
        record["before"] = member_loop.members_before(task)
        if path.is_file():  # stopped before
            record = json.loads(path.read_text(encoding="utf-8"))

        def after(entry: dict[str, float]) -> None:
            nonlocal began
            record["epochs"][str(int(entry["epoch"]))] = time.process_time() - began
            write_json(path, record)
            on_epoch(entry)
            began = time.process_time()

        return original(task, *args, on_epoch=after, **more)

    member_loop.train_member = train  # type: ignore[assignment]
    try:
        yield names
    finally:
        member_loop.train_member = original


def run_to(config: Config, run: Path, until: str) -> dict[str, Any]:
    """The pipeline in this process: fingerprints of what it made, the peak of its memory, what it trained."""
    with counted(run / COSTS) as trained:
        done = pipeline.run(config, run, until=until, console=Console(say, say))
    fingerprints = {name: manifest.fingerprint for name, manifest in done.items()}
    return {"fingerprints": fingerprints, "peak_mb": _peak() / 1e6, "trained": trained}


def seconds_of(fingerprint: str, costs: Path) -> float | None:
    """Processor seconds of training a member and all that it starts or learns from, its teachers left out."""
    path = costs / f"{fingerprint}.json"
    if not path.is_file():
        return None  # trained by a run that did not count
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["role"] == "teacher":
        return 0.0
    before = [seconds_of(each, costs) for each in record["before"]]
    return sum(record["epochs"].values()) + sum(each for each in before if each is not None)


def judged(logits: torch.Tensor, labels: np.ndarray) -> dict[str, Any]:
    """Of test logits (N, C): which rows are right, as bits in hexadecimal, and the mean of -log p(label)."""
    right = logits.argmax(1).numpy() == labels
    nll = torch.nn.functional.cross_entropy(logits.double(), torch.as_tensor(labels).long())
    return {"right": np.packbits(right).tobytes().hex(), "nll": round(float(nll), 5)}


def students(run: Path, found: dict[str, Any], labels: np.ndarray) -> list[dict[str, Any]]:
    """By seed: how the student that would be shipped does on the test rows, and what it took."""
    manifest = read_manifest(run / "student" / found["fingerprints"]["student"])
    assert manifest is not None
    entries = []
    for member in manifest.summary["members"]:
        if member["role"] != "distilled":
            continue
        folder = run / "student" / "members" / member["fingerprint"]
        seconds = seconds_of(member["fingerprint"], run / COSTS)
        entry = {"name": member["name"], "parameters": member["parameters"], "cpu_seconds": seconds}
        entries.append(entry | judged(load_logits(folder, "test"), labels))
    return entries


def ensemble(run: Path, found: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    """The teachers, each and together."""
    manifest = read_manifest(run / "teachers" / found["fingerprints"]["teachers"])
    assert manifest is not None
    members, costs = manifest.summary["members"], run / COSTS
    folders = [run / "teachers" / "members" / member["fingerprint"] for member in members]
    logits = torch.stack([load_logits(folder, "test") for folder in folders], 1)  # (N, M, C)
    each = []
    for i, member in enumerate(members):
        record = json.loads((costs / f"{member['fingerprint']}.json").read_text(encoding="utf-8"))
        entry = {"name": member["name"], "parameters": member["parameters"]}
        entry["cpu_seconds"] = sum(record["epochs"].values())
        each.append(entry | judged(logits[:, i], labels))
    return {"seeds": each, "ensemble": judged(mean_logits(logits, 1.0, "arithmetic"), labels)}


class Comparison:
    """All methods in one run folder, each with its result in a file."""

    def __init__(self, size: Size, source: Path | None, run: Path, output: Path, apart: bool) -> None:
        self.size, self.run, self.output, self.apart = size, run.absolute(), output, apart
        self.data = None
        if size.source is None:
            assert source is not None
            self.data = halved(source.absolute(), self.run.parent / f"images-{size.pixels}", size.pixels)
        self.settings = configuration(size, self.data, {}).model_dump(mode="json")
        self.settings["data"].pop("path")  # of this machine

    def __call__(self, name: str) -> dict[str, Any]:
        """The result of a method, or of the teachers; read where it is there already."""
        path = self.output / f"{name}.json"
        if path.is_file():
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if result["settings"] != self.settings:
                raise typer.BadParameter(f"{path} is of other settings; choose another --output")
            say(f"{name}: kept")
            return result
        own: dict[str, Any] = {} if name == TEACHERS else METHODS[name].student(self.size)
        config = configuration(self.size, self.data, own)
        before = machine()
        found = self._trained(config, "soft-targets" if name == TEACHERS else "student")
        labels = load_labels(self.run / "data" / found["fingerprints"]["data"], "test")
        described = {"title": "Teachers", "paper": ""}
        if name == TEACHERS:
            outcome = ensemble(self.run, found, labels)
        else:
            outcome = {"seeds": students(self.run, found, labels)}
            described = {"title": METHODS[name].title, "paper": METHODS[name].paper}
        result = {"method": name, **described, "student": own, **outcome, "test_rows": len(labels)}
        # Of a process that found everything trained, the peak says nothing.
        result["peak_mb"] = round(found["peak_mb"]) if found["trained"] and self.apart else None
        result |= {"version": __version__, "machine": before, "settings": self.settings}
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(result, indent=1) + "\n")
        say(f"{name}: {accuracy(result):.2f}%")
        return result

    def _trained(self, config: Config, until: str) -> dict[str, Any]:
        if not self.apart:
            return run_to(config, self.run, until)
        with fresh_processes(1) as pool:
            return pool.submit(run_to, config, self.run, until).result()


def right(entry: dict[str, Any], rows: int) -> np.ndarray:
    """(rows,) bool: which test rows a student has right."""
    bits = np.frombuffer(bytes.fromhex(entry["right"]), np.uint8)
    return np.unpackbits(bits, count=rows).astype(bool)


def accuracy(result: dict[str, Any]) -> float:
    """Mean over seeds, in percent."""
    rows = result["test_rows"]
    return 100 * float(np.mean([right(entry, rows).mean() for entry in result["seeds"]]))


@app.command()
def main(
    source: Annotated[Path | None, typer.Argument(help="Folder of cifar10_small; none with --quick.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for one JSON file a method.")] = Path(
        "runs/methods-found"
    ),
    run: Annotated[Path, typer.Option("--run-dir", help="Folder of the run.")] = Path("runs/methods"),
    methods: Annotated[str | None, typer.Option(help="Names, with commas between; all by default.")] = None,
    pixels: Annotated[int, typer.Option(help="Height and width of the images: 8, 16 or 32.")] = 16,
    epochs: Annotated[int, typer.Option(min=1, help="Of a student.")] = 15,
    seeds: Annotated[int, typer.Option(min=2)] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Embedded digits, one epoch, two seeds: to see that it works.")
    ] = False,
) -> None:
    """Train teachers, hard labels, KD and the methods; what has a result already is left as it is."""
    names = list(METHODS) if methods is None else methods.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise typer.BadParameter(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    if source is None and not quick:
        raise typer.BadParameter("name the folder of cifar10_small, or give --quick")
    if pixels not in (8, 16, 32):
        raise typer.BadParameter(f"--pixels {pixels}: 8, 16 or 32")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    size = QUICK if quick else Size(pixels=pixels, epochs=epochs, seeds=seeds)
    compare = Comparison(size, source, run, output, apart=not quick)
    lost = []
    for name in [TEACHERS, *names]:
        try:
            compare(name)
        except TrainingError as error:  # of this method: the others go on
            say(f"{name}: {error}")
            lost.append(name)
    if lost:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
