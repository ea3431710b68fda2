"""Stage `choose` as a Ray job: ray job submit --working-dir . -- python jobs/choose.py CONFIG ..."""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["choose", *sys.argv[1:]])
