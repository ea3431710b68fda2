"""Batches for several members at once, for those that are trained together.

Members with one seed see the same examples in the same order, so one reading serves them all, and the
teachers are averaged once in each of the ways that their members ask for.

Shapes: n members, B examples, M teachers, C classes, N rows, V views, k ways of averaging the teachers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ensemble_kd.artifacts import canonical
from ensemble_kd.config import TrainingConfig
from ensemble_kd.data.labels import labelled
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.train.batches import Batches, Targets
from ensemble_kd.train.blocks import MemberLogits, TensorSource, pad_alike
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.task import MemberTask

KEPT_BYTES = 256 * 2**20
"""Averaged soft targets up to this size are computed once and kept, rather than anew in every epoch."""
AT_ONCE_BYTES = 64 * 2**20
"""Averaged soft targets of a block that are computed at once, where they are not kept."""


@dataclass
class SeveralTargets(Targets):
    """Soft targets averaged in k ways: logits (k, B, C)."""

    each: list[Targets] = field(default_factory=list)
    averaged: bool = False
    """Whether the source's member logits are a `KeptAverages`."""

    def average(self, member_logits: Tensor, epoch: int = 0) -> Tensor:
        if self.averaged:
            return member_logits.transpose(0, 1)
        return torch.stack([targets.average(member_logits, epoch) for targets in self.each])


class KeptAverages:
    """The teacher's logits averaged in k ways, of all rows and views; `MemberLogits` of k "members"."""

    def __init__(self, teacher: MemberLogits, num_rows: int, views: int, each: list[Targets]) -> None:
        self.num_views = views
        parts = []
        for rows in torch.arange(num_rows).split(8192):
            picked = [teacher.pick(rows, torch.full_like(rows, view)) for view in range(views)]
            parts.append(torch.stack([torch.stack([t.average(p) for t in each], 1) for p in picked], 1))
        self.logits = torch.cat(parts)  # (N, V, k, C)

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        """(B, k, C)"""
        return self.logits[rows.cpu(), views.cpu()]


@dataclass
class Stream:
    """The batches of the members that see the same examples in the same order."""

    batches: Batches
    members: list[int]


