"""cached, online, buckets, finetune: what training transformers costs, against doing without each part.

BERTs of MiniLM's width with random weights, 77 classes, batches of 32, on the CPU, in the arithmetic that
`precision: auto` picks. Texts are made up, about as long as banking77's questions, or come from a prepared
data set:

    python -m benchmarks online --threads 1
    python -m benchmarks buckets --data RUN/data/FINGERPRINT
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import generated
from benchmarks.harness import Measured, available_cores, benchmark, median, rounded, say
from ensemble_kd.config import TrainingConfig
from ensemble_kd.data.records import Arrays, DataInfo, load_info, load_split
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.models.build import Network
from ensemble_kd.train.batches import Batches
from ensemble_kd.train.blocks import as_tensor, mix
from ensemble_kd.train.device import autocast, computes_in_bfloat16
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.learner import Learner
from ensemble_kd.train.loop import train_epochs
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.member_loss import loss_of, prepare_loss
from ensemble_kd.train.member_networks import initial_network
from ensemble_kd.train.online import Online
from ensemble_kd.train.stored import StoredLogits
from ensemble_kd.train.task import MemberTask

CPU = torch.device("cpu")
VOCABULARY = 30522
MINILM = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
SPECIAL = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
FIRST_WORD = 999
"""Number of the first word piece behind those that BERT's vocabulary sets apart."""
TEACHER, STUDENT = 6, 3
"""Blocks."""
TINY = {
    "name": "transformer",
    "architecture": MINILM | {"num_hidden_layers": 2, "hidden_size": 192, "intermediate_size": 768},
    "pieces": list(range(6000)),
}
"""The student of the recipe `tinybert`."""
CLASSES = 77
BATCH = 32
PADDED = 128
"""What a loop without buckets pads its texts to."""
TEMPERATURE = 2.0
LEARNING_RATE = 1e-4
SEED = 0
ALIKE = 0.02
"""How far the mean losses of two loops over the same batches may lie apart, relatively."""

# ---------------------------------------------------------------------------------------------- data


def texts(rows: int, seed: int = SEED) -> Arrays:
    """Random pieces between [CLS] and [SEP], padded; 14 of them on average, 4 to 80, and labels."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(2 + np.round(generator.lognormal(np.log(10), 0.6, rows)), 4, 80).astype(int)
    inputs = generator.integers(FIRST_WORD, VOCABULARY, (rows, PADDED)).astype(np.int32) + 1
    inputs[:, 0] = SPECIAL["cls"] + 1
    inputs[np.arange(rows), lengths - 1] = SPECIAL["sep"] + 1
    inputs[np.arange(PADDED) >= lengths[:, None]] = 0
    return Arrays(inputs, generator.integers(0, CLASSES, rows), np.arange(rows))


def _data(rows: int, folder: Path | None) -> TrainingData:
    """So many rows, or as many whole batches as a prepared data set has labelled ones."""
    if folder is None:
        transfer = texts(rows)
        info = DataInfo(
            kind="text",
            input_shape=[PADDED],
            num_classes=CLASSES,
            class_names=[str(c) for c in range(CLASSES)],
            mean=[],
            std=[],
            vocabulary_size=VOCABULARY + 1,
            preprocess={"special": SPECIAL},
            counts={},
        ).to_dict()
    else:
        info = load_info(folder).to_dict()
        if info["kind"] != "text" or "special" not in info["preprocess"]:
            raise RuntimeError(
                f"{folder}: needs texts in a pretrained tokenizer's pieces, got {info['kind']}; prepare it "
                "with data.text.tokenizer: pretrained"
            )
        transfer = load_split(folder, "transfer")
        kept = np.flatnonzero(transfer.labels >= 0)[:rows]
        kept = kept[: len(kept) // BATCH * BATCH]
        if not len(kept):
            raise RuntimeError(f"{folder}: needs {BATCH} labelled rows at least")
        missing = max(0, PADDED - transfer.inputs.shape[1])
        inputs = np.pad(transfer.inputs[kept], ((0, 0), (0, missing)))
        transfer = Arrays(inputs, transfer.labels[kept], np.arange(len(kept)))
        info["input_shape"] = [inputs.shape[1]]
    none = Arrays(transfer.inputs[:0], transfer.labels[:0], transfer.ids[:0])
    return TrainingData(info, none, none, transfer)


def _arrays(data: TrainingData) -> Arrays:
    assert data.transfer is not None
    return data.transfer


def _as_bert_takes(inputs: Tensor) -> dict[str, Tensor]:
    """Our tokens (B, L), 0 being padding, as transformers numbers them."""
    present = inputs != 0
    return {
        "input_ids": (inputs.to(torch.int64) - 1).clamp(min=0),
        "attention_mask": present.to(torch.int64),
    }


# ---------------------------------------------------------------------------------------------- ours


def _task(data: TrainingData, layers: int, epochs: int, **changes: Any) -> MemberTask:
    rows = len(_arrays(data).labels)
    architecture = MINILM | {"num_hidden_layers": layers, "vocab_size": data.info["vocabulary_size"] - 1}
    training = TrainingConfig(
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_fraction=0.0,
    )
    settings: dict[str, Any] = {
        "name": "benchmark",
        "role": "distilled",
        "seed": SEED,
        "model": {"name": "transformer", "architecture": architecture},
        "training": training.model_dump(mode="json"),
        "inputs": {},
        "examples_per_epoch": rows,
    }
    return MemberTask(**settings | changes)


class Ours:
    """The package's loop, one epoch at each call."""

    def __init__(self, task: MemberTask, data: TrainingData, teachers: Sequence[Network] = ()) -> None:
        training = TrainingConfig.model_validate(task.training)
        self.network = initial_network(task, data)
        self.batches: Batches = make_batches(task, data, training, CPU)
        loss = loss_of(task, training)
        online = learned = None
        if teachers:
            assert task.online is not None
            targets = self.batches.targets if task.online["logits"] else None
            online = Online(teachers, loss.wants, training.precision, CPU, targets)
            learned = prepare_loss(loss, self.network, teachers, data.info, CPU)
        self.epochs: Generator[dict[str, float], None, Any] = train_epochs(
            Learner(self.network, loss, online=online, learned=learned),
            self.batches,
            training,
            seed=task.seed,
        )
        self.losses: list[float] = []

    def __call__(self, epoch: int) -> float:
        """Seconds of the next epoch."""
        entry = next(self.epochs)
        assert entry["epoch"] == epoch + 1
        self.losses.append(entry["train_loss"])
        return entry["seconds"]


