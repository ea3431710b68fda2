"""The configuration as typed models: every field with its meaning, unit and range.

`load_config` reads one YAML file, applies `--set` overrides and reports *all* problems at once, each
with the path of its field. One file an owner: its block, and what can be wrong with it. Nothing here
imports torch or Ray, so that `check` and `schema` answer at once.
"""

from __future__ import annotations

from ensemble_kd.config.auto import Point, points, settled
from ensemble_kd.config.between_blocks import cross_field_problems
from ensemble_kd.config.class_weights import (
    balanced_weights,
    class_name_problems,
    has_class_weights,
    with_class_weights,
)
from ensemble_kd.config.compute import ComputeConfig, TrackingConfig
from ensemble_kd.config.data import AugmentConfig, DataConfig, TextAugmentConfig, TextConfig
from ensemble_kd.config.data_files import ColumnsConfig, CsvConfig
from ensemble_kd.config.epochs import specialist_training, unresolved, with_epochs
from ensemble_kd.config.export import ExportConfig, ExportForm
from ensemble_kd.config.image_models import CNNConfig, MLPConfig, NetworkConfig, WideShallowConfig
from ensemble_kd.config.load import json_schema, load_config, read_config, validate
from ensemble_kd.config.models import (
    NETWORKS,
    CustomModelConfig,
    ModelConfig,
    TransformerConfig,
    TreesConfig,
)
from ensemble_kd.config.overrides import apply_override
from ensemble_kd.config.phases import CorpusConfig, OnlineConfig, PhaseConfig
from ensemble_kd.config.quantization import QuantizationConfig
from ensemble_kd.config.recipes import recipe_paths, space_paths
from ensemble_kd.config.resnet import ResNetConfig
from ensemble_kd.config.run import Config, text_source
from ensemble_kd.config.specialists import ClustersConfig, SpecialistsConfig
from ensemble_kd.config.student import StudentConfig, student_blocks, student_models
from ensemble_kd.config.sweep import SweepConfig, corner_problems
from ensemble_kd.config.teacher_checks import numbers_only_problems
from ensemble_kd.config.teachers import PredictionsConfig, member_settings, num_teachers, variant_of, variants
from ensemble_kd.config.text_models import BagConfig, BiLSTMConfig, TextCNNConfig
from ensemble_kd.config.training import TrainingConfig

__all__ = [
    "NETWORKS",
    "AugmentConfig",
    "BagConfig",
    "BiLSTMConfig",
    "CNNConfig",
    "ClustersConfig",
    "ColumnsConfig",
    "ComputeConfig",
    "Config",
    "CorpusConfig",
    "CsvConfig",
    "CustomModelConfig",
    "DataConfig",
    "ExportConfig",
    "ExportForm",
    "MLPConfig",
    "ModelConfig",
    "NetworkConfig",
    "OnlineConfig",
    "PhaseConfig",
    "Point",
    "PredictionsConfig",
    "QuantizationConfig",
    "ResNetConfig",
    "SpecialistsConfig",
    "StudentConfig",
    "SweepConfig",
    "TextAugmentConfig",
    "TextCNNConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TransformerConfig",
    "TreesConfig",
    "WideShallowConfig",
    "apply_override",
    "balanced_weights",
    "class_name_problems",
    "corner_problems",
    "cross_field_problems",
    "has_class_weights",
    "json_schema",
    "load_config",
    "member_settings",
    "num_teachers",
    "numbers_only_problems",
    "points",
    "read_config",
    "recipe_paths",
    "settled",
    "space_paths",
    "specialist_training",
    "student_blocks",
    "student_models",
    "text_source",
    "unresolved",
    "validate",
    "variant_of",
    "variants",
    "with_class_weights",
    "with_epochs",
]
