"""The sweep as a job: `ray job submit -- python tune/sweep.py CONFIG [--space NAME] [--run-dir FOLDER]`.

Runs on the cluster that the job belongs to. The run folder must be one that every node sees.
"""

import sys

from ensemble_kd.cli import app

if __name__ == "__main__":
    app(["sweep", *sys.argv[1:], "--address", "auto"], prog_name="ensemble-kd")
