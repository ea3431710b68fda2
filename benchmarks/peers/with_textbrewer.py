"""TextBrewer with its cache in memory: the teacher runs once, batches stay what they are."""

import torch
from textbrewer import BasicDistiller, DistillationConfig, TrainingConfig
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.given import read

given = read()


class WithLoss(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, inputs, labels):
        logits = self.network(inputs)
        return logits, torch.nn.functional.cross_entropy(logits, labels)


def adaptor(batch, outputs):
    return {"logits": outputs[0], "losses": outputs[1]}


student = WithLoss(given.student())
distiller = BasicDistiller(
    TrainingConfig(device="cpu", output_dir=str(given.result.parent), log_dir=str(given.result.parent)),
    DistillationConfig(
        temperature=given.settings["temperature"],
        kd_loss_weight=given.settings["alpha"] * given.settings["temperature"] ** 2,
        hard_label_weight=1 - given.settings["alpha"],
        is_caching_logits=True,
    ),
    WithLoss(given.teacher()),
    student,
    adaptor,
    adaptor,
)
optimizer = torch.optim.AdamW(
    student.parameters(), lr=given.settings["learning_rate"], weight_decay=0.0, fused=True
)
data = TensorDataset(given.arrays["train_inputs"], given.arrays["train_labels"])
loader = DataLoader(data, given.settings["batch_size"], shuffle=True)
with given.clock(), distiller:
    distiller.train(optimizer, loader, given.settings["epochs"])
given.finish(student.network)
