"""The sweep as a Ray job.

    ray job submit --working-dir . -- python tune/sweep.py CONFIG [--space NAME|FILE] [options]

Options are those of `ensemble-kd sweep`; inside a job the cluster is found without --address.
"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
