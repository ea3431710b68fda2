"""Runs each rival's script in its environment, in turns over seeds; a rival that fails is a row too."""

from __future__ import annotations

import ast
import io
import json
import math
import os
import subprocess
import sys
import sysconfig
import time
import tokenize
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, benchmark, median, rounded, say
from benchmarks.peers.rivals import LIMIT, OURS, RIVALS, Rival
from benchmarks.peers.task import prepare
from ensemble_kd.train.statistics import mean_and_error

ROOT = Path(__file__).parent.parent.parent
PLACE = ROOT / "runs" / "peers"
"""Where environments, rows and results lie; ignored by git."""
DATA = ROOT.parent / "shared" / "data"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
SECONDS = 1800
"""What one script, or one installation, may take."""


class Failed(Exception):
    """A rival could not be installed or did not work; the message is the last line that it printed."""


# ------------------------------------------------------------------------------------------ a rival


def environment(rival: Rival, place: Path) -> Path:
    """Its Python: an environment of its own that sees the running one's packages behind its own.

    So torch is the same for all and is not fetched again; pip is held to its version.
    """
    if not rival.requires:
        return Path(sys.executable)
    folder = place / "environments" / rival.script.stem
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists() and done.read_text(encoding="utf-8") == "\n".join(rival.requires):
        return python
    _call([sys.executable, "-m", "venv", "--clear", str(folder)], {})
    lib = Path(_call([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], {}))
    if not rival.alone:
        (lib / "running.pth").write_text("\n".join(_packages()), encoding="utf-8")
    held = folder / "held.txt"
    held.write_text(f"torch=={version('torch')}\n", encoding="utf-8")
    say(f"{rival.name}: installs {' '.join(rival.requires)}")
    install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(held)]
    if rival.alone:
        _call([*install, "--index-url", CPU_WHEELS, "torch"], {})
    _call([*install, *rival.requires], {})
    done.write_text("\n".join(rival.requires), encoding="utf-8")
    return python


def _packages() -> list[str]:
    """Folders with packages of the running environment, in its order."""
    own = sysconfig.get_path("purelib")
    return [own, *(path for path in sys.path if path.endswith("site-packages") and path != own)]


def once(rival: Rival, python: Path, task: Path, seed: int, place: Path) -> dict[str, Any]:
    """One run of its script: accuracy, cpu_seconds, examples."""
    folder = place / "results" / f"{rival.script.stem}-{seed}-{time.time_ns()}"
    folder.mkdir(parents=True)
    variables = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "KERAS_BACKEND": "torch",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    # -P: a script's own folder must not hide a package's name
    _call(
        [str(python), "-P", str(rival.script), str(task), str(seed), str(folder / "result.json")], variables
    )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def _call(command: list[str], variables: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | variables, timeout=SECONDS, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"took more than {SECONDS} s") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Failed(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout.strip()


def told_version(rival: Rival, python: Path) -> str | None:
    """Of its package, as its own environment sees it."""
    if rival.package is None:
        return None
    if not rival.requires:
        try:
            return version(rival.package)
        except PackageNotFoundError:
            return None
    program = f"from importlib.metadata import version; print(version({rival.package!r}))"
    return _call([str(python), "-c", program], {})


def lines_of_code(source: str) -> int:
    """Lines with code on them: no imports, no comments, no docstrings, no blank ones."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.stmt)
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    nothing = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing | {tokenize.ENDMARKER}:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - left_out)


# --------------------------------------------------------------------------------------- all of them


def compare(rivals: Sequence[Rival], task: Path, seeds: int, place: Path) -> list[dict[str, Any]]:
    """A row for each, in the order given; they take turns, one seed each."""
    pythons: dict[str, Path] = {}
    problems: dict[str, str] = {}
    found: dict[str, list[dict[str, Any]]] = {rival.name: [] for rival in rivals}
    for rival in rivals:
        try:
            pythons[rival.name] = environment(rival, place)
        except Failed as error:
            problems[rival.name] = f"cannot be installed: {error}"
    for seed in range(seeds):
        for rival in rivals:
            if rival.name in problems:
                continue
            try:
                result = once(rival, pythons[rival.name], task, seed, place)
                found[rival.name].append(result)
                say(f"seed {seed}, {rival.name}: {result}")
            except Failed as error:
                problems[rival.name] = f"does not work: {error}"
                say(f"seed {seed}, {rival.name} {problems[rival.name]}")
    return [
        row(rival, found[rival.name], problems.get(rival.name), pythons.get(rival.name)) for rival in rivals
    ]


def row(
    rival: Rival, runs: Sequence[dict[str, Any]], problem: str | None, python: Path | None
) -> dict[str, Any]:
    """What is told of one; without figures where it failed."""
    told: dict[str, Any] = {
        "name": rival.name,
        "version": None if python is None else told_version(rival, python),
        "teacher": rival.teacher,
        "lines": lines_of_code(rival.script.read_text(encoding="utf-8")),
        "lacks": rival.lacks,
    }
    if problem is not None:
        return told | {"problem": problem}
    rates = [run["examples"] / run["cpu_seconds"] for run in runs]
    accuracy, error = mean_and_error([100 * run["accuracy"] for run in runs])
    return told | {
        "examples_per_cpu_second": round(median(rates)),
        "rates": rounded(rates, 0),
        "cpu_seconds": round(median([run["cpu_seconds"] for run in runs]), 1),
        "accuracy": round(accuracy, 2),
        "interval": None if error is None else round(_quantile(len(runs)) * error, 2),
    }


def _quantile(count: int) -> float:
    """Student's t for a 95% interval of the mean of so many."""
    from scipy.special import stdtrit

    return math.nan if count < 2 else float(stdtrit(count - 1, 0.975))


@benchmark(
    "peers",
    "our loop, validation and checkpoints in it, against the fastest other system's on the same rows",
    "examples/CPU s",
    "at least",
    0.97,
)
def peers(quick: bool, data: Path | None = None) -> Measured:
    """Environments and results stay in runs/peers; a second call installs nothing."""
    task = PLACE / ("task-quick" if quick else "task")
    about = prepare(data or DATA, task, quick)
    rows = compare(RIVALS, task, 1 if quick else 5, PLACE)
    rates = {row["name"]: row["examples_per_cpu_second"] for row in rows if "problem" not in row}
    if OURS not in rates:
        raise RuntimeError(f"peers: {next(row['problem'] for row in rows if row['name'] == OURS)}")
    others = [rate for name, rate in rates.items() if name not in (OURS, LIMIT)]
    if not others:
        raise RuntimeError("peers: none of the other systems works here; see the lines above")
    return Measured(rates[OURS], max(others), {"task": about, "rows": rows})
