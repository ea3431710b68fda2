"""The whole pipeline as a Ray job.

    ray job submit --working-dir . -- python jobs/pipeline.py CONFIG [options]

Options are those of `ensemble-kd run`; inside a job the cluster is found without --address.
"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
