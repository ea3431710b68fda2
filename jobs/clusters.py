"""Stage `clusters` as a Ray job: ray job submit --working-dir . -- python jobs/clusters.py CONFIG"""

import sys

from ensemble_kd.cli import app

if __name__ == "__main__":
    app(["clusters", *sys.argv[1:]])
