"""sentence-transformers: two of MiniLM's blocks learn its vectors, logistic regression on top."""

from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MSELoss
from sklearn.linear_model import LogisticRegression

from benchmarks.peers.given import read

given = read()
student = SentenceTransformer(given.settings["source"], device="cpu")
transformer: Any = student[0].auto_model
encoder = transformer.encoder
encoder.layer = torch.nn.ModuleList([encoder.layer[i] for i in given.settings["layers"]])
transformer.config.num_hidden_layers = len(encoder.layer)
texts, vectors = given.arrays["train_inputs"], given.arrays["train_vectors"]
arguments = SentenceTransformerTrainingArguments(
    str(given.result.parent),
    num_train_epochs=given.settings["epochs"],
    per_device_train_batch_size=given.settings["batch_size"],
    learning_rate=given.settings["learning_rate"],
    warmup_steps=0.1,
    use_cpu=True,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    disable_tqdm=True,
    seed=given.seed,
)
trainer = SentenceTransformerTrainer(
    student,
    arguments,
    train_dataset=Dataset.from_dict({"sentence": texts, "label": vectors.tolist()}),
    loss=MSELoss(student),
)
head = LogisticRegression(C=10, max_iter=1000, random_state=given.seed)
with given.clock():
    trainer.train()
    head.fit(student.encode(texts), given.arrays["train_labels"].numpy())
given.finish(lambda inputs: head.predict(student.encode(inputs)))
