"""faults: what each fault costs a run on a cluster, in time.

The runs are tests/test_job.py's: the digits pipeline as Ray jobs on three nodes of this machine (no CPU on
the head, one each on the others) that share nothing but a store that speaks S3, with MLflow on PostgreSQL.
The cluster starts once. Each fault comes once, in a job that begins at the fault's stage, and must end in the
bytes of the undisturbed one; it is compared with an undisturbed job of the same stages. Seconds are those in
which a job ran: where it ends and is submitted again, both count, with starting and finding what is there.

    python -m benchmarks faults
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Measured, benchmark, median, say

UNDISTURBED = "nothing happens"


@benchmark(
    "faults",
    "A job of the digits pipeline on a cluster through a fault against the undisturbed one (median of all)",
    "s",
    "at most",
    2.0,
)
def faults(quick: bool) -> Measured:
    wanted = "teachers and (nothing_happens or a_worker_is_killed)" if quick else "test_one_fault"
    tests = Path(__file__).parents[1] / "tests/test_job.py"
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "faults.json"
        say("faults: the tests of tests/test_job.py")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", str(tests), "-m", "cluster", "-k", wanted, "-v"],
            env={**os.environ, "FAULTS_JSON": str(results)},
            stdout=sys.stderr,
        )
        found = json.loads(results.read_text()) if results.exists() else {}
    pairs = {
        f"{name} ({stage.replace('_', ' ')})": (seconds, times[UNDISTURBED])
        for stage, times in found.items()
        for name, seconds in times.items()
        if UNDISTURBED in times and name != UNDISTURBED
    }
    if not pairs:
        raise SystemExit(
            f"the tests left nothing to compare (pytest ended with {done.returncode}); see above"
        )
    return Measured(
        median([seconds for seconds, _ in pairs.values()]),
        median([undisturbed for _, undisturbed in pairs.values()]),
        {
            "seconds_more": {name: round(seconds - alone, 1) for name, (seconds, alone) in pairs.items()},
            "seconds": found,
        },
        "a run did not end as the undisturbed one" if done.returncode else None,
    )
