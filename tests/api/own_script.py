"""A script as people write it: the network stands in it. Started as `python own_script.py RUN EXECUTOR`."""

import sys

import torch.nn as nn
from sklearn.datasets import load_digits
from torch.nn.functional import relu

import ensemble_kd

WIDTHS = {"first": 24}


def activation(x):
    return relu(x)


class Base(nn.Module):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.first = nn.Linear(input_shape[0], WIDTHS["first"])
        self.last = nn.Linear(WIDTHS["first"], num_classes)


class Net(Base):
    def forward(self, x):
        return self.last(activation(self.first(x)))


def main(folder: str, executor: str) -> None:
    X, y = load_digits(return_X_y=True)
    small = {"epochs": 2}
    run = ensemble_kd.distill(
        (X[:1200], y[:1200]),
        test=(X[1200:], y[1200:]),
        teachers=[Net, Net],
        student={"model": {"name": "custom", "callable": Net}, "training": small, "seeds": 1, "pseudo": 0},
        teachers__training=small,
        student__temperature=2,
        student__alpha=0.9,
        output=folder,
        compute__executor=executor,
        tracking__enabled=False,
        progress=False,
    )
    print(run.settings["student"]["model"]["callable"])
    print(",".join(map(str, ensemble_kd.load(run.folder).predict(X[:50]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