def _teachers(data: TrainingData, count: int) -> list[Network]:
    return [initial_network(_task(data, TEACHER, 1, seed=100 + i), data) for i in range(count)]


def _bert(network: Network) -> Any:
    """A transformers model with the weights that a network of ours starts from."""
    from copy import deepcopy

    return deepcopy(network.body.model)


# ------------------------------------------------------------------------------------------ in turns


def _in_turns(
    ours: Callable[[int], float], reference: Callable[[int], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, which take turns at going first; the first round is warm-up and left out."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            found[i].append((ours, reference)[i](turn))
        say(f"round {turn}: ours {found[0][-1]:.2f} s, reference {found[1][-1]:.2f} s")
    return found[0][1:], found[1][1:]


def _measured(
    ours: list[float],
    reference: list[float],
    detail: dict[str, Any],
    digits: int,
    problem: str | None = None,
) -> Measured:
    """The median of the rounds' ratios, times the reference's median: neighbours in time are compared."""
    ratios = [a / b for a, b in zip(ours, reference, strict=True)]
    detail |= {
        "ours": rounded(ours, digits),
        "reference": rounded(reference, digits),
        "ratios": rounded(ratios),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if computes_in_bfloat16(CPU) else "float32",
    }
    return Measured(median(ratios) * median(reference), median(reference), detail, problem)


def _describe(data: TrainingData, model: str) -> dict[str, Any]:
    lengths = (_arrays(data).inputs != 0).sum(1)
    return {
        "model": model,
        "batch": BATCH,
        "rows": len(lengths),
        "pieces_of_a_text": f"{lengths.mean():.1f} on average, {lengths.min()} to {lengths.max()}",
    }


def _use(threads: int | None) -> None:
    torch.set_num_threads(threads or available_cores())


# -------------------------------------------------------------------------------------------- cached


@benchmark(
    "cached",
    "student of recipe tinybert, its epoch with 3 teachers' logits in the store, against the 3 online",
    "examples/s",
    "at least",
    5.0,
)
def cached(quick: bool, threads: int | None = None, data: Path | None = None) -> Measured:
    """The same student, loss and batches.

    What there is to gain depends on the student: one of half the teachers' blocks costs as much as 1.5 of
    their forward passes itself, so that three online cost it at most three times as much. `half` in the
    details is that one.
    """
    rows, rounds, members = (64, 2, 3) if quick else (1280, 5, 3)
    _use(threads)
    given = _data(rows, data)
    rows, classes = len(_arrays(given).labels), given.info["num_classes"]
    logits = generated.member_logits(rows, members, classes)
    given.teacher = StoredLogits({"logits": logits}, StoreLayout(1, members, classes))
    beside = {"teachers": [{}] * members, "shares": [1 / members] * members, "logits": True}
    teachers = _teachers(given, members)

    def rates(model: dict[str, Any]) -> list[list[float]]:
        soft = {"alpha": 1.0, "objective": {"name": "kl"}, "temperature": TEMPERATURE, "model": model}
        ours = Ours(_task(given, STUDENT, rounds + 1, **soft), given)
        online = Ours(_task(given, STUDENT, rounds + 1, **soft, online=beside), given, teachers)
        return [[rows / seconds for seconds in times] for times in _in_turns(ours, online, rounds)]

    detail = _describe(given, f"2 blocks of 192; teachers: {members} x {TEACHER} blocks of 384")
    half = rates(_task(given, STUDENT, 1).model)
    detail["half"] = median([a / b for a, b in zip(*half, strict=True)])
    found = rates(TINY)
    return _measured(found[0], found[1], detail, 1)


# -------------------------------------------------------------------------------------------- online


class BareFeatures:
    """Feature distillation written out: each block against the teacher's at twice its depth, and a KL."""

    def __init__(self, student: Any, teacher: Any, batches: Batches) -> None:
        self.student, self.teacher, self.batches = student, teacher.eval(), batches
        self.optimizer = torch.optim.AdamW(
            student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.losses: list[float] = []

    def __call__(self, epoch: int) -> float:
        """Seconds of an epoch over the batches that ours has in it, made before the clock starts."""
        batches = [_as_bert_takes(batch.inputs) for batch in self.batches.epoch(epoch)]
        torch.manual_seed(mix(SEED, epoch, 0, 7))  # the dropout that ours draws
        began = time.perf_counter()
        self.student.train()
        total = torch.zeros(())
        for batch in batches:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad(), autocast(CPU, "auto"):
                theirs = self.teacher(**batch, output_hidden_states=True)
            with autocast(CPU, "auto"):
                ours = self.student(**batch, output_hidden_states=True)
            log_q = F.log_softmax(ours.logits.float() / TEMPERATURE, 1)
            p = F.softmax(theirs.logits.float() / TEMPERATURE, 1)
            loss = F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2
            mask = batch["attention_mask"]  # (B, L)
            for a, b in zip(ours.hidden_states[1:], theirs.hidden_states[2::2], strict=True):
                squares = (a.float() - b.float()).square().mean(-1) * mask
                loss = loss + (squares.sum(1) / mask.sum(1)).mean()
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        seconds = time.perf_counter() - began
        self.losses.append(float(total) / len(batches))
        return seconds


@benchmark(
    "online",
    "step of feature distillation from one online teacher, against a bare loop over the same batches",
    "ms/step",
    "at most",
    1.1,
)
def online(quick: bool, threads: int | None = None, data: Path | None = None) -> Measured:
    """Both start from the same weights and draw the same dropout: their losses must agree."""
    rows, rounds = (64, 2) if quick else (1280, 7)
    _use(threads)
    given = _data(rows, data)
    task = _task(
        given,
        STUDENT,
        rounds + 1,
        alpha=1.0,
        objective={"name": "kl"},
        temperature=TEMPERATURE,
        terms=[{"name": "hidden_mse"}],
        online={"teachers": [{}], "shares": [1.0], "logits": True},
    )
    teachers = _teachers(given, 1)
    ours = Ours(task, given, teachers)
    bare = BareFeatures(_bert(ours.network), _bert(teachers[0]), ours.batches)
    found = _in_turns(ours, bare, rounds)
    detail = _describe(given, f"{STUDENT} blocks of 384; teacher: {TEACHER} blocks of 384")
    detail["losses"] = rounded([ours.losses[-1], bare.losses[-1]], 5)
    pairs = zip(ours.losses, bare.losses, strict=True)
    problem = None if all(abs(a - b) <= ALIKE * b for a, b in pairs) else "the two loops' losses differ"
    steps = ours.batches.steps_per_epoch
    times = [[1e3 * seconds / steps for seconds in times] for times in found]
    return _measured(times[0], times[1], detail, 1, problem)


# ------------------------------------------------------------------------------------------- buckets


class BarePadded:
    """A bare loop over shuffled rows that are all as long as the longest text may be."""

    def __init__(self, model: Any, arrays: Arrays) -> None:
        self.model, self.inputs = model, _as_bert_takes(as_tensor(arrays.inputs))
        self.labels = as_tensor(arrays.labels)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def __call__(self, epoch: int) -> float:
        """Seconds of an epoch."""
        began = time.perf_counter()
        self.model.train()
        total = torch.zeros(())
        for rows in torch.randperm(len(self.labels)).split(BATCH):
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(CPU, "auto"):
                logits = self.model(**{name: tensor[rows] for name, tensor in self.inputs.items()}).logits
            loss = F.cross_entropy(logits.float(), self.labels[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return time.perf_counter() - began


@benchmark(
    "buckets",
    "training on batches of about one length, against a bare loop that pads texts to 128; no padding counted",
    "tokens/s",
    "at least",
    1.5,
)
def buckets(quick: bool, threads: int | None = None, data: Path | None = None) -> Measured:
    """A classifier of 6 blocks on labels, from the same initial weights."""
    rows, rounds = (64, 2) if quick else (640, 5)
    _use(threads)
    given = _data(rows, data)
    ours = Ours(_task(given, TEACHER, rounds + 1), given)
    bare = BarePadded(_bert(ours.network), _arrays(given))
    tokens = int((_arrays(given).inputs != 0).sum())
    computed = sum(batch.inputs.numel() for batch in ours.batches.epoch(0))
    found = _in_turns(ours, bare, rounds)
    detail = _describe(given, f"{TEACHER} blocks of 384")
    detail["padding_of_ours"] = f"{1 - tokens / computed:.1%}"
    detail["padding_of_reference"] = f"{1 - tokens / _arrays(given).inputs.size:.1%}"
    rates = [[tokens / seconds for seconds in times] for times in found]
    return _measured(rates[0], rates[1], detail, 0)


# ------------------------------------------------------------------------------------------ finetune


def _trainer(model: Any, arrays: Arrays, epochs: int, folder: str, computed: list[int]) -> Any:
    """transformers.Trainer as one would set it up for the same training, with nothing beside it.

    `computed` receives the number of tokens of each batch, padding included.
    """
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    arguments = transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="adamw_torch_fused",
        bf16=computes_in_bfloat16(CPU),
        use_cpu=True,
        train_sampling_strategy="group_by_length",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    # Pads, and does nothing else: the texts are in pieces already.
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0}, unk_token="[PAD]")), pad_token="[PAD]"
    )
    examples = [
        {"input_ids": (row[row != 0] - 1).tolist(), "label": int(label)}
        for row, label in zip(arrays.inputs, arrays.labels, strict=True)
    ]
    pad = transformers.DataCollatorWithPadding(tokenizer)

    def collate(examples: list[dict[str, Any]]) -> Any:
        batch = pad(examples)
        computed.append(batch["input_ids"].numel())
        return batch

    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collate,
        processing_class=tokenizer,
    )


