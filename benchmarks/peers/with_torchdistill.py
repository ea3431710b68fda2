"""torchdistill: a box made from a configuration, and the loop around it that is the user's."""

import torch
from torch.utils.data import RandomSampler, TensorDataset

from benchmarks.peers.given import read

try:
    import torchvision  # noqa: F401
except RuntimeError:  # PyPI's is built for CUDA: beside a CPU torch its operators are missing
    library = torch.library.Library("torchvision", "DEF")
    pools = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for name in ("nms", "qnms", *pools, *(f"_{pool}_backward" for pool in pools)):
        library.define(f"{name}(Tensor x) -> Tensor")
from torchdistill.core.distillation import get_distillation_box

given = read()
student = given.student()
logits = {"module_path": ".", "io": "output"}
config = {
    "num_epochs": given.settings["epochs"],
    "train_data_loader": {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
        "kwargs": {"batch_size": given.settings["batch_size"]},
    },
    "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
    "student": {"forward_proc": "forward_batch_only"},
    "optimizer": {
        "key": "AdamW",
        "kwargs": {"lr": given.settings["learning_rate"], "weight_decay": 0.0, "fused": True},
    },
    "criterion": {
        "key": "WeightedSumLoss",
        "kwargs": {
            "sub_terms": {
                "kd": {
                    "criterion": {
                        "key": "KDLoss",
                        "kwargs": {
                            "student_module_path": logits["module_path"],
                            "student_module_io": logits["io"],
                            "teacher_module_path": logits["module_path"],
                            "teacher_module_io": logits["io"],
                            "temperature": given.settings["temperature"],
                            "alpha": 1 - given.settings["alpha"],
                        },
                    },
                    "weight": 1.0,
                }
            }
        },
    },
}
data = {"train": TensorDataset(given.arrays["train_inputs"], given.arrays["train_labels"])}
box = get_distillation_box(given.teacher(), student, data, config, torch.device("cpu"), None, False, 1.0)
with given.clock():
    for epoch in range(given.settings["epochs"]):
        box.pre_epoch_process(epoch=epoch)
        for inputs, labels, extra in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(inputs, labels, extra)
            box.post_forward_process(loss)
        box.post_epoch_process()
given.finish(student)
