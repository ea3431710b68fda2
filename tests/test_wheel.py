"""The distribution: a wheel made from the sdist holds all that the checkout has, and runs the demo alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import ensemble_kd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Others write into caches meanwhile.
NOT_SOURCES = [".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "shared"]
NOT_SOURCES += [".hypothesis", ".schemathesis"]
TINY = [
    "compute.executor=local",
    "teachers.num_members=2",
    "teachers.model={name: mlp, hidden: [16]}",
    "teachers.training.epochs=30",
    "student.model.hidden=[16]",
    "student.training.epochs=40",
    "student.seeds=1",
    "specialists=null",
    "sweep=null",
    "tracking.enabled=false",
]


def command(*arguments: str | Path, cwd: Path) -> str:
    """Runs it without what this process or the tests put on the path; returns its output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        list(map(str, arguments)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(tree: Path, what: str, out: Path) -> Path:
    """The sdist or wheel of a source tree, by the build backend that pyproject.toml names."""
    out.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; build_meta.build_{what}(sys.argv[1])"
    command(sys.executable, "-c", code, out, cwd=tree)
    (made,) = (path for path in out.iterdir() if path.suffix in (".gz", ".whl"))
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    return built(folder / "tree", "sdist", folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the sdist, as package indexes and installers do."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return built(tree, "wheel", folder / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Executables of an environment with our wheel, which sees this one's libraries and not our checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    command(sys.executable, *install, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Only then, or pip would find our checkout's installation there. Paths of that installation's own .pth
    # files are not followed.
    libraries = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    return folder / "bin"


@pytest.mark.slow
def test_a_wheel_from_the_sdist_has_all_modules_recipes_and_spaces(wheel: Path) -> None:
    def below(folder: str, inside: str, suffix: str) -> set[str]:
        return {
            f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
            for path in (ROOT / folder).rglob(f"*{suffix}")
        }

    wanted = below("ensemble_kd", "ensemble_kd", ".py") | {"ensemble_kd/py.typed"}
    wanted |= below("jobs/recipes", "ensemble_kd/recipes", ".yaml")
    wanted |= below("tune/spaces", "ensemble_kd/spaces", ".yaml")
    wanted |= {"ensemble_kd/ui/files/style.css", "ensemble_kd/ui/files/refresh.js"}
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    assert {name for name in found if not re.match(r"ensemble_kd-[^/]+\.dist-info/", name)} == wanted
    assert wheel.name.startswith(f"ensemble_kd-{ensemble_kd.__version__}-py3")


@pytest.mark.slow
def test_the_sdist_has_what_tests_and_documents_the_package(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "Makefile", "docs/recipes.md", "tests/conftest.py", "jobs/pipeline.py"} <= names
    assert {name for name in names if name.startswith((".", "runs/"))} == {".dockerignore"}


@pytest.mark.slow
def test_from_an_empty_folder_the_wheel_lists_checks_and_runs_the_demo(
    installed: Path, tmp_path: Path
) -> None:
    where = command(
        installed / "python", "-c", "import ensemble_kd; print(ensemble_kd.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(installed.parent)
    ours = installed / "ensemble-kd"
    assert command(ours, "--version", cwd=tmp_path).strip() == ensemble_kd.__version__
    listed = command(ours, "recipes", cwd=tmp_path)
    assert all(path.stem in listed for path in (ROOT / "jobs/recipes").glob("*.yaml"))
    assert "temperature-alpha" in command(ours, "spaces", cwd=tmp_path)
    assert "to do" in command(ours, "check", "digits", "--set", "sweep={space: width}", cwd=tmp_path)
    command(ours, "run", "digits", *(f"--set={line}" for line in TINY), cwd=tmp_path)
    report = json.loads((tmp_path / "runs/digits/report.json").read_text(encoding="utf-8"))
    assert report["summary"]["distilled"]["accuracy"]["mean"] > 0.3  # of ten classes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ensemble_kd").rglob("__init__.py")}
    assert listed - {"ensemble_kd.recipes", "ensemble_kd.spaces"} == {".".join(f.parts) for f in folders}


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == ensemble_kd.__version__
    assert cited["cff-version"] == "1.2.0" and cited["license"] == PROJECT["project"]["license"]
