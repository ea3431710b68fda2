"""ModelOpt: the student converted into one that runs the teacher beside it; the loop is the user's."""

import modelopt.torch.distill as mtd
import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.given import read

given = read()
x, y = (given.arrays[f"train_{name}"] for name in ("inputs", "labels"))


class Student(torch.nn.Module):
    """Not a Sequential itself: that would call the teacher, which becomes a child of it, as a layer."""

    def __init__(self):
        super().__init__()
        self.network = given.student()

    def forward(self, inputs):
        return self.network(inputs)


settings = {
    "teacher_model": given.teacher(),
    "criterion": mtd.LogitsDistillationLoss(given.settings["temperature"], reduction="batchmean"),
    "loss_balancer": mtd.StaticLossBalancer(given.settings["alpha"]),
}
student = mtd.convert(Student(), mode=[("kd_loss", settings)])
optimizer = torch.optim.AdamW(
    student.parameters(), lr=given.settings["learning_rate"], weight_decay=0.0, fused=True
)
with given.clock():
    student.train()
    for _ in range(given.settings["epochs"]):
        for rows in torch.randperm(len(x)).split(given.settings["batch_size"]):
            optimizer.zero_grad()
            hard = cross_entropy(student(x[rows]), y[rows])
            student.compute_kd_loss(student_loss=hard).backward()
            optimizer.step()
given.finish(mtd.export(student).eval())
