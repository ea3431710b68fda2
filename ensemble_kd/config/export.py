"""The `export` and `report` blocks; and what is wrong with them."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from ensemble_kd.config.base import Block
from ensemble_kd.config.models import TransformerConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class ReferenceRow(Block):
    """Published figures of one system."""

    name: str
    """What it is called."""
    values: dict[str, float | int | str]
    """Its figures by column."""


class ReportConfig(Block):
    """The report."""

    reference: list[ReferenceRow] = []
    """Rows of published figures to print beside ours."""


ExportForm = Literal["onnx", "int8", "program", "huggingface", "mlflow"]


class ExportConfig(Block):
    """The forms that the shipped student is handed over in."""

    forms: list[ExportForm] = Field(["onnx", "int8"], min_length=1)
    """`onnx`, `int8` (ONNX with int8 weights), `program` (torch.export), `huggingface` (transformers students
    only), `mlflow` (a pyfunc model that runs the ONNX graph)."""
    tolerance: float = Field(1e-3, gt=0)
    """Largest difference of a logit from the student's on validation rows, of values in standard deviations
    of the train labels; int8 is judged by accuracy."""
    max_accuracy_loss: float = Field(0.5, ge=0)
    """Points of validation accuracy that int8 may lose; of values, of the variance explained (R²)."""
    int8: Literal["auto", "dynamic", "static"] = "auto"
    """How ranges of activations are found: as batches pass, or from `calibration_rows`; `auto` tries both and
    keeps the faster of those that are good enough."""
    calibration_rows: int = Field(512, ge=1)
    """Validation rows that a static int8 graph takes its ranges from."""
    calibrate: bool = False
    """Whether a temperature for the logits is fitted on validation rows (arXiv 1706.04599). Of classes alone:
    a value says nothing of how sure it is."""
    precision: float | None = Field(None, gt=0, lt=1)
    """Share of answers that are to be right: fits the confidence from which on the model answers."""
    register_as: str | None = None
    """Name under which the mlflow form is registered at the tracking server."""

    @field_validator("forms")
    @classmethod
    def _once(cls, forms: list[str]) -> list[str]:
        if len(set(forms)) != len(forms):
            raise ValueError(f"name each form once, got {', '.join(forms)}")
        return forms

    @model_validator(mode="after")
    def _registered(self) -> ExportConfig:
        if self.register_as is not None and "mlflow" not in self.forms:
            raise ValueError(f"register_as needs the form mlflow; forms are {', '.join(self.forms)}, add it")
        return self


def form_problems(config: Config) -> list[str]:
    """Forms of `export` that this kind of student does not have."""
    if config.export is None or "huggingface" not in config.export.forms:
        return []
    student, others = config.student, [form for form in typing.get_args(ExportForm) if form != "huggingface"]
    if not isinstance(student.model, TransformerConfig):
        return [
            "export.forms: huggingface is for students that are models of transformers, and student.model is "
            f"{student.model.name!r}; it can have {', '.join(others)}"
        ]
    if student.quantization is not None and student.quantization.activations:
        return [
            "export.forms: huggingface, but this student rounds the inputs of its layers, which those of "
            "transformers do not; set student.quantization.activations=false, or use "
            f"{', '.join(others)}"
        ]
    return []
