"""This package: rows, the teacher's answers, a student."""

import ensemble_kd
from benchmarks.peers import our_clock
from benchmarks.peers.given import read

given = read()
our_clock.attach(given)
rows = {split: [given.arrays[f"{split}_{name}"].numpy() for name in ("inputs", "labels", "logits")]
        for split in ("train", "validation", "test")}  # fmt: skip
run = ensemble_kd.distill(
    *(tuple(rows[split][:2]) for split in ("train", "validation")),
    test=tuple(rows["test"][:2]),
    teachers={split: arrays[2] for split, arrays in rows.items()},
    student={
        "model": {"name": "mlp", "hidden": given.settings["hidden"]},
        "temperature": given.settings["temperature"],
        "alpha": given.settings["alpha"],
        "seeds": 1,
        "training": {
            "epochs": given.settings["epochs"],
            "batch_size": given.settings["batch_size"],
            "learning_rate": given.settings["learning_rate"],
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "precision": "float32",
        },
    },
    seed=given.seed,
    compute__executor="local",
    output=given.result.parent / "run",
)
given.finish(lambda inputs: ensemble_kd.load(run.folder).predict(inputs.numpy()))
