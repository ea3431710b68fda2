"""What a run found: report.json, one self-contained report.html, and the model card. Pure functions."""

from ensemble_kd.report.build import ReportInputs, System, build_report
from ensemble_kd.report.card import model_card
from ensemble_kd.report.page import write_report
from ensemble_kd.report.plots import histories_of, plot_arrays

__all__ = [
    "ReportInputs",
    "System",
    "build_report",
    "histories_of",
    "model_card",
    "plot_arrays",
    "write_report",
]
