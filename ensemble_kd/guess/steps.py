"""How long networks train: batches that the rows fill, and the epochs that `auto` comes to."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ensemble_kd.config import Config, DataConfig, with_epochs
from ensemble_kd.config.readable import readable
from ensemble_kd.config.student import StudentConfig
from ensemble_kd.config.teachers import TeachersConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.guess.counts import Rows


def epochs_of(raw: dict[str, Any], rows: Rows) -> tuple[int, int]:
    """Epochs of teachers and of students with these settings on so many rows. Raises ConfigError."""
    teachers, student = raw["teachers"]["training"]["epochs"], raw["student"]["training"]["epochs"]
    if "auto" not in (teachers, student):
        return teachers, student
    blocks: dict[str, Any] = {"data": DataConfig(target=raw["data"].get("target") or "class")}
    for name, kind in (("teachers", TeachersConfig), ("student", StudentConfig)):
        try:
            blocks[name] = kind.model_validate(raw[name])
        except ValidationError as error:
            raise ConfigError(list(map(str, readable(error, kind, prefix=name)))) from error
    config = Config.model_construct(**blocks)
    counts = {"transfer": rows.transfer, "labelled": rows.labelled, "validation": rows.validation}
    found = with_epochs(config, counts)
    return found.teachers.training.num_epochs, found.student.training.num_epochs


def batch_of(wanted: int, rows: int) -> int:
    """The recipe's batch size, or a power of 2 that leaves eight steps an epoch."""
    size = wanted
    while size > 4 and size * 8 > rows:
        size //= 2
    return max(1, min(size, rows))
