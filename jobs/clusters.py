"""Stage `clusters` as a Ray job: ray job submit --working-dir . -- python jobs/clusters.py CONFIG"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["clusters", *sys.argv[1:]])
