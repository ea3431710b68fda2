"""T, alpha and pseudo as `auto`: what is tried, and what is wrong with asking for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ensemble_kd import space
from ensemble_kd.config.student import AUTO_FIELDS, StudentConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class Point(NamedTuple):
    """One choice of the three numbers."""

    temperature: float
    alpha: float
    pseudo: float

    def __str__(self) -> str:
        if self.alpha == 0 == self.pseudo:
            return "hard labels alone"
        if self.alpha == 0:
            return "pseudo-labels alone" if self.pseudo == 1 else f"pseudo-labels at {self.pseudo:g}"
        text = f"T = {self.temperature:g}, alpha = {self.alpha:g}"
        return f"{text}, pseudo = {self.pseudo:g}" if self.pseudo else text


# Where rows lack labels, true labels are few: soft targets at every T, pseudo-labels, and half of each, in
# which labelled rows have half their label. The first is what stands unless another is better by more than
# noise: half of each at T = 1, teachers as sure as they are right. It lies between two that differ by points,
# now this way and now that.
UNLABELLED = [Point(1, 0.5, 0.5), *(Point(t, 1, 0) for t in (0.5, 1, 2, 4, 8)), Point(1, 0, 1)]
UNLABELLED += [Point(t, 0.5, 0.5) for t in (2, 4, 8)]
# Where every row has a label there is nothing to guess, and alpha counts. Teachers are surer of rows that
# they were trained on than calibration on other rows can know, hence T = 2 to begin with. Labels alone are
# the answer where the ensemble has nothing to give.
LABELLED = [Point(2, 1, 0), *(Point(t, 1, 0) for t in (0.5, 1, 4, 8))]
LABELLED += [*(Point(t, 0.5, 0) for t in (1, 2, 4, 8)), Point(1, 0, 0)]
# Where further rows are made up, teachers answer rows that none of them was trained on, as sure as they are
# right; and labels are so few among them that alpha makes no difference.
MADE_UP = [*(Point(t, 1, 0) for t in (1, 0.5, 2, 4, 8)), Point(1, 0, 0)]
# Of students that are trained one by one.
FEW_UNLABELLED = [Point(1, 0.5, 0.5), *(Point(t, 1, 0) for t in (0.5, 1, 2)), Point(1, 0, 1)]
FEW_UNLABELLED += [Point(2, 0.5, 0.5)]
FEW_LABELLED = [Point(2, 1, 0), Point(1, 1, 0), Point(4, 1, 0), Point(8, 1, 0), Point(4, 0.5, 0)]
FEW_LABELLED += [Point(1, 0, 0)]
FEW_MADE_UP = [Point(1, 1, 0), Point(2, 1, 0), Point(4, 1, 0), Point(1, 0, 0)]


def points(
    student: StudentConfig, unlabelled: bool, few: bool, softened: bool, made_up: bool = False
) -> list[Point]:
    """What is tried, the one that stands unless another is better first; numbers that are given stay.

    `unlabelled`: some rows lack labels. `few`: of students that are trained one by one. `softened`: the soft
    loss has a temperature. `made_up`: `data.augment.munge` makes up rows.
    """
    grid = (FEW_UNLABELLED, UNLABELLED) if unlabelled else (FEW_LABELLED, LABELLED)
    if made_up and not unlabelled:
        grid = (FEW_MADE_UP, MADE_UP)
    given = {name: getattr(student, name) for name in AUTO_FIELDS if name not in student.auto}
    found: dict[Any, Point] = {}
    for point in grid[0] if few else grid[1]:
        point = point._replace(**given)
        if not unlabelled:
            point = point._replace(pseudo=0)
        if unlabelled and point.alpha == 0 == point.pseudo:  # of most rows nothing would be learned
            continue
        point = Point(*map(float, point))  # as the configuration has them: they are in fingerprints
        same = point if softened and point.alpha > 0 else point._replace(temperature=1)
        found.setdefault(same, point)
    return list(found.values())


def untried(unlabelled: bool, made_up: bool) -> Point:
    """What stands where there is no time to try anything: the first of `points`."""
    return (UNLABELLED if unlabelled else MADE_UP if made_up else LABELLED)[0]


def _swept(config: Config) -> set[str]:
    """Fields of the student that the sweep searches."""
    return space.searched(config.sweep.space) if config.sweep is not None else set()


def to_choose(config: Config) -> tuple[str, ...]:
    """Fields of the student that are `auto` and that no sweep searches."""
    swept = _swept(config)
    return tuple(name for name in config.student.auto if name not in swept)


def settled(config: Config) -> Config:
    """The configuration with a number in place of every `auto`: to check it, and to try what is beside it."""
    if not config.student.auto:
        return config
    numbers = config.student.numbers._asdict()
    return config.model_copy(update={"student": config.student.model_copy(update=numbers)})


def auto_problems(config: Config) -> list[str]:
    student, problems = config.student, []
    if config.sweep is not None:
        problems += [
            f"sweep.space.{name}: searches numbers, and 'auto' is none; leave it out of the space, or set "
            f"student.{name}=auto without searching it"
            for name in AUTO_FIELDS
            if "auto" in str(config.sweep.space.get(name, config.sweep.space.get(f"student.{name}", "")))
        ]
    chosen = to_choose(config)
    given = {"alpha": student.alpha_schedule, "temperature": student.temperature_schedule}
    scheduled = [name for name, schedule in given.items() if schedule is not None]
    problems += [
        f"student.{name}: 'auto' is chosen for numbers, and student.{other} is a schedule; give a number "
        "here or there"
        for other in scheduled
        for name in chosen
    ]
    swept = _swept(config)
    problems += [
        f"sweep.space.{name}: student.{name} is a schedule, which the search would replace; leave it out of "
        f"the space, or give student.{name} a number"
        for name in scheduled
        if name in swept
    ]
    if chosen and student.objective is None:
        problems += [
            f"student.{name}: 'auto' is about the soft loss, and student.objective is null; give a number"
            for name in chosen
        ]
    if chosen and student.training.epochs == 0:
        problems.append(
            "student.training.epochs: 0 trains nothing to choose by; give numbers in place of auto"
        )
    if "pseudo" in chosen and student.online.logits:
        problems.append(
            "student.pseudo: 'auto' reads answers that the store holds, but with student.online.logits it is "
            "not read; set one of them to its default"
        )
    if "pseudo" in student.auto and student.chained:
        problems.append(
            "student.pseudo: 'auto' weighs the ensemble's answers, and in a chain a student learns from the "
            "one before; set it to 0, or leave student.assistants and student.generations out"
        )
    return problems
