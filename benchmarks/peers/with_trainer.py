"""transformers.Trainer with the teacher in `compute_loss`."""

import torch
from torch.nn.functional import kl_div, log_softmax, softmax
from transformers import Trainer, TrainingArguments

from benchmarks.peers.given import read

given = read()
teacher, t = given.teacher(), given.settings["temperature"]


class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = given.student()

    def forward(self, inputs, labels):
        logits = self.network(inputs)
        return torch.nn.functional.cross_entropy(logits, labels), logits


class Distiller(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        hard, logits = model(**inputs)
        with torch.no_grad():
            target = softmax(teacher(inputs["inputs"]) / t, 1)
        soft = kl_div(log_softmax(logits / t, 1), target, reduction="batchmean") * t**2
        loss = given.settings["alpha"] * soft + (1 - given.settings["alpha"]) * hard
        return (loss, logits) if return_outputs else loss


student = Student()
arguments = TrainingArguments(
    str(given.result.parent),
    num_train_epochs=given.settings["epochs"],
    per_device_train_batch_size=given.settings["batch_size"],
    learning_rate=given.settings["learning_rate"],
    lr_scheduler_type="constant",
    max_grad_norm=0.0,
    use_cpu=True,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    disable_tqdm=True,
    dataloader_pin_memory=False,
)
rows = [
    {"inputs": x, "labels": y}
    for x, y in zip(given.arrays["train_inputs"], given.arrays["train_labels"], strict=True)
]
trainer = Distiller(student, arguments, train_dataset=rows)
with given.clock():
    trainer.train()
given.finish(student.network)
