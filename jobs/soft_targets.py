"""Stage `soft-targets` as a Ray job: ray job submit --working-dir . -- python jobs/soft_targets.py CONFIG"""

import sys

from ensemble_kd.cli import app

if __name__ == "__main__":
    app(["soft-targets", *sys.argv[1:]])
