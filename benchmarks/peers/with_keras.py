"""Keras 3's Distiller on torch: teacher and student are written again as Keras models, weights copied."""

import keras

from benchmarks.peers.given import read

given = read()
features = given.arrays["train_inputs"].shape[1]
keras.utils.set_random_seed(given.seed)


def network(hidden):
    layers = [keras.layers.Dense(width, activation="relu") for width in hidden]
    return keras.Sequential([keras.Input((features,)), *layers, keras.layers.Dense(given.classes)])


student, members = network(given.settings["hidden"]), []
for member in given.teacher().members:
    members.append(network(given.settings["teacher_hidden"]))
    members[-1].set_weights([p.T.numpy() if p.dim() > 1 else p.numpy() for p in member.parameters()])
inputs = keras.Input((features,))
teacher = keras.Model(inputs, keras.layers.Average()([one(inputs) for one in members]))
distiller = keras.distillation.Distiller(
    teacher,
    student,
    # its default, the name "kl_divergence", takes logits for probabilities (3.15.1)
    keras.distillation.LogitsDistillation(given.settings["temperature"], keras.losses.KLDivergence()),
    student_loss_weight=1 - given.settings["alpha"],
)
distiller.compile(
    keras.optimizers.AdamW(given.settings["learning_rate"], weight_decay=0.0),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
x, y = given.arrays["train_inputs"].numpy(), given.arrays["train_labels"].numpy()
with given.clock():
    distiller.fit(x, y, given.settings["batch_size"], given.settings["epochs"], verbose=0)
given.finish(lambda inputs: student.predict(inputs.numpy(), verbose=0))
