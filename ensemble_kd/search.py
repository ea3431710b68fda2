"""Optuna behind the sweep: what to try next, and which settings mattered.

Optuna and Ray are imported where they are used: importing this module costs nothing.
"""

from __future__ import annotations

import json
from typing import Any

from ensemble_kd.space import Choice, Dimension
from ensemble_kd.train.trials import Trial

LEAST_FOR_IMPORTANCE = 4
"""Finished trials below which nothing is said about importances."""


class Search:
    """Proposals by Optuna through Ray Tune's searcher, told how each ended."""

    def __init__(self, space: dict[str, Dimension], kind: str, seed: int, metric: str, sign: int) -> None:
        """`kind` is tpe or random; `sign` is 1 where more of `metric` is better, else -1."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler: Any = optuna.samplers.RandomSampler(seed=seed)
        if kind == "tpe":
            # Trials that still run count as bad ones: without it their neighbours are proposed again.
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True)
        self.space, self.metric, self.sign = space, metric, sign
        self.optuna = OptunaSearch(distributions(space), metric="objective", mode="max", sampler=sampler)
        self.asked = 0
        self.open: dict[str, str] = {}
        """Optuna's number of a proposal that has not been answered, by the trial's name."""

    def propose(self) -> tuple[str, dict[str, Any]]:
        """A number to answer with, and the value of each field."""
        self.asked += 1
        number = str(self.asked)
        return number, decoded(self.optuna.suggest(number), self.space)

    def accept(self, number: str, trial: Trial) -> None:
        """The proposal is tried as `trial`."""
        self.open[trial.name] = number

    def refuse(self, number: str) -> None:
        """The proposal cannot be tried."""
        self.optuna.on_trial_complete(number, None, error=True)

    def tell(self, trial: Trial, number: str | None = None) -> None:
        """How a trial ended; one that an earlier run tried, or another proposal (`number`) asks for again."""
        number = number or self.open.pop(trial.name, None)
        value = trial.values.get(self.metric) if trial.state in ("finished", "stopped") else None
        value = None if value is None else self.sign * value
        if number:
            result = None if value is None else {"objective": value}
            self.optuna.on_trial_complete(number, result, error=value is None)
        elif value is not None:
            self.optuna.add_evaluated_point(encoded(trial.parameters, self.space), value)


def distributions(space: dict[str, Dimension]) -> dict[str, Any]:
    """The space as Optuna has it; choices as JSON, since Optuna takes no lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for path, dimension in space.items():
        if isinstance(dimension, Choice):
            found[path] = CategoricalDistribution([json.dumps(value) for value in dimension.values])
        elif dimension.kind in ("integers", "logintegers"):
            low, high = int(dimension.low), int(dimension.high)
            found[path] = IntDistribution(low, high, log=dimension.kind == "logintegers")
        else:
            found[path] = FloatDistribution(dimension.low, dimension.high, log=dimension.kind == "loguniform")
    return found


def encoded(parameters: dict[str, Any], space: dict[str, Dimension]) -> dict[str, Any]:
    """Values of `student`'s fields as Optuna has them."""
    return {
        path: json.dumps(value) if isinstance(space[path], Choice) else value
        for path, value in parameters.items()
    }


def decoded(parameters: dict[str, Any], space: dict[str, Dimension]) -> dict[str, Any]:
    """The inverse of `encoded`, in the space's order."""
    return {
        path: json.loads(parameters[path]) if isinstance(space[path], Choice) else parameters[path]
        for path in space
    }


def importances(trials: list[Trial], space: dict[str, Dimension], metric: str, sign: int) -> dict[str, float]:
    """Share of the metric's variance that each setting explains, over finished trials, most important first.

    fANOVA, Hutter, Hoos, Leyton-Brown, ICML 2014. Empty where there are too few trials, or all are alike.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if sign > 0 else "minimize")
    for trial in trials:
        if trial.kind == "searched" and trial.state == "finished":
            study.add_trial(
                optuna.trial.create_trial(
                    params=encoded(trial.parameters, space),
                    distributions=distributions(space),
                    value=trial.values[metric],
                )
            )
    values = {trial.value for trial in study.trials}
    if len(study.trials) < LEAST_FOR_IMPORTANCE or len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}
