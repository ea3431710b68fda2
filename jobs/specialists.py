"""Stage `specialists` as a Ray job: ray job submit --working-dir . -- python jobs/specialists.py CONFIG"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["specialists", *sys.argv[1:]])
