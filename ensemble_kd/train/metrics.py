"""Metrics by their former address; they live in `ensemble_kd.targets.metrics`."""

from ensemble_kd.targets.metrics import (
    class_means as class_means,
)
from ensemble_kd.targets.metrics import (
    classification_metrics as classification_metrics,
)
from ensemble_kd.targets.metrics import (
    confusion_matrix as confusion_matrix,
)
from ensemble_kd.targets.metrics import (
    expected_calibration_error as expected_calibration_error,
)
from ensemble_kd.targets.metrics import (
    log_softmax as log_softmax,
)
from ensemble_kd.targets.metrics import (
    regression_metrics as regression_metrics,
)
from ensemble_kd.targets.metrics import (
    reliability_bins as reliability_bins,
)
