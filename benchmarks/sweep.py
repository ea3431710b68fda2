"""sweep, sweep-memory: what a sweep adds to its students' training, in time and in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import generated
from benchmarks.harness import Measured, available_cores, benchmark, fresh_processes, median, rounded, say
from benchmarks.soft_targets import MemoryWatch, _anonymous, _text
from ensemble_kd.artifacts import Identity, Manifest, finish, read_manifest
from ensemble_kd.config import Config
from ensemble_kd.data.records import SplitWriter
from ensemble_kd.data.store import ShardWriter, StoreLayout, shard_name
from ensemble_kd.stages import sweep as stage
from ensemble_kd.stages.members import members_folder
from ensemble_kd.stages.upstream import Upstream

MEMBERS = 5
LAYOUT = StoreLayout(1, MEMBERS, generated.CLASSES)


NO_TEACHERS = Manifest("teachers", "", {}, {}, summary={"source": "predictions", "members": []})
"""The soft targets are made up."""


def _write_inputs(folder: Path, info: dict[str, Any]) -> Manifest:
    """What the stage reads: all three splits in `data`, and soft targets in `store`, whose manifest it is."""
    generated.write_prepared(folder / "data", info)
    for seed, split in enumerate(("validation", "test"), start=1):
        images, labels = generated.images(info["counts"][split], seed)
        pixels = pa.py_buffer(images.reshape(-1))
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(images[0].nbytes), len(labels), [None, pixels]
        )
        writer = SplitWriter(folder / "data", split, len(labels))
        writer.add(pa.array(np.arange(len(labels))), column, labels)
        writer.close()
    store, entries = folder / "store", {}
    store.mkdir()
    rows = info["counts"]["transfer"]
    for shard, first in enumerate(range(0, rows, 8192)):
        numbers = np.arange(first, min(first + 8192, rows))
        shard_writer = ShardWriter(store / shard_name(shard), LAYOUT)
        shard_writer.write(numbers, logits=generated.member_logits(len(numbers), MEMBERS, seed=shard))
        entries[shard_name(shard)] = shard_writer.close()
    summary = {"layout": asdict(LAYOUT), "rows": rows}
    return finish(store, Identity("soft_targets", "0" * 16, {}, {}), entries, summary, known=entries)


def _sweep(
    folder: Path, run: Path, config: Config, info: dict[str, Any], receipt: Manifest
) -> dict[str, Any]:
    """The whole stage with a Ray of its own: the manifest of every student, and when things happened."""
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages.context import Console, Context
    from ensemble_kd.tracking import Tracker

    tracker = Tracker(config.tracking, folder, config.name, say)
    began = time.time()
    with Runtime(config.compute) as runtime:
        runtime.start()
        ray_started = time.time()
        context = Context(config, run, runtime, tracker, Console(say, say))
        plan = stage.plan(config, run, "data", "store")
        manifest = stage.run(
            context, plan, Upstream(folder / "data", info, (folder / "store", receipt), NO_TEACHERS)
        )
        ended = time.time()
    trials = manifest.summary["trials"]
    folders = [members_folder(run, "sweep") / m["fingerprint"] for trial in trials for m in trial["members"]]
    students = [found for place in folders if (found := read_manifest(place)) is not None]
    assert len(students) == len(trials), "a trial did not finish"
    starts = [student.created - student.summary["seconds"] for student in students]
    first, last = min(starts), max(student.created for student in students)
    return {
        "students": students,
        "stacked": max(trial["fused"] for trial in trials),
        "span": last - first,
        "ray": ray_started - began,
        "before": first - ray_started,
        "after": ended - last,
    }


# --------------------------------------------------------------------------------------------- sweep

PROCESSES = 2


def _bare_runs(runs: int, rows: int, epochs: int) -> float:
    """Seconds of so many bare runs, one after another in this process; data and start of Python left out."""
    import torch

    from benchmarks.bare import BareLoop

    torch.set_num_threads(1)
    images, _ = generated.images(rows)
    logits = torch.from_numpy(generated.member_logits(rows, MEMBERS)[:, 0])
    seconds = 0.0
    for seed in range(runs):
        torch.manual_seed(seed)
        bare = BareLoop(torch.from_numpy(images), logits, [800, 800])
        began = time.perf_counter()
        for _ in range(epochs):
            bare.epoch()
        seconds += time.perf_counter() - began
    return seconds


def _spread(runs: int, rows: int, epochs: int) -> float:
    """Seconds of the slower of two fresh processes that each do half of the runs."""
    with fresh_processes(PROCESSES) as pool:
        both = [pool.submit(_bare_runs, runs // PROCESSES, rows, epochs) for _ in range(PROCESSES)]
        return max(future.result() for future in both)


def _parts(found: dict[str, Any]) -> dict[str, float]:
    """Where the seconds of both processes went, per trial; in all they are twice the span."""
    students = found["students"]
    steps = sum(entry["seconds"] for student in students for entry in student.summary["history"])
    whole = sum(student.summary["seconds"] for student in students)
    starts = sorted(student.created - student.summary["seconds"] for student in students)
    ends = sorted(student.created for student in students)
    one_alone = starts[1] - starts[0] + ends[-1] - ends[-2]
    seconds = {
        "steps": steps,
        "evaluation, checkpoints, reports": whole - steps,
        # A manifest's seconds end before these. Tune takes some hundredths of them.
        "last predictions, weights, the way to the next trial": PROCESSES * found["span"] - whole - one_alone,
        "only one process at work, at first and at last": one_alone,
    }
    return {part: spent / len(students) for part, spent in seconds.items()}


@benchmark(
    "sweep",
    "20 trials of the mnist student on 2 cores, the baseline among them, against 20 bare runs in 2 processes",
    "s",
    "at most",
    1.25,
)
def sweep(quick: bool) -> Measured:
    """19 searched trials and the baseline on hard labels, which every sweep has: 20 students of 2 epochs.

    Ours is the whole stage as `ensemble-kd run` has it, from the first trial's start to the last one's end:
    with evaluation, checkpoints, weights and predictions, and whatever Tune takes between trials. (The first
    trial's start is known from its manifest, whose seconds end before its last predictions; so those, some
    tenths of a second, are missing.) What lies before and after is in `start_up`. Half of the bare runs come
    before it and half after, in each round.
    """
    rows, trials, rounds = (3200, 4, 1) if quick else (60_000, 20, 3)
    epochs = 2
    info = generated.info(rows)
    config = generated.config(
        student={
            "model": {"name": "mlp", "hidden": [800, 800]},
            "training": {"batch_size": 128, "learning_rate": 1e-3, "epochs": epochs},
        },
        sweep={"search": "random", "trials": trials - 1, "scheduler": "none", "concurrent_trials": PROCESSES},
        compute=generated.on_cpu(PROCESSES),
    )
    ours, reference, found = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        receipt = _write_inputs(folder, info)
        for turn in range(rounds):
            before = _spread(trials // 2, rows, epochs)
            found.append(_sweep(folder, folder / f"run-{turn}", config, info, receipt))
            after = _spread(trials // 2, rows, epochs)
            assert len(found[-1]["students"]) == trials
            ours.append(found[-1]["span"])
            reference.append(before + after)
            say(f"round {turn + 1}: {ours[-1]:.1f} s, bare {before:.1f} + {after:.1f} s")
    parts = [_parts(one) for one in found]
    stacked = max(one["stacked"] for one in found)
    detail = {
        "model": "784-800-800-10, batch 128; temperature and alpha drawn at random",
        "rows": rows,
        "epochs": epochs,
        "members": MEMBERS,
        "evaluated_rows": generated.HELD_OUT,
        "trials": f"{trials}: {trials - 1} searched and the baseline on hard labels",
        "fuse": f"auto, {stacked} stacked" if stacked > 1 else "auto, which chose not to stack",
        "ours": rounded(ours, 1),
        "reference": rounded(reference, 1),
        "seconds_per_trial": {part: round(median([p[part] for p in parts]), 3) for part in parts[0]},
        "start_up": {
            "Ray": rounded([one["ray"] for one in found], 1),
            "data, Tune, processes, choice of fuse": rounded([one["before"] for one in found], 1),
            "after the last trial": rounded([one["after"] for one in found], 1),
        },
        "cores": available_cores(),
    }
    return Measured(median(ours), median(reference), detail)


# -------------------------------------------------------------------------------------- sweep-memory

TRIAL = "ray::Students"
"""What Ray calls the process of a trial."""


class TrialWatch(MemoryWatch):
    """Each trial's own memory at its peak, and the memory that this process and all below it share.

    Own: anonymous resident pages. Shared: pages of shared memory, which is Ray's object store, each divided
    by the number of processes that have it mapped, so that their sum counts it once. Of that sum the median:
    processes are read one after another, and a page that one maps meanwhile is counted too often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_once = 0
        self.private: dict[str, float] = {}
        """Bytes by process number."""
        self.shared: list[float] = []
        """One for each sample with a trial in it."""
        self.mapped = 0.0
        """The same pages as the trials' processes have them, counted anew in each."""

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            family = _family()
            trials = [process for process in family if _text(process / "cmdline").startswith(TRIAL)]
            for process in trials:
                self.private[process.name] = max(self.private.get(process.name, 0.0), _anonymous(process))
            if trials:
                self.shared.append(_field(family, "smaps_rollup", "Pss_Shmem"))
            self.mapped = max(self.mapped, _field(trials, "status", "RssShmem"))
            self.at_once = max(self.at_once, len(trials))


