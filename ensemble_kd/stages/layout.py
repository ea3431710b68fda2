"""How the store of soft targets is laid out for a configuration and a data set."""

from __future__ import annotations

from typing import Any

from ensemble_kd.config import Config
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages.kept import kept_of
from ensemble_kd.targets import target_in


def layout_of(config: Config, info: dict[str, Any], members: int) -> StoreLayout:
    """Raises ConfigError where top_k keeps as much as there is, or `keep` does not fit the teachers."""
    top_k = config.soft_targets.top_k
    if top_k is not None and top_k >= info["num_classes"]:
        raise ConfigError(
            f"soft_targets.top_k: {top_k} of {info['num_classes']} classes saves nothing; "
            "lower it, or set it to null"
        )
    views, classes = config.soft_targets.views, info["num_classes"]
    values = not target_in(info).classified
    return StoreLayout(views, members, classes, top_k, kept_of(config, info), values)
