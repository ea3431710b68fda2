"""Stage `soft-targets` as a Ray job: ray job submit --working-dir . -- python jobs/soft_targets.py CONFIG"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["soft-targets", *sys.argv[1:]])