def _family() -> list[Path]:
    """This process and all that descend from it: other sweeps may run on the machine."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        lines = _text(process / "status").splitlines()
        parents[process.name] = next((line.split()[1] for line in lines if line.startswith("PPid:")), "0")
    found = [Path("/proc/self").resolve().name]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return [Path("/proc") / number for number in found]


def _field(processes: Iterable[Path], file: str, name: str) -> float:
    """Bytes, summed over the processes, of a line such as `Pss_Shmem:  1234 kB`."""
    lines = (line for process in processes for line in _text(process / file).splitlines())
    return sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _watched(
    name: str, concurrent: int, epochs: int, info: dict[str, Any], receipt: Manifest
) -> dict[str, Any]:
    """A sweep in this process and its Ray; peak memory in bytes."""
    folder = Path(name)
    config = generated.config(
        student={
            "model": {"name": "mlp", "hidden": [16]},
            "training": {"batch_size": 512, "learning_rate": 1e-3, "epochs": epochs},
        },
        # Two trials for each process, so that none sees the baseline alone, which needs no soft targets.
        # Stacked students would share a process and so show nothing.
        sweep={
            "search": "random",
            "trials": 2 * concurrent - 1,
            "scheduler": "none",
            "concurrent_trials": concurrent,
            "fuse": 1,
        },
        compute={**generated.on_cpu(concurrent), "cpus_per_worker": 0.25},
    )
    watch = TrialWatch()
    with watch:
        seconds = _sweep(folder, folder / f"run-{concurrent}", config, info, receipt)["span"]
    return {
        "private": sorted(watch.private.values()),
        "shared": median(watch.shared or [0.0]),
        "mapped": watch.mapped,
        "at_once": watch.at_once,
        "samples": len(watch.shared),
        "seconds": seconds,
    }


@benchmark(
    "sweep-memory",
    "memory that each further concurrent trial adds, against the bytes of the transfer set",
    "MB",
    "at most",
    0.5,
)
def sweep_memory(quick: bool) -> Measured:
    """Sweeps with 1, 2 and 4 trials at a time, each in a fresh process with its own Ray.

    Counted are the trials' own memory, the sum of their peaks, and what is shared. Own memory is what torch
    and Ray take in any process, since the student is tiny: 784-16-10.
    """
    from ensemble_kd.stages.training_data import bytes_in_memory

    # Trials long enough to be at work together, though their processes do not start at one moment.
    rows, epochs, counts = (20_000, 4, (1, 2)) if quick else (1_100_000, 2, (1, 2, 4))
    info = generated.info(rows)
    size = bytes_in_memory(info, LAYOUT)
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        receipt = _write_inputs(Path(name), info)
        say(f"{rows} rows written")
        for n in counts:
            with fresh_processes(1) as pool:
                found[n] = pool.submit(_watched, name, n, epochs, info, receipt).result()
            own, shared = sum(found[n]["private"]) / 1e6, found[n]["shared"] / 1e6
            say(f"{n} at a time: {own:.0f} MB of their own, {shared:.0f} MB shared")
    held = {n: sum(one["private"]) + one["shared"] for n, one in found.items()}
    least, most = counts[0], counts[-1]
    added = (held[most] - held[least]) / (most - least)
    seen = {n: (len(one["private"]), one["at_once"]) for n, one in found.items()}
    wrong = [f"{n} at a time: {x[1]} in {x[0]} processes" for n, x in seen.items() if x != (n, n)]
    detail = {
        "rows": rows,
        "epochs": epochs,
        "members": MEMBERS,
        "model": "784-16-10, batch 512",
        "transfer_set (MB)": round(size / 1e6, 1),
        "own_of_each_trial (MB)": {n: rounded([x / 1e6 for x in f["private"]], 0) for n, f in found.items()},
        "shared (MB)": {n: round(one["shared"] / 1e6) for n, one in found.items()},
        "shared_as_each_has_it_mapped (MB)": {n: round(one["mapped"] / 1e6) for n, one in found.items()},
        "held (MB)": {n: round(size / 1e6) for n, size in held.items()},
        "seconds": {n: round(one["seconds"], 1) for n, one in found.items()},
        "samples": {n: one["samples"] for n, one in found.items()},
    }
    return Measured(added / 1e6, size / 1e6, detail, "; ".join(wrong) or None)
