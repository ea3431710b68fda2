"""Stage `report` as a Ray job: ray job submit --working-dir . -- python jobs/report.py CONFIG ..."""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
