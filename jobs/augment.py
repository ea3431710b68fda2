"""Stage `augment` as a Ray job: ray job submit --working-dir . -- python jobs/augment.py CONFIG ..."""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["augment", *sys.argv[1:]])
