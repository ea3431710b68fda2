"""What a distillation objective is, and how one is made from its configuration.

To add a method, add one file to this package; nothing else is edited. All modules of the package are
imported with it, and `register` enters the class under the name that `student.objective` uses:

    @register("cosine")
    @dataclass(frozen=True, config=STRICT)          # pydantic.dataclasses: checks types and ranges
    class Cosine:
        \"\"\"1 - cos(z, v), (B,). Source: ...\"\"\"
        needs: ClassVar[frozenset[str]] = frozenset({"logits"})   # or {"hidden"}
        margin: Annotated[float, Field(ge=0)] = 0.0               # the fields are the configuration
        def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor: ...

A field `temperature` is filled from `student.temperature`.

A class may declare `stacks: ClassVar[bool] = True`. Students that differ in the numbers of their objective
are then trained together by one call for all: logits of both sides are (n, B, C), each numeric field is a
number or a tensor (n, 1, 1), and the losses (n, B). So reduce over the classes by dim=-1, and multiply what
has been reduced by a field before its last axis is gone. `batch.labels` is (B,), or (n, B) where members
see different examples; so are `batch.inputs`. Other objectives are called for one student after another.

A class that reads logits may declare `values: ClassVar[bool] = True`: it then takes values (B, K) as well,
which both sides give in standard deviations of the labels (`data.target: value`); `batch.labels` are floats
then.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.registry import Registry

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Configuration of every objective's dataclass: unknown fields, wrong types and NaN are errors."""


@dataclass
class Batch:
    """One batch of a training loop."""

    inputs: Tensor
    """(B, ...) raw inputs."""
    labels: Tensor
    """(B,) int64, -1 where unlabelled; of values float32 (B,), or (B, K) of several, NaN where unlabelled."""
    teacher: Outputs | None = None
    """What the ensemble says of these inputs, where the loss reads it."""
    masked: Tensor | None = None
    """(B, L) bool: positions whose word is to be guessed (masked language models); then `labels` are the
    words' numbers there, (P,), row by row."""
    progress: float = 0.0
    """Share of the training that is done, 0 to 1: what schedules of weights go by."""
    rows: Tensor | None = None
    """(B,) int64: numbers of the examples in what they were drawn from, where that is known."""
    guesses: Tensor | None = None
    """(B,) int64: the ensemble's most probable class of each example without a label, -1 of the others."""
    weights: Tensor | None = None
    """(B,) float32: how much each example's losses count; None for 1 each."""
    group: Any = None
    """torch.distributed process group of the replicas that hold the batch's other rows; None for none."""
    temperature: float | None = None
    """T of this batch on both sides, where it is scheduled; None for what the objective has."""

    def __getitem__(self, part: slice) -> Batch:
        teacher = None if self.teacher is None else self.teacher[part]
        rows = None if self.rows is None else self.rows[part]
        guesses = None if self.guesses is None else self.guesses[part]
        weights = None if self.weights is None else self.weights[part]
        if self.masked is None:
            parts = self.inputs[part], self.labels[part], teacher
            return Batch(
                *parts,
                progress=self.progress,
                rows=rows,
                guesses=guesses,
                weights=weights,
                group=self.group,
                temperature=self.temperature,
            )
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), self.masked.sum(1).cumsum(0).cpu()])
        begin, end, _ = part.indices(len(self))
        words = self.labels[int(ends[begin]) : int(ends[end])]
        masked, own = self.masked[part], {"group": self.group, "temperature": self.temperature}
        return Batch(self.inputs[part], words, teacher, masked, self.progress, rows, **own)

    def __len__(self) -> int:
        return len(self.inputs)


