"""Stage `combined-targets` as a Ray job: python jobs/combined_targets.py CONFIG"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["combined-targets", *sys.argv[1:]])
