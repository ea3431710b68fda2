"""Soft targets of a run in training loops that are not ours: plain torch, transformers.Trainer, Lightning."""

from ensemble_kd.integrations.soft_targets import SoftTargetLoss, SoftTargets

__all__ = ["SoftTargetLoss", "SoftTargets"]
