"""Plug-ins: how they are found, what is wrong with them, and that one file brings a method into a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_cases import TINY, forgotten, written
from safetensors.torch import load_file
from typer.testing import CliRunner

from ensemble_kd import pipeline, supervised
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.cli import app
from ensemble_kd.config import Config, json_schema, load_config, plugins
from ensemble_kd.config.reference import reference
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, build_objective

__all__ = ["forgotten"]
pytestmark = pytest.mark.usefixtures("forgotten")
NETWORK = """
from typing import Literal
from ensemble_kd.config import NETWORKS, NetworkConfig

@NETWORKS.register
class {cls}(NetworkConfig):
    name: Literal["{name}"] = "{name}"
"""


def config(*overrides: str) -> Config:
    return load_config("digits", [*TINY, *overrides])


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(*overrides)
    return caught.value.problems


# ----------------------------------------------------------------------------------------- what can be wrong


def test_everything_that_is_wrong_with_plugins_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "raises": "1 / 0",
        "leaves": "import sys; sys.exit(3)",
        "needs_more": "import no_such_library",
        "first": NETWORK.format(cls="First", name="net_a"),
        "second": NETWORK.format(cls="Second", name="net_a"),
        "takes_ours": NETWORK.format(cls="Ours", name="mlp"),
        "nameless": NETWORK.format(cls="Nameless", name="x").replace(
            'name: Literal["x"] = "x"', "width: int = 1"
        ),
        "takes_kl": "from ensemble_kd.objectives.base import register\n@register('kl')\nclass Mine: ...",
    }.items():
        written(tmp_path, name, text, monkeypatch)
    names = "absent, raises, leaves, needs_more, first, second, takes_ours, nameless, takes_kl"
    path = "the module must be on PYTHONPATH of every process"
    assert problems(f"plugins=[{names}]", "student.temperature=-1") == [
        f"plugins.0: 'absent' cannot be imported: there is no module 'absent'; {path}",
        "plugins.1: 'raises' cannot be imported: ZeroDivisionError: division by zero; mend the module",
        "plugins.2: 'leaves' cannot be imported: SystemExit: 3; mend the module",
        "plugins.3: 'needs_more' cannot be imported: it imports 'no_such_library', which is not installed; "
        f"{path}",
        "plugins.5: 'second' registers the network 'net_a' (second.Second), and first.First has that name "
        "already; rename one of them",
        "plugins.6: 'takes_ours' registers the network 'mlp' (takes_ours.Ours), and "
        "ensemble_kd.config.image_models.MLPConfig has that name already; rename one of them",
        "plugins.7: 'nameless' registers nameless.Nameless as network, which has no name; give it a field: "
        'name: Literal["..."] = "..."',
        "plugins.8: 'takes_kl' registers the objective 'kl' (takes_kl.Mine), and "
        "ensemble_kd.objectives.logits.KL has that name already; rename one of them",
    ]


def test_what_a_plugin_registered_before_it_failed_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "half", NETWORK.format(cls="Half", name="half_net") + "1 / 0", monkeypatch)
    assert len(problems("plugins=half")) == 1
    (line,) = problems("student.model={name: half_net}")
    assert "unknown name; known here: mlp, " in line and line.endswith("got 'half_net'")
    written(tmp_path, "half", NETWORK.format(cls="Half", name="half_net"), monkeypatch)
    assert config("plugins=half").plugins == ["half"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "plugins=[no-module]",
            "plugins.0: expected the name of a module, for example my_methods.networks, got ",
        ),
        ("plugins=[../x]", "plugins.0: expected the name of a module, for example my_methods.networks, got "),
        ("plugins=3", "plugins: expected a list, got 3"),
    ],
)
def test_what_is_no_module_is_not_imported(given: str, line: str) -> None:
    assert [found[: len(line)] for found in problems(given)] == [line]


def test_a_plugin_that_is_not_there_ends_a_run_with_2_before_anything_starts(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["run", "digits", "--set", "plugins=[absent]", "--run-dir", str(tmp_path / "run")]
    )
    assert done.exit_code == 2 and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- what is known of them


def test_settings_of_a_plugin_are_checked_and_documented_as_our_own() -> None:
    listed = "plugins=[plugins.maxout, plugins.weight_selection]"
    wrong = problems(listed, "student.model={name: maxout, units: 0, unit: 3}", "teachers.model.name=maxot")
    assert wrong == [
        "teachers.model: unknown name; known here: mlp, cnn, resnet, wide_shallow, bag, text_cnn, bilstm, "
        "trees, transformer, custom, maxout, got 'maxot'; did you mean 'maxout'?",
        "student.model.units: input should be greater than or equal to 1, got 0",
        "student.model.unit: unknown setting; did you mean 'units'?",
    ]
    assert problems(listed, "student.model={name: maxout, linear: 1}") == [
        "student.model.linear: 1 makes the whole network linear; raise it"
    ]
    assert problems(listed, "student.model={name: mlp, start: weight_selecton}")[0].endswith(
        "known here: net2wider, net2deeper, net2net, weight_selection, got 'weight_selecton'; did you mean "
        "'weight_selection'?"
    )
    assert problems(
        listed, "student.model={name: maxout}", "teachers.model={name: maxout, linear: 3}", "data.kind=text"
    )
    schema = json.dumps(json_schema())
    assert "MaxoutConfig" in schema and "WeightSelection" in schema
    page = reference()
    assert "`student.model.start: {name: weight_selection}`" in page or "weight_selection" in page
    assert "| `units` | whole number, at least 1 | `16` | Units of the hidden layer. |" in page


def test_schema_knows_a_plugin() -> None:
    plain, named = (
        CliRunner().invoke(app, ["schema", *options])
        for options in ([], ["--plugin", "plugins.pruning", "--plugin", "plugins.disagreement"])
    )
    assert "PruningConfig" not in plain.stdout and named.exit_code == 0
    assert {"PruningConfig", "DisagreementConfig"} <= set(json.loads(named.stdout)["$defs"])
    wrong = CliRunner().invoke(app, ["schema", "--plugin", "absent"])
    assert wrong.exit_code == 2


def test_contributing_shows_every_example() -> None:
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    files = [path.name for path in (Path(__file__).parent / "plugins").glob("[!_]*.py")]
    assert len(files) == 6
    for name in files:
        assert f"[{name}](tests/plugins/{name})" in page
        assert len((Path(__file__).parent / "plugins" / name).read_text().splitlines()) <= 85


def test_without_plugins_nothing_of_them_is_known() -> None:
    assert "MaxoutConfig" not in json.dumps(json_schema())
    assert "plugins" not in config().model_dump()


def test_plugins_of_installed_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("maxout", "plugins.maxout", plugins.GROUP)]
    monkeypatch.setattr(plugins, "_installed", lambda: tuple(points))
    assert config("student.model={name: maxout}").student.model.name == "maxout"
    points.append(EntryPoint("gone", "no_such_module", plugins.GROUP))
    assert problems("plugins=[absent]") == [
        "entry point 'gone' of ensemble_kd.plugins: 'no_such_module' cannot be imported: there is no "
        "module 'no_such_module'; the module must be on PYTHONPATH of every process",
        "plugins.0: 'absent' cannot be imported: there is no module 'absent'; the module must be on "
        "PYTHONPATH of every process",
    ]


def test_the_process_that_is_watched_has_them_too() -> None:
    settings = config("plugins=[plugins.maxout]", "student.model={name: maxout}")
    job = supervised.packed(supervised.Job("report", settings, None, False, False, None))
    code = (
        "import sys; from ensemble_kd import supervised\n"
        "print(type(supervised.unpacked(sys.stdin.buffer.read()).settings.student.model).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=job, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "MaxoutConfig"


# ---------------------------------------------------------------------------------------- each from one file


def test_the_objective_is_the_divergence_of_likenesses() -> None:
    plugins.load(["plugins.neighbours"])
    objective = build_objective({"name": "neighbours", "sharpness": 0.5}, 1.0)
    generator = torch.Generator().manual_seed(0)
    f, g = (torch.randn(4, width, generator=generator).double() for width in (3, 5))
    student, teacher = (Outputs(torch.zeros(4, 2), {"features": states}) for states in (f, g))
    found = objective(student, teacher, Batch(f, torch.zeros(4, dtype=torch.int64)))
    for i in range(4):
        others = [j for j in range(4) if j != i]
        p, q = (
            torch.stack([torch.cosine_similarity(x[i], x[j], dim=0) / 0.5 for j in others]).softmax(0)
            for x in (f, g)
        )
        torch.testing.assert_close(found[i], (q * (q / p).log()).sum())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a network and an objective from outside, in a process of its own."""
    folder = tmp_path_factory.mktemp("made") / "run"
    overrides = [
        *TINY,
        "plugins=[plugins.maxout, plugins.neighbours]",
        "teachers.model={name: maxout, units: 24}",
        "student.model={name: maxout, units: 8}",
        "student.terms=[{name: neighbours, weight: 1}]",
    ]
    arguments = [part for each in overrides for part in ("--set", each)]
    command = [sys.executable, "-m", "ensemble_kd", "run", "digits", *arguments, "--run-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_a_network_and_an_objective_from_configuration_to_report(made: Path) -> None:
    assert (made / "report.html").exists()
    assert json.loads((made / "resolved.json").read_text())["plugins"] == [
        "plugins.maxout",
        "plugins.neighbours",
    ]
    (receipt,) = (made / "student").glob("*/manifest.json")
    manifest = read_manifest(receipt.parent)
    assert manifest is not None
    noted = [entry["module"] for entry in manifest.summary["plugins"]]
    assert noted == ["plugins.maxout", "plugins.neighbours"]
    assert json.loads((made / "model/config.json").read_text())["plugins"][0]["module"] == "plugins.maxout"


WHOLE = [
    "plugins=[plugins.weight_selection, plugins.average_teacher, plugins.pruning, plugins.disagreement]",
    "teachers.training.early_stopping=null",
    "student.training.early_stopping=null",
    "student.model.start=weight_selection",
    "extra_stages=[{name: disagreement, digits: 3}]",
]


def shipped(settings: Config, run: Path) -> dict[str, torch.Tensor]:
    """Run it to the report; returns the weights of the model folder."""
    pipeline.run(settings, run)
    assert (run / "report.html").exists()
    return load_file(run / "model/weights.safetensors")


@pytest.mark.slow
def test_the_others_from_configuration_to_report(tmp_path: Path) -> None:
    run, average = tmp_path / "run", "student.learner={name: average_teacher, weight: 0}"
    started = shipped(config(*WHOLE, "student.training.epochs=0"), run)
    # The initialiser: evenly spaced weights of the best teacher.
    receipts = [read_manifest(path.parent) for path in (run / "teachers/members").glob("*/manifest.json")]
    best = min(filter(None, receipts), key=lambda receipt: receipt.summary["validation_loss"])
    teacher = load_file(run / "teachers/members" / best.fingerprint / "weights.safetensors")
    rows = torch.linspace(0, 15, 8).round().long()
    assert torch.equal(started["body.layers.0.weight"], teacher["body.layers.0.weight"][rows])
    assert torch.equal(started["body.head.weight"], teacher["body.head.weight"][:, rows])
    # The stage.
    (receipt,) = (run / "disagreement").glob("*/manifest.json")
    logits = [
        load_file(path.parent / "predictions.safetensors")["validation"]
        for path in (run / "teachers/members").glob("*/manifest.json")
    ]
    share = (logits[0].argmax(1) != logits[1].argmax(1)).float().mean().item()
    found = json.loads((receipt.parent / "disagreement.json").read_text())
    assert found == [[0.0, round(share, 3)], [round(share, 3), 0.0]]
    # The learner, with a weight of 0, trains as the network does alone; with another it does not.
    plain = shipped(config(*WHOLE), run)
    alike, other = (shipped(config(*WHOLE, given), run) for given in (average, average.replace("0}", "9}")))
    for name, weight in plain.items():
        assert torch.equal(weight, alike[name]), name
    assert not torch.equal(plain["body.head.weight"], other["body.head.weight"])
    # The compressor: so many weights of each matrix are 0, in a model folder that asks for no plug-in.
    pruned = shipped(config(*WHOLE, "student.compress=[{name: pruning, sparsity: 0.75}]"), run)
    for name in ("body.layers.0.weight", "body.head.weight"):
        assert int((pruned[name] == 0).sum()) == int(0.75 * pruned[name].numel())
        assert int((plain[name] == 0).sum()) == 0
    assert "plugins" not in json.loads((run / "model/config.json").read_text())


def test_check_and_run_know_the_stage_of_a_plugin(tmp_path: Path) -> None:
    settings = config(*WHOLE)
    names = ["data", "teachers", "disagreement", "gap", "soft-targets", "student", "report"]
    assert list(settings.stages) == names
    assert [line.name for line in pipeline.check(settings, tmp_path / "run")] == names
    without = config(WHOLE[0])
    assert "disagreement" not in without.stages
    with pytest.raises(ConfigError, match=r"--set extra_stages=\[\{name: disagreement\}\]"):
        pipeline.run(without, tmp_path / "run", until="disagreement")
    twice = "extra_stages=[{name: disagreement}, {name: disagreement, digit: 3}]"
    assert problems(WHOLE[0], twice) == [
        "extra_stages.1.digit: unknown setting; did you mean 'digits'?",
        "extra_stages.1.name: 'disagreement' is listed twice; leave one of them out",
    ]


@pytest.mark.parametrize(
    ("block", "what"),
    [
        ("student.learner={name: average_teacher}", "learner"),
        ("student.compress=[{name: pruning}]", "compressor"),
        ("extra_stages=[{name: disagreement}]", "stage"),
    ],
)
def test_a_method_whose_plugin_is_not_listed(block: str, what: str) -> None:
    (line,) = problems(block)
    assert f": there is no {what} by name; list the module that brings one under plugins, got " in line


def test_what_does_not_go_together() -> None:
    wrong = problems(
        WHOLE[0],
        "student.learner={name: average_teacher}",
        "student.compress=[{name: pruning}]",
        "student.peers={count: 2}",
    )
    assert (
        "student.peers: does not go together with student.learner; leave them out, or leave student.learner "
        "out" in wrong
    )
    assert "student.compress: does not go together with student.learner; leave one of them out" in wrong


@pytest.mark.parametrize(
    ("name", "after", "said"),
    [
        ("data", "teachers", "which cannot be called 'data'"),
        ("Odd name", "teachers", "which cannot be called 'Odd name'"),
        ("mine", "report", "after 'report'; use one of augment, data, "),
    ],
)
def test_stages_that_cannot_be(
    name: str, after: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from typing import ClassVar, Literal\n"
        "from ensemble_kd.config.methods import EXTRA_STAGES, StageConfig\n"
        "@EXTRA_STAGES.register\n"
        "class Mine(StageConfig):\n"
        f"    name: Literal['{name}'] = '{name}'\n"
        f"    after: ClassVar[str] = '{after}'\n"
    )
    written(tmp_path, "odd_stage", text, monkeypatch)
    (line,) = problems("plugins=[odd_stage]")
    assert line.startswith("plugins.0: 'odd_stage' registers the stage odd_stage.Mine") and said in line


ELSEWHERE = """
import sys
from pathlib import Path
from ensemble_kd.models.package import load_package
try:
    print(load_package(Path(sys.argv[1]), sys.argv[2:]).network.num_parameters)
except Exception as error:
    print(type(error).__name__, error)
print([name for name in sys.modules if name.startswith("plugins")])
"""


def elsewhere(folder: Path, *trust: str, **variables: str) -> list[str]:
    """What another process says of a model folder, and which plug-ins it imported."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder), *trust],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | variables,
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_model_folder_imports_no_plugin_that_is_not_trusted(made: Path) -> None:
    said, imported = elsewhere(made / "model")
    assert said.endswith(
        "config.json: the network is made by plug-in plugins.maxout, code from outside the folder; if you "
        "trust it: --trust plugins.maxout (or ENSEMBLE_KD_TRUST=plugins.maxout)"
    )
    assert imported == "[]"
    parameters = str(64 * 16 + 16 + 8 * 10 + 10)
    for found in (
        elsewhere(made / "model", "plugins.maxout"),
        elsewhere(made / "model", ENSEMBLE_KD_TRUST="plugins.maxout"),
    ):
        assert found == [parameters, "['plugins', 'plugins.maxout']"]


def changed(source: Path, target: Path, **fields: Any) -> Path:
    """A copy of a model folder whose config.json says something else, checksums and all."""
    import shutil

    from ensemble_kd.artifacts import describe_files

    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | fields
    (target / "config.json").write_text(json.dumps(config))
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"] |= describe_files(target, ["config.json"])
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"plugins": []}, "does not describe a model: model: input tag 'maxout'"),
        ({"plugins": [{"module": "os; x"}]}, "plugins.0.module: "),
        ({"plugins": [{"module": "plugins.neighbours"}]}, "made by plug-in plugins.neighbours"),
        ({"plugins": [{"module": "json"}]}, "registers no network of that name"),
        ({"plugins": [{"module": "json"}], "model": {"name": "mlp", "unit": 1}}, "model.mlp.unit: "),
    ],
)
@pytest.mark.slow
def test_hostile_folders(made: Path, tmp_path: Path, fields: dict[str, Any], line: str) -> None:
    folder = changed(made / "model", tmp_path / "model", **fields)
    said, imported = elsewhere(folder, "json", "plugins.maxout")
    assert said.startswith("ArtifactError") and line in said, said
    assert imported == "[]"
