"""Stage `student` as a Ray job: ray job submit --working-dir . -- python jobs/student.py CONFIG ..."""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["student", *sys.argv[1:]])
