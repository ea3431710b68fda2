"""This package on texts: a table of word vectors that starts from MiniLM."""

import ensemble_kd
from benchmarks.peers import our_clock
from benchmarks.peers.given import read

given = read()
our_clock.attach(given)
rows = {split: [given.arrays[f"{split}_{name}"] for name in ("inputs", "labels", "logits")]
        for split in ("train", "validation", "test")}  # fmt: skip
run = ensemble_kd.distill(
    *((rows[split][0], rows[split][1].numpy()) for split in ("train", "validation")),
    test=(rows["test"][0], rows["test"][1].numpy()),
    teachers={split: arrays[2].numpy() for split, arrays in rows.items()},
    source=given.settings["source"],
    student={
        "model": {"name": "bag", "embedding": given.settings["width"], "start": "static_embedding"},
        "temperature": given.settings["temperature"],
        "alpha": given.settings["alpha"],
        "pseudo": 0,
        "seeds": 1,
        "training": {
            "epochs": given.settings["table_epochs"],
            "batch_size": given.settings["batch_size"],
            "learning_rate": 2e-3,
        },
    },
    seed=given.seed,
    compute__executor="local",
    output=given.result.parent / "run",
)
given.finish(ensemble_kd.load(run.folder).predict)
