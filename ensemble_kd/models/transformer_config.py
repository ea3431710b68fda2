"""Configurations of the transformers library: read from a source, made of fields, and as JSON again."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ensemble_kd.config import TransformerConfig
from ensemble_kd.errors import ConfigError


def pretrained_config(source: str, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of a folder or hub name. Raises ConfigError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        hint = "; set trust_remote_code: true if you trust it" if "trust_remote_code" in str(error) else ""
        if source.isidentifier() and find_spec(source) is not None:  # a package's name alone
            hint += f"; it is an installed package: say which of its folders, as in package:{source}/model"
        raise ConfigError(
            f"source: {source!r} is no transformers model that can be read "
            f"({str(error).strip().splitlines()[0][:160]}){hint}"
        ) from error


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a transformers configuration that say how the network is built, as JSON."""
    found: dict[str, Any] = config.to_diff_dict()
    for name in (
        "_name_or_path",
        "architectures",
        "dtype",
        "gradient_checkpointing",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ):
        found.pop(name, None)
    known = _fields(config.model_type)  # files of older versions hold fields that nothing reads any more
    return {k: v for k, v in found.items() if k in known} | {"model_type": config.model_type}


def config_of(model: TransformerConfig) -> Any:
    """The transformers configuration that a model's settings describe. Raises ConfigError."""
    if not model.source:
        return make_config(model.architecture)
    found = pretrained_config(model.source, model.trust_remote_code)
    if not comes_with_code(found):
        return make_config(model.architecture, settings_of(found))
    for name, value in model.architecture.items():
        setattr(found, name, value)
    return found


def comes_with_code(config: Any) -> bool:
    """Whether transformers itself knows no such type: its code lies with the source."""
    from transformers import CONFIG_MAPPING

    return config.model_type not in CONFIG_MAPPING


def _fields(kind: str) -> set[str]:
    """Names of the fields of transformers' configuration of a type."""
    from transformers import CONFIG_MAPPING

    usual = CONFIG_MAPPING[kind]()
    return {*usual.to_dict(), *getattr(usual, "attribute_map", {})}


def make_config(architecture: dict[str, Any], base: dict[str, Any] | None = None) -> Any:
    """A transformers configuration from its fields, on top of `base`.

    Raises ConfigError for an unknown type, unknown fields, and values that transformers refuses.
    """
    from transformers import CONFIG_MAPPING

    fields = {**(base or {}), **architecture}
    kind = fields.pop("model_type", None)
    if kind is None:
        raise ConfigError(
            "architecture.model_type: missing; for example bert, distilbert, electra, vit, resnet"
        )
    if kind not in CONFIG_MAPPING:
        from difflib import get_close_matches

        close = get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"architecture.model_type: transformers knows no {kind!r}{hint}")
    unknown = sorted(set(architecture) - _fields(kind) - {"model_type"})
    if unknown:
        raise ConfigError(
            f"architecture: {', '.join(unknown)}: no field of transformers' {kind!r} configuration"
        )
    try:
        return CONFIG_MAPPING[kind](**fields)
    except Exception as error:  # the library's checks raise errors of many kinds
        raise ConfigError(f"architecture: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def with_dropout(config: Any, dropout: float | None) -> Any:
    """The configuration with every probability of dropping set; as it is for None."""
    if dropout is not None:
        for name in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "classifier_dropout_prob",
            "dropout",
            "attention_dropout",
            "seq_classif_dropout",
        ):
            if hasattr(config, name):
                setattr(config, name, dropout)
    return config
