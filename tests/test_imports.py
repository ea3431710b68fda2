"""The arrows between the rooms: who may import whom, and what must import without Ray and MLflow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ensemble_kd"

# From the top down; a room may import from every line below its own, and from itself.
LEVELS = [
    {"jobs", "tune", "__main__"},
    {"cli", "api"},
    {"cli_models"},
    {"cli_errors", "cli_options", "cli_results", "cli_run"},
    {"cli_compare", "cli_data", "cli_doctor", "cli_inspect", "cli_recipes", "cli_screens", "cli_ui"},
    {"supervised"},
    {"ui"},
    {"compare", "contents", "doctor"},
    {"leftovers"},
    {"integrations"},
    {"guess"},
    {"serving"},
    {"predict_files"},
    {"pipeline", "predict"},
    {"pipeline_step", "run_folder"},
    {"early"},
    {"stages"},
    {"trial_runs", "export"},
    {"tuner"},
    {"inference", "workers", "streaming", "tracking", "report", "search"},
    {"local_training", "trial_steps"},
    {"member_loop", "proposals"},
    {"runtime", "train"},
    {"objectives", "models", "data", "ensemble"},
    {"pretrained", "model_size"},
    {"model_folder"},
    {"model_description"},
    {"lease", "local_group", "local_ray"},
    {"attached"},
    {"mirror", "carried"},
    {"config", "artifacts", "board"},
    {"targets"},
    {"space_problems"},
    {"space", "config_messages", "callables"},
    {"config_checks"},
    {"crash", "failures"},
    {"config_yaml"},
    {"screen"},
    {"registry", "termination", "home", "disk", "safe_files", "secret_options", "own_code", "paths"},
    {"remote"},
    {"errors"},
    {"redact", "stage_list"},
]
BESIDE = {("objectives", "models"): {"ensemble_kd.models.outputs"}}
"""What a room may import from another on its own line: the record of outputs, and nothing else."""

PURE = ["targets", "objectives", "models", "ensemble", "train", "data", "report", "integrations"]
SHARED_BY_STAGES = {
    "base",
    "calibrated",
    "chain",
    "class_order",
    "context",
    "corpora",
    "fit",
    "given_teachers",
    "judged",
    "kept",
    "layout",
    "members",
    "mlflow_models",
    "phase_training",
    "phases",
    "pretrained_files",
    "refit",
    "shards",
    "skeletons",
    "stacking",
    "start",
    "student_checks",
    "student_tasks",
    "sweep_verdict",
    "teachers_beside",
    "training_data",
    "upstream",
    "trial_book",
    "vectors",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of ours."""
    for top in ("ensemble_kd", "jobs", "tune"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(name: str, path: Path) -> frozenset[str]:
    """Modules that a file imports, anywhere in it; `from a import b` counts as a.b where that is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base])
            base = base.rstrip(".")
            for alias in node.names:
                inner = ROOT / base.replace(".", "/") / alias.name
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                found.add(f"{base}.{alias.name}" if is_module else base)
    return frozenset(found)


def room(name: str) -> str | None:
    """`ensemble_kd.data.store` is in the room `data`; None for what is not ours."""
    top, _, rest = name.partition(".")
    if top != "ensemble_kd":
        return top if top in ("jobs", "tune") else None
    return rest.split(".")[0] or None


def level(of: str) -> int:
    found = [i for i, rooms in enumerate(LEVELS) if of in rooms]
    assert found, f"the room {of!r} has no place in LEVELS yet"
    return found[0]


ALL = dict(modules())


@pytest.mark.parametrize("name", ALL)
def test_imports_point_downwards(name: str) -> None:
    here = room(name)
    if here is None:  # ensemble_kd/__init__.py: names that load at their first use
        assert {room(target) for target in imports(name, ALL[name])} <= {"api", None}
        return
    for target in imports(name, ALL[name]):
        there = room(target)
        if there is None or there == here:
            continue
        if level(there) == level(here):
            assert target in BESIDE.get((here, there), set()), f"{name} imports {target} from beside it"
        else:
            assert level(there) > level(here), f"{name} imports {target}, which is above it"


def stage_modules() -> set[str]:
    return {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}


def test_stages_share_helpers_and_never_import_each_other() -> None:
    stages = stage_modules() - SHARED_BY_STAGES
    for stage in stage_modules():
        name = f"ensemble_kd.stages.{stage}"
        others = {t.removeprefix("ensemble_kd.stages.") for t in imports(name, ALL[name])} & stages
        allowed = {"student"} if stage in ("sweep", "gap", "choose") else set()
        assert others - {stage} <= allowed, f"{name} imports the stages {others}"


@pytest.mark.parametrize("name", [name for name in ALL if room(name) in PURE])
def test_the_torch_rooms_never_mention_ray_or_mlflow(name: str) -> None:
    tops = {target.partition(".")[0] for target in imports(name, ALL[name])}
    assert not tops & {"ray", "mlflow"}


@pytest.mark.slow
def test_the_torch_rooms_import_without_ray_and_mlflow() -> None:
    rooms = [*PURE, "predict", "config", "artifacts", "errors"]
    extras = {"ensemble_kd.integrations.lightning"}  # imports what an extra installs
    wanted = sorted(name for name in ALL if room(name) in rooms and name not in extras)
    code = (
        f"import sys, importlib\n[importlib.import_module(name) for name in {wanted}]\n"
        "bad = [m for m in sys.modules if m.partition('.')[0] in ('ray', 'mlflow')]\n"
        "assert not bad, bad[:5]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_are_checked_without_torch_and_ray() -> None:
    code = (
        "import sys, ensemble_kd.cli, ensemble_kd.config\n"
        "bad = [m for m in ('torch', 'ray', 'mlflow', 'transformers', 'datasets') if m in sys.modules]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_unpickled() -> None:
    """Weights and artefacts are safetensors, Parquet and JSON."""
    for name, path in ALL.items():
        tops = {target.partition(".")[0] for target in imports(name, path)}
        assert not tops & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, name
        calls = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "np.load"}, name
