"""Stage `gap` as a Ray job: ray job submit --working-dir . -- python jobs/gap.py CONFIG"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["gap", *sys.argv[1:]])
