"""What can go wrong, in three kinds: the user's configuration or input, an artefact, a training run.

Every message says what is wrong, what was found, and what to do about it. What was found may be an address
with a password in it, which the message masks.
"""

from dataclasses import dataclass

from ensemble_kd.redact import redacted


@dataclass(frozen=True)
class Problem:
    """What is wrong with one setting; as text the line that users read."""

    path: str
    """Of the field, as in `student.training.epochs`."""
    message: str
    """What was found, and what to do about it."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class EnsembleKDError(Exception):
    """Base of the errors that this package raises on purpose. Exit code 1."""

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(redacted(text))


class ProblemsError(EnsembleKDError):
    """Several problems found together; `problems` holds one line each."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = redacted([problems] if isinstance(problems, str) else list(problems))
        super().__init__("\n".join(self.problems))


class ConfigError(ProblemsError):
    """The configuration is wrong. Each line starts with the path of the field. Exit code 2."""

    exit_code = 2


class InputError(ProblemsError):
    """The user's data, predictions or model folder cannot be used. Exit code 2."""

    exit_code = 2


class ArtifactError(EnsembleKDError):
    """A stage's output is missing, truncated, corrupt or belongs to other inputs."""


class TrainingError(EnsembleKDError):
    """A member could not be trained: a loss that is not finite, or workers that keep dying."""


class NoGapError(EnsembleKDError):
    """The ensemble is not shown to know more than the student, and the run asks for that. Exit code 3."""

    exit_code = 3


class ExportError(ProblemsError):
    """A form of the model could not be made, or does not give what the student gives."""


class StoppedError(EnsembleKDError):
    """The run was asked to leave (SIGTERM); the same command goes on where it stands. Exit code 143."""

    exit_code = 143
