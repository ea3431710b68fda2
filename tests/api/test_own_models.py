"""Networks that stand in a script or a notebook's cell: sent by value, their source kept and never run."""

from __future__ import annotations

import importlib.util
import linecache
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import relu as positive

import ensemble_kd
from ensemble_kd import own_code
from ensemble_kd.api.own_models import callable_name, check_sendable, keep_sources
from ensemble_kd.api.problems import ConfigValueError
from ensemble_kd.api.settings import assignments
from ensemble_kd.api.students import student_settings
from ensemble_kd.api.teachers import settings_of

SCRIPT = Path(__file__).parent / "own_script.py"
SIZES: dict[str, Any] = {"wide": [8, 4], "rate": float("inf"), "names": {"b", "a"}}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> own_code.Known:
    """What this process was given, empty at first."""
    found: own_code.Known = {}
    monkeypatch.setattr(own_code, "_held", found)
    return found


def python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


def local_class(width: int) -> type[nn.Module]:
    def half(x: torch.Tensor) -> torch.Tensor:
        return positive(x) / 2

    class Net(nn.Module):
        """Two lines
        at the margin."""

        sizes = SIZES

        def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(input_shape[0], width), nn.Linear(width, num_classes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return half(self.layers(x))

    return Net


def imported(source: str, folder: Path) -> Any:
    path = folder / "kept_source.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("kept_source", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_source_stands_alone(known: own_code.Known, tmp_path: Path) -> None:
    """With the functions, constants and imports that it uses, those of a closure too; and nothing else."""
    made_by = local_class(5)
    name = callable_name(made_by, "student")
    source = known[name].source
    module = imported(source, tmp_path)
    torch.manual_seed(0)
    ours = made_by(num_classes=3, input_shape=(4,))
    torch.manual_seed(0)
    theirs = module.Net(num_classes=3, input_shape=(4,))
    x = torch.randn(6, 4)
    assert torch.equal(ours(x), theirs(x)) and module.Net.sizes == SIZES and module.width == 5
    assert "imported" not in source and "python" not in source


def test_another_source_is_another_model(known: own_code.Known) -> None:
    """What it uses counts, for a run with another is another run; the same again has the same name."""
    five, again, six = (callable_name(local_class(width), "student") for width in (5, 5, 6))
    assert five == again != six and own_code.MODULE.fullmatch(five.partition(":")[0])
    assert (
        set(known) == {five, six}
        and known[five].source.replace("width = 5", "width = 6") == known[six].source
    )


def cell(source: str, kept: bool = True, **names: Any) -> Any:
    """The class `Net` of a cell of `__main__`, whose source is kept as IPython does it."""
    name = f"ipython-cell-{hash(source)}"
    if kept:
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"nn": nn, "threading": threading, "__name__": "__main__", **names}
    exec(compile(source, name, "exec"), space)
    return space["Net"]


PLAIN = "class Net(nn.Module):\n    def forward(self, x):\n        return x\n"


@pytest.mark.parametrize(
    ("made_by", "says"),
    [
        (
            cell(PLAIN + "# lost\n", kept=False),
            ["student: the source of Net is not found, and it is kept beside the model; write it into"],
        ),
        (
            cell(PLAIN.replace("x\n", "x + TABLE + f()\n"), TABLE=torch.ones(3), f=lambda: 1),
            [
                "student: Net reads TABLE, which is a Tensor outside it and no part of its source; make it "
                "inside the class, or give it as numbers or text",
                "student: the source of f is not found",
            ],
        ),
        (
            cell(
                PLAIN.replace("x\n", "x if LOG.write(x) else LOCK\n"), LOG=sys.stdout, LOCK=threading.Lock()
            ),
            ["student: Net reads LOCK, which is a lock outside it", "student: Net reads LOG, which is"],
        ),
        (
            cell(PLAIN.replace("x\n", "x + len(api_key)\n"), api_key="abcdefgh12345"),
            ["student: Net reads api_key, which is named like a secret, and its source is kept; read it"],
        ),
        (
            lambda num_classes, input_shape: nn.Linear(1, 1),
            ["student: a lambda; give a class, or a function"],
        ),
    ],
)
def test_what_cannot_be_kept_is_told(made_by: Any, says: list[str]) -> None:
    with pytest.raises(ConfigValueError) as caught:
        student_settings(made_by)
    assert len(caught.value.problems) == len(says)
    for problem, begin in zip(caught.value.problems, says, strict=True):
        assert problem.startswith(begin)
    assert "abcdefgh" not in str(caught.value)


