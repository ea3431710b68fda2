"""AutoGluon's distill(): its own teacher, fitted first, and its own kind of perceptron as the student."""

import pandas as pd
from autogluon.tabular import TabularPredictor

from benchmarks.peers.given import read

given = read()


def frame(split: str) -> pd.DataFrame:
    inputs = pd.DataFrame(given.arrays[f"{split}_inputs"].numpy()).add_prefix("x")
    return inputs.assign(label=given.arrays[f"{split}_labels"].numpy())


epochs, size = given.settings["epochs"], given.settings["batch_size"]
network = {"num_layers": 1, "hidden_size": given.settings["hidden"][0], "batch_size": size}
network |= {"learning_rate": given.settings["learning_rate"], "num_epochs": epochs}
predictor = TabularPredictor("label", path=str(given.result.parent / "predictor"), verbosity=0)
predictor.fit(
    frame("train"), tuning_data=frame("validation"), hyperparameters={"GBM": {"ag.num_cpus": 1}}, num_cpus=1
)
with given.clock():
    (student, *_) = predictor.distill(
        frame("train"),
        tuning_data=frame("validation"),
        hyperparameters={"NN_TORCH": network | {"ag_args_fit": {"num_cpus": 1}}},
        augment_method=None,
        verbosity=0,
    )
print(predictor.leaderboard(frame("test"), display=False)[["model", "score_test"]])
given.finish(lambda inputs: predictor.predict(frame("test"), model=student).to_numpy())