def _beside_trainer(
    model: Any, arrays: Arrays, rounds: int, ours: Callable[[int], float], computed: list[int]
) -> tuple[list[float], list[float]]:
    """Seconds of our epochs and of Trainer's: one of ours runs at the end of each of its own."""
    import tempfile

    import transformers

    class Between(transformers.TrainerCallback):
        """Stops the clock at the end of an epoch, before anything else happens."""

        began = 0.0

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            found[1].append(time.perf_counter() - self.began)
            found[0].append(ours(len(found[0])))
            say(f"round {len(found[0]) - 1}: ours {found[0][-1]:.2f} s, reference {found[1][-1]:.2f} s")

    found: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, arrays, rounds + 1, folder, computed)
        trainer.remove_callback(transformers.PrinterCallback)  # standard output is for the result
        trainer.add_callback(Between())
        trainer.train()
    return found[0][1:], found[1][1:]


@benchmark(
    "finetune",
    "fine-tuning a classifier of 6 blocks, against transformers.Trainer with texts grouped by length",
    "examples/s",
    "at least",
    0.9,
)
def finetune(quick: bool, threads: int | None = None, data: Path | None = None) -> Measured:
    """Epochs take turns inside one call of Trainer.train, from the same weights; its start is not timed.

    Trainer groups a quarter of its rows at a time by length, 1600 at most, so that fewer rows pad more.
    """
    if find_spec("accelerate") is None:
        raise RuntimeError(
            "finetune: transformers.Trainer needs accelerate; pip install 'ensemble-kd[bench]'"
        )
    rows, rounds = (64, 2) if quick else (3200, 4)
    _use(threads)
    given = _data(rows, data)
    rows = len(_arrays(given).labels)
    ours = Ours(_task(given, TEACHER, rounds + 1), given)
    computed: list[int] = []
    found = _beside_trainer(_bert(ours.network), _arrays(given), rounds, ours, computed)
    detail = _describe(given, f"{TEACHER} blocks of 384")
    tokens = int((_arrays(given).inputs != 0).sum())
    own = sum(batch.inputs.numel() for batch in ours.batches.epoch(0))
    detail["padding_of_ours"] = f"{1 - tokens / own:.1%}"
    detail["padding_of_reference"] = f"{1 - tokens * (rounds + 1) / sum(computed):.1%}"
    rates = [[rows / seconds for seconds in times] for times in found]
    return _measured(rates[0], rates[1], detail, 1)
