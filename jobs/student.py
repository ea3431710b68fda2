"""Stage `student` as a Ray job: ray job submit --working-dir . -- python jobs/student.py CONFIG ..."""

import sys

from ensemble_kd.cli import app

if __name__ == "__main__":
    app(["student", *sys.argv[1:]])