def test_what_cannot_be_sent_is_told() -> None:
    """Before Ray starts; this process can train it all the same."""
    name = callable_name(
        cell(PLAIN.replace("nn.Module):", "nn.Module):\n    lock = threading.Lock()")), "student"
    )
    with pytest.raises(ValueError, match=r"Net: cannot be sent .*cannot pickle '_thread.lock'.*__init__"):
        check_sendable(own_code.used({"student": {"model": {"callable": name}}}))
    rows = [[float(i)] for i in range(40)], [0, 1] * 20
    with pytest.raises(ValueError, match="cannot be sent"):
        ensemble_kd.distill(rows, student=own_code.held()[name].made_by, teachers=1, progress=False)
    check_sendable({})


def test_classes_are_taken_wherever_a_model_is(known: own_code.Known) -> None:
    made_by = local_class(3)
    (name,) = [callable_name(made_by, "student")]
    assert student_settings(made_by) == {"model": {"name": "custom", "callable": name}}
    assert settings_of([made_by, "mlp"]) == {
        "num_members": 2,
        "overrides": [{"model": {"name": "custom", "callable": name}}, {"model": {"name": "mlp"}}],
    }
    block = {"student": {"model": {"name": "custom", "callable": made_by, "options": {"width": 3}}}}
    assert assignments(block) == [
        f'student.model={{"name": "custom", "callable": "{name}", "options": {{"width": 3}}}}'
    ]
    with pytest.raises(ValueError, match=r"\(dict\): a class; give an instance"):
        ensemble_kd.distill(([[1.0]] * 8, [0, 1] * 4), teachers=[dict], progress=False)


def test_sources_are_kept_once(known: own_code.Known, tmp_path: Path) -> None:
    name = callable_name(local_class(3), "student")
    for _ in range(2):
        keep_sources(known, tmp_path)
    (path,) = (tmp_path / "code").iterdir()
    assert path.name == own_code.file_of(name) and path.read_text(encoding="utf-8") == known[name].source


def check_elsewhere(folder: Path, said: str, tmp_path: Path) -> None:
    """Another process loads the model if its user trusts the module and has it, and never from the folder."""
    name, answers = said.split()
    module = name.partition(":")[0]
    file = folder / "model" / f"{module}.py"
    assert file.read_bytes() == (folder / "code" / file.name).read_bytes()
    load = (
        "import ensemble_kd, sys\nfrom sklearn.datasets import load_digits\n"
        f"model = ensemble_kd.load({str(folder)!r}, trust=sys.argv[1:])\n"
        "print(','.join(map(str, model.predict(load_digits().data[:50]))))"
    )
    untrusted = python("-c", load, cwd=tmp_path)
    assert untrusted.returncode and f"if you trust it: trust=['{module}']" in untrusted.stderr
    assert f"its source is {module}.py" in untrusted.stderr
    absent = python("-c", load, module, cwd=tmp_path)
    assert absent.returncode and "copy it to where your own modules lie (PYTHONPATH)" in absent.stderr
    root = str(Path(__file__).parents[2])
    there = python("-c", load, module, cwd=tmp_path, PYTHONPATH=os.pathsep.join([root, str(folder / "code")]))
    assert there.returncode == 0, there.stderr
    assert there.stdout.strip() == answers


@pytest.mark.parametrize(
    "executor",
    [
        pytest.param("local", marks=pytest.mark.slow),
        pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_a_script_trains_its_own_classes(executor: str, tmp_path: Path) -> None:
    done = python(str(SCRIPT), str(tmp_path / "run"), executor, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_elsewhere(tmp_path / "run", done.stdout, tmp_path)


CELLS = (
    "from torch import nn\nimport ensemble_kd\nfrom sklearn.datasets import load_digits\n"
    "X, y = load_digits(return_X_y=True)\nwidth = 16",
    "class Net(nn.Module):\n"
    "    def __init__(self, num_classes, input_shape):\n        super().__init__()\n"
    "        self.layers = nn.Sequential(nn.Linear(input_shape[0], width), nn.Linear(width, num_classes))\n"
    "    def forward(self, x):\n        return self.layers(x)",
    "class Named(Net):\n    pass",
    "run = ensemble_kd.distill((X[:1200], y[:1200]), test=(X[1200:], y[1200:]), teachers=[Net],\n"
    "    teachers__training={'epochs': 1}, compute__executor='local',\n"
    "    tracking__enabled=False, progress=False,\n"
    "    student={'model': {'name': 'custom', 'callable': Named}, 'training': {'epochs': 1}, 'seeds': 1,\n"
    "             'temperature': 2, 'alpha': 0.9, 'pseudo': 0}, output='run')",
    "print(run.settings['student']['model']['callable'])\n"
    "print(','.join(map(str, run.model.predict(X[:50]))))",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_trains_its_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):  # nobody's own settings
        monkeypatch.setenv(name, str(tmp_path / "home"))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = "".join(output.get("text", "") for output in book.cells[-1].outputs)
    check_elsewhere(tmp_path / "run", said, tmp_path)