class Objective(Protocol):
    """A soft loss: torch only, with no state beyond its fields.

    One that learns something beside the student, a projection, or that depends on both networks' shapes,
    also has

        def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module | None

    which is given both networks' outputs for some made-up batch, raises ConfigError (what, both sides,
    remedy) where they do not fit, and returns what is to be trained along; `__call__` is then given that as
    a fourth argument, `learned`. It is saved with the student's checkpoints, and left out of what is shipped.

    One that relates the rows of a batch to each other declares `relates: ClassVar[bool] = True` and
    `least_rows`, how many it takes. Then gradient accumulation, which would cut the batch, is refused, and it
    reads the rows of all replicas (`objectives.gathered`, `batch.group`).
    """

    needs: ClassVar[frozenset[str]]
    """What of the teacher it reads: `logits`, `hidden`, `attention`; of the student then the same. One
    whose `first_only` is true reads hidden states at the first position alone, and takes teacher's states
    (B, 1, D) as well; one whose `reads_last` is true reads the last state, by no name, and
    with `features_only` takes it as the store keeps it."""

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Losses of the examples (B,). The teacher gets no gradient."""
        ...


OBJECTIVES = Registry("objective")
"""Objectives by name."""

Class = TypeVar("Class", bound=type)


def register(name: str) -> Callable[[Class], Class]:
    """Enter an objective's class under `name`. Raises RegistrationError where another has it."""

    def enter(objective: Class) -> Class:
        OBJECTIVES.enter(name, objective)
        return objective

    return enter


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known) or 'none'}"


def build_objective(
    settings: dict[str, Any], temperature: float, path: str = "student.objective"
) -> Objective:
    """The objective that a block such as `student.objective` asks for: its `name` and its fields.

    Raises ConfigError with every problem, each line starting with the path of its field.
    """
    given = dict(settings)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name: missing; known here: {', '.join(sorted(OBJECTIVES))}")
    if name not in OBJECTIVES:
        raise ConfigError(f"{path}: unknown objective {name!r}; {_hint(name, sorted(OBJECTIVES))}")
    problems = []
    if "temperature" in given:  # one temperature for teacher and student; two settings could disagree
        problems.append(f"{path}.temperature: set student.temperature instead")
        del given["temperature"]
    own = [field.name for field in fields(OBJECTIVES[name])]
    known = sorted(set(own) - {"temperature"})
    for key in sorted(set(given) - set(known), key=str):
        problems.append(f"{path}.{key}: unknown setting of {name!r}; {_hint(str(key), known)}")
        del given[key]
    shared = {"temperature": temperature} if "temperature" in own else {}
    try:
        objective: Objective = OBJECTIVES[name](**given, **shared)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            where = ".".join(str(part) for part in item["loc"])
            where = "student.temperature" if where == "temperature" else f"{path}.{where}"
            message = f"{item['msg'][0].lower()}{item['msg'][1:]}"
            got = "" if item["type"] == "missing" else f", got {item['input']!r}"
            problems.append(f"{where}: {message}{got}")
    if problems:
        raise ConfigError(problems)
    return objective


def value_problems(objective: Objective, name: str, path: str) -> list[str]:
    """Whether an objective reads logits as those of classes, in a run whose labels are values."""
    if "logits" not in objective.needs or getattr(objective, "values", False):
        return []
    known = sorted(key for key, kind in OBJECTIVES.items() if getattr(kind, "values", False))
    return [f"{path}: {name!r} is for classes, and data.target is 'value'; use {' or '.join(known)}"]


def stacks_with(objective: Objective) -> Hashable | None:
    """Objectives for which this is equal make one stack; None for a class that does not declare `stacks`."""
    if not getattr(objective, "stacks", False):
        return None
    kind: Any = type(objective)
    values = {field.name: getattr(objective, field.name) for field in fields(kind)}
    return kind, repr({name: value for name, value in values.items() if not _is_number(value)})


def stack(objectives: Sequence[Objective], device: torch.device | None = None) -> Objective:
    """One objective for n members: a number that differs between them becomes a tensor (n, 1, 1).

    For objectives of one `stacks_with`. Pydantic has checked each of them, and would not take a tensor.
    """
    kind: Any = type(objectives[0])
    made: Objective = object.__new__(kind)
    for field in fields(kind):
        values = [getattr(objective, field.name) for objective in objectives]
        value = values[0]
        if any(other != value for other in values):
            value = torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
        object.__setattr__(made, field.name, value)
    return made


def over_classes(kernel: Callable[..., Tensor], logits: Tensor) -> Tensor:
    """`F.softmax` or `F.log_softmax` over the last axis of logits (B, C) or (n, B, C).

    On a CPU torch has vector code for rows that fill a vector; for shorter ones, several times as quick, only
    over the first axis. With one student's few rows that does not show.
    """
    if logits.dim() < 3 or logits.shape[-1] >= 16 or not logits.is_cpu:
        return kernel(logits, dim=-1)
    return kernel(logits.movedim(-1, 0).contiguous(), dim=0).movedim(0, -1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
