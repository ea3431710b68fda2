"""Stage `teachers` as a Ray job: ray job submit --working-dir . -- python jobs/teachers.py CONFIG ..."""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["teachers", *sys.argv[1:]])
