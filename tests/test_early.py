"""What is told before torch is loaded: sizes, callables, classes and packages; and how soon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd import early, model_size
from ensemble_kd.config import (
    BagConfig,
    BiLSTMConfig,
    CNNConfig,
    MLPConfig,
    ModelConfig,
    ResNetConfig,
    TextCNNConfig,
    WideShallowConfig,
    load_config,
)
from ensemble_kd.errors import ConfigError
from ensemble_kd.model_size import layers, parameters

GB = 10**9


@pytest.mark.parametrize(
    "model",
    [
        MLPConfig(hidden=[7, 5]),
        MLPConfig(hidden=[]),
        WideShallowConfig(units=9, rank=4),
        WideShallowConfig(units=9, rank=None),
        BagConfig(embedding=5, hidden=[3]),
        BagConfig(embedding=4),
        BagConfig(embedding=4, piece_weights=True),
        TextCNNConfig(embedding=5, widths=[1, 3], filters=7, hidden=[4]),
        BiLSTMConfig(embedding=5, hidden=7, layers=1),
        BiLSTMConfig(embedding=5, hidden=7, layers=3, classifier_hidden=11),
    ],
)
def test_parameters_are_those_of_the_network(model: ModelConfig) -> None:
    from ensemble_kd.models.build import build

    text = model.name in ("bag", "text_cnn", "bilstm")
    info: dict[str, Any] = {"kind": "text" if text else "image", "num_classes": 10, "vocabulary_size": 50}
    info["input_shape"] = [8] if text else [8, 8, 3]
    assert parameters(model, *model_size.size_of(info)) == build(model, info).num_parameters


@pytest.mark.parametrize(("width", "blocks"), [(6, 1), (4, 3)])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    ("block", "depth"), [("basic", 6), ("bottleneck", 9), ("grouped", 12), ("depthwise", 12)]
)
def test_parameters_of_a_resnet_are_all_but_its_stem(
    width: int, blocks: int, norm: Any, block: Any, depth: int
) -> None:
    from torch import nn

    from ensemble_kd.models.build import build

    info: dict[str, Any] = {"kind": "image", "num_classes": 10, "input_shape": [8, 8, 3]}
    model = ResNetConfig(width=width, blocks=blocks, norm=norm, block=block, groups=2, reduction=2)
    network = build(model, info)
    first = 3 * 9 * width + (1 if norm == "none" else 2) * width
    assert parameters(model, 192, 10, 1) == network.num_parameters - first
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert layers(model) == depth * blocks == convolutions - 3  # without the stem and two shortcuts


@pytest.mark.parametrize("channels", [[6], [4, 3, 5]])
def test_parameters_of_a_cnn_are_all_but_its_first_convolution(channels: list[int]) -> None:
    from ensemble_kd.models.build import build

    info: dict[str, Any] = {"kind": "image", "num_classes": 10, "input_shape": [8, 8, 3]}
    model = CNNConfig(channels=channels)
    first = 3 * 9 * channels[0]
    assert parameters(model, 192, 10, 1) == build(model, info).num_parameters - first
    assert layers(model) == len(channels)


def told(*overrides: str, memory: int = 16 * GB, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(early, "memory_at_hand", lambda: memory)
    monkeypatch.setattr(model_size, "GPUS", ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError) as caught:
        early.check_early(load_config("digits", list(overrides)))
    return caught.value.problems


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["student.model.hidden=[100000, 100000]"],
            "student.model: 10,007,600,010 parameters, which take 160.1 GB with gradients and adamw's state, "
            "and this machine has 16.0 GB",
        ),
        (
            ["student.model.hidden=[100000, 100000]", "student.training.optimizer=sgd"],
            "student.model: 10,007,600,010 parameters, which take 120.1 GB",
        ),
        (
            ["teachers.model={name: mlp, hidden: [9007199254740992, 9007199254740992]}"],
            "teachers.model: 8.1e+31 parameters",
        ),
        (["teachers.overrides=[{model: {name: mlp, hidden: [1000000000]}}]"], "teachers.overrides.0.model: "),
        (
            ["teachers.num_members=10000", "teachers.model={name: mlp, hidden: [1000, 1000]}"],
            "teachers.model: 10,000 teachers of 10,760,100,000 parameters in all, which are all held while",
        ),
        (
            [
                "teachers.model={name: mlp, hidden: [20000, 20000]}",
                "compute.num_workers=3",
                "compute.cpus_per_worker=0.001",
            ],
            "teachers.model: 5 teachers of 2,007,600,050 parameters in all, 3 trained at a time take 19.3 GB",
        ),
        (
            ["student.model={name: resnet, blocks: 1000000}"],
            "student.model: 6,000,000 layers, at most 10,000",
        ),
        (
            ["sweep={}", "sweep.space={model.hidden.0: 'logintegers(8, 1000000000000)'}"],
            "sweep.space.model.hidden.0: 1000000000000: student.model: 97,000,000,000",
        ),
    ],
)
def test_what_this_machine_cannot_hold_is_told(
    overrides: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = told(*overrides, monkeypatch=monkeypatch)
    assert any(line.startswith(says) for line in found), found


def test_a_cluster_may_hold_more(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("digits", ["student.model.hidden=[100000, 100000]"])
    early.check_early(config, address="head:6379")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    early.check_early(config)
    with pytest.raises(ConfigError, match="which no machine has"):
        early.check_early(load_config("digits", ["student.model.hidden=[1000000000, 1000000000]"]))


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        (None, "no_such_module:build", "there is no module 'no_such_module'"),
        ("import no_such_library\n", "mine:build", "it imports 'no_such_library', which is not installed"),
        ("def buidl(): ...\n", "mine:build", "has no 'build'; did you mean 'buidl'?"),
        ("build = 3\n", "mine:build", "is int, not callable"),
        ("def build(:\n", "mine:build", "cannot be imported: SyntaxError"),
        ("1 / 0\n", "mine:build", "cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(3)\n", "mine:build", "cannot be imported: SystemExit"),
        ("def build(classes): ...\n", "mine:build", "is called with num_classes, input_shape, width"),
    ],
)
def test_a_custom_model_that_cannot_be_is_told(
    module: str | None, name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is not None:
        (tmp_path / "mine.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    model = f"{{name: custom, callable: '{name}', options: {{width: 3}}}}"
    (line,) = told(f"student.model={model}", monkeypatch=monkeypatch)
    assert line.startswith("student.model.callable: ") and says in line
    override = f"teachers.overrides=[{{model: {model}}}]"
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (line,) = told(override, monkeypatch=monkeypatch)
    assert line.startswith("teachers.overrides.0.model.callable: ") and says in line


def test_a_teacher_that_is_no_callable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = ["teachers.source=callable", "teachers.given=['os:sep', 'os:getcwd']", "specialists=null"]
    assert told(*teachers, monkeypatch=monkeypatch) == [
        "teachers.given.0: 'os:sep' is str, not callable; name a function or class"
    ]


def test_leaving_out_all_classes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = told("student.without_classes=[9,8,7,6,5,4,3,2,1,0]", monkeypatch=monkeypatch)
    assert line.startswith("student.without_classes: all 10 classes are left out")
    early.check_early(load_config("digits", ["student.without_classes=[9,8,7,6,5,4,3,2,1]"]))


def test_a_form_without_its_packages_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = early.find_spec
    monkeypatch.setattr(early, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    found = told("export={forms: [onnx, program]}", monkeypatch=monkeypatch)
    assert [line.split(";")[0] for line in found] == [
        "export.forms.0: 'onnx' needs onnxruntime, not installed here"
    ]


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("", "empty"),
        ("x" * 5000, "File name too long"),
        ("/dev/null/x", "/dev/null is not a folder"),
        ("a\0b", "a NUL character"),
    ],
)
def test_a_run_folder_that_cannot_be_is_told(folder: str, says: str) -> None:
    (line,) = early.folder_problems(folder)
    assert line.startswith("--run-dir: ") and says in line and len(line) < 500


def test_a_run_folder_that_is_to_be_made_is_fine(tmp_path: Path) -> None:
    assert early.folder_problems(str(tmp_path / "a" / "b")) == []


# ---------------------------------------------------------------------------------------------- how soon

HEAVY = ("torch", "ray", "mlflow", "transformers", "datasets", "sklearn", "scipy", "matplotlib")
"""Not pandas: pyarrow itself imports that, with the first array that it makes of numbers."""


COLD = ("ensemble_kd.config", "pyarrow", "numpy", "pandas")


def loaded(*commands: list[str], also: tuple[str, ...] = ()) -> dict[str, set[str]]:
    """Which of the heavy libraries are loaded after each command, of those that one process runs in turn."""
    code = (
        "import sys\nfrom ensemble_kd.cli import main\n"
        f"for command in {list(commands)!r}:\n"
        "    try:\n        main(command)\n"
        "    except SystemExit as end:\n        assert not end.code, (command, end.code)\n"
        f"    there = [name for name in {(*HEAVY, *also)!r} if name in sys.modules]\n"
        "    print('LOADED', ' '.join(command), '|', *there)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    parts = (line.removeprefix("LOADED ").split(" |") for line in lines)
    found = {command: set(names.split()) for command, names in parts}
    assert len(found) == len(commands)
    return found


def test_help_loads_nothing() -> None:
    commands = [["--help"], *([name, "--help"] for name in ("run", "check", "predict", "serve"))]
    assert not {command: names for command, names in loaded(*commands, also=COLD).items() if names}


def test_check_of_embedded_data_and_of_a_table_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("x,y,label\n" + "".join(f"{i},{-i},{i % 2}\n" for i in range(200)))
    (tmp_path / "x.yaml").write_text(
        f"name: x\ndata: {{path: {tmp_path / 'train.csv'}, kind: numeric, columns: {{input: [x, y]}}}}\n"
        "teachers: {training: {batch_size: 16}}\nstudent: {training: {batch_size: 16}}\n"
    )
    commands = [
        ["check", what, "--run-dir", str(tmp_path / "run")] for what in ("digits", str(tmp_path / "x.yaml"))
    ]
    assert not {command: names for command, names in loaded(*commands).items() if names}


@pytest.mark.parametrize(("arguments", "seconds"), [(["--help"], 0.5), (["check", "digits"], 2.0)])
def test_answers_come_soon(arguments: list[str], seconds: float, tmp_path: Path) -> None:
    """By the processor's time, which a busy machine stretches less than the clock's; best of three."""
    if arguments[0] == "check":
        arguments = [*arguments, "--run-dir", str(tmp_path / "run")]
    took = []
    for _ in range(3):
        before = os.times()
        command = [sys.executable, "-m", "ensemble_kd", *arguments]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = os.times()
        took.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(took) < seconds, took


def test_the_first_plan_is_what_the_whole_check_says(tmp_path: Path) -> None:
    from ensemble_kd import pipeline

    config = load_config("digits")
    assert early.quick(config, tmp_path)
    planned = [(stage.name, stage.state) for stage in pipeline.check(config, tmp_path)]
    assert early.first_plan(config, tmp_path, lambda line: None) == planned


@pytest.mark.parametrize(
    "override",
    [
        "student.objective={name: kl}",
        "student.objective=klx",
        "student.terms=[{name: patient}]",
        "soft_targets.top_k=3",
        "student.model={name: transformer, source: x}",
    ],
)
def test_what_only_torch_can_judge_is_left_to_it(override: str, tmp_path: Path) -> None:
    config = load_config("digits", ["sweep=null", "specialists=null", override])
    assert not early.quick(config, tmp_path)


def test_plain_objectives_are_losses_on_stored_logits() -> None:
    from ensemble_kd.objectives.base import OBJECTIVES

    plain: list[Any] = [OBJECTIVES[name] for name in early.PLAIN_OBJECTIVES]
    assert all(each.needs == {"logits"} for each in plain)


def test_a_folder_with_data_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert not early.quick(load_config("digits"), tmp_path)


INFO: dict[str, Any] = {
    "kind": "image",
    "input_shape": [8, 8, 1],
    "num_classes": 10,
    "mean": [0.5],
    "std": [0.5],
    "counts": {"labelled": 1000, "transfer": 1000, "validation": 100, "test": 100, "train": 1000},
    "vocabulary_size": 0,
}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return nn.Linear(3, 10)", "raised RuntimeError on inputs of shape"),
        ("return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))", r"must return logits of shape \(2, 10\)"),
        ("return 3", "returned int, not a torch.nn.Module"),
        ("raise KeyError('x')", "raised KeyError"),
    ],
)
def test_a_custom_network_is_made_before_a_worker_does(
    body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_kd.stages.teachers import check_custom

    (tmp_path / "nets.py").write_text(
        f"from torch import nn\ndef build(num_classes, input_shape):\n    {body}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    model = "{name: custom, callable: 'nets:build'}"
    for field in ("student.model", "teachers.model"):
        config = load_config("digits", [f"{field}={model}"])
        early.check_early(config)
        with pytest.raises(ConfigError, match=f"^{field}: custom model 'nets:build' {says}"):
            check_custom(config, INFO)


def test_leaving_out_all_classes_of_the_data_is_told() -> None:
    from ensemble_kd import pipeline

    config = load_config("digits", ["sweep=null", "specialists=null", "student.without_classes=[0, 1, 2]"])
    with pytest.raises(ConfigError, match="student.without_classes: all 3 classes are left out"):
        pipeline.check_sizes(config, {**INFO, "num_classes": 3})


def test_networks_are_counted_again_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_kd import pipeline

    monkeypatch.setattr(early, "memory_at_hand", lambda: GB)
    monkeypatch.setattr(model_size, "GPUS", ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wide = ["student.model.hidden=[1000]", "teachers.model={name: mlp, hidden: [256, 256]}"]
    config = load_config("digits", ["sweep=null", "specialists=null", *wide])
    early.check_early(config)
    with pytest.raises(ConfigError, match=r"teachers.model: 256,068,618 parameters, which take 4.1 GB"):
        pipeline.check_sizes(config, {**INFO, "input_shape": [1000, 1000, 1]})