class Reader:
    """Batches for all members: read once per seed and kind of rows, and joined where that gives several."""

    def __init__(
        self,
        tasks: list[MemberTask],
        data: TrainingData,
        training: TrainingConfig,
        device: torch.device,
        brief: bool = False,
    ) -> None:
        """`brief` for a few steps: soft targets are averaged a batch at a time."""
        # Each teacher is averaged in all the ways that its readers ask for.
        ways: dict[str, dict[str, Targets]] = {}
        self.way: dict[int, int] = {}  # of each member that reads a teacher, among that teacher's
        self.guess: dict[int, int] = {}  # of each member that reads guesses: the way at T = 1
        for i, task in enumerate(tasks):
            known = ways.setdefault(task.targets, {}) if task.reads_teacher else {}
            if task.guess_weight > 0:
                self.way[i] = self.guess[i] = _place(_targets(task, 1.0), known)
            if task.reads_teacher and task.alpha > 0:
                self.way[i] = _place(_targets(task, task.temperature), known)
        kept: dict[str, KeptAverages | None] = {}
        self.streams = []
        for members in _same_examples(tasks, data):
            task = tasks[members[0]]  # reads the teacher where one of them does
            batches = make_batches(task, data, training, device)
            self.streams.append(Stream(batches, members))
            if task.reads_teacher:
                each = list(ways[task.targets].values())
                if task.targets not in kept:
                    most = 0 if brief else KEPT_BYTES // len(ways)
                    kept[task.targets] = _kept(
                        batches, each, data.info["num_classes"], training.num_epochs, most
                    )
                one_batch = 4 * len(each) * batches.batch_size * data.info["num_classes"]
                batches.at_once = 1 if brief else max(1, AT_ONCE_BYTES // one_batch)
                averages = kept[task.targets]
                batches.targets = SeveralTargets(soft=True, each=each, averaged=averages is not None)
                if averages is not None and isinstance(batches.source, TensorSource):
                    batches.source.teacher, batches.at_once = averages, None
        self.steps_per_epoch = self.streams[0].batches.steps_per_epoch
        self.batch_size = training.batch_size

    def epoch(self, epoch: int, members: list[int]) -> Iterator[Batch]:
        """The batches of an epoch for these members, soft targets (n, B, C).

        Inputs (B, ...) and labels (B,), or with the members in front where they see different examples.
        """
        streams = [stream for stream in self.streams if set(stream.members) & set(members)]
        source = {i: number for number, stream in enumerate(streams) for i in stream.members}
        device = streams[0].batches.device
        sources = torch.tensor([source[i] for i in members], device=device)
        # Place of each member's soft targets among those of all streams, one after another.
        starts, total = {}, 0
        for number, stream in enumerate(streams):
            starts[number] = total
            targets = stream.batches.targets
            total += len(targets.each) if isinstance(targets, SeveralTargets) else 0
        places = [starts[source[i]] + self.way[i] if i in self.way else 0 for i in members]
        guesses = [starts[source[i]] + self.guess[i] if i in self.guess else 0 for i in members]
        in_order = places == list(range(total))
        picked, guessed = (torch.tensor(numbers, device=device) for numbers in (places, guesses))
        reads_guesses = not self.guess.keys().isdisjoint(members)
        for parts in zip(*(stream.batches.epoch(epoch) for stream in streams), strict=True):
            inputs, labels, weights = parts[0].inputs, parts[0].labels, parts[0].weights
            if len(parts) > 1:
                inputs = _stacked([part.inputs for part in parts])[sources]
                labels = torch.stack([part.labels for part in parts])[sources]
                each = [part.weights for part in parts if part.weights is not None]
                weights = torch.stack(each)[sources] if each else None
            soft = [part.teacher.logits for part in parts if part.teacher is not None]
            if not soft:
                yield Batch(inputs, labels, weights=weights)
                continue
            averaged = logits = soft[0] if len(soft) == 1 else torch.cat(soft)  # (total, B, C)
            if total == 1:
                logits = logits.expand(len(members), -1, -1)
            elif not in_order:
                logits = logits[picked]
            batch = Batch(inputs, labels, Outputs(logits), weights=weights)
            if reads_guesses:
                answers = averaged.argmax(-1)[guessed]  # (n, B)
                batch.guesses = answers.masked_fill(labels >= 0, -1)
            yield batch


def _targets(task: MemberTask, temperature: float) -> Targets:
    return Targets(temperature, task.mean, task.weights, calibration=task.calibration)


def _place(targets: Targets, known: dict[str, Targets]) -> int:
    """Where this way of averaging is among the `known` ones, entered if it is new."""
    name = canonical(asdict(targets))
    known.setdefault(name, targets)
    return list(known).index(name)


def _kept(
    batches: Batches, each: list[Targets], num_classes: int, epochs: int, most: int
) -> KeptAverages | None:
    """The averages of all rows and views, where they take at most `most` bytes and no more work than anew."""
    source = batches.source
    if not isinstance(source, TensorSource) or source.teacher is None:
        return None
    work = len(source.inputs) * source.num_views
    if (
        4 * work * len(each) * num_classes > most
        or work > epochs * batches.steps_per_epoch * batches.batch_size
    ):
        return None
    return KeptAverages(source.teacher, len(source.inputs), source.num_views, each)


def _same_examples(tasks: list[MemberTask], data: TrainingData) -> list[list[int]]:
    """Members by what they read; one without a teacher goes with those that see its rows in its order."""
    # Where every row has a label, it makes no difference whether a member wants labelled rows only.
    whole = data.transfer is not None and bool(labelled(data.transfer.labels).all())
    groups: dict[tuple[int, bool, str | None], list[int]] = {}
    for i in sorted(range(len(tasks)), key=lambda i: not tasks[i].reads_teacher):
        task = tasks[i]
        rows = task.seed, not whole and bool(task.rows["labelled"])
        if task.reads_teacher:
            groups.setdefault((*rows, task.targets), []).append(i)
        else:
            known = next((key for key in groups if key[:2] == rows), (*rows, None))
            groups.setdefault(known, []).append(i)
    return list(groups.values())


def _stacked(inputs: list[Tensor]) -> Tensor:
    """(s, B, ...); token matrices (B, L), each cut to its longest text, at one length."""
    longest = max(inputs, key=lambda x: x.shape[-1])
    return torch.stack([pad_alike(x, longest)[0] for x in inputs])
