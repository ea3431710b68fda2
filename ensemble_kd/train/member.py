"""One member of an ensemble (or one student) from its task to its finished folder. Torch only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ensemble_kd.artifacts import Manifest, fingerprint, finish, read_manifest, write_json
from ensemble_kd.config import AugmentConfig, ModelConfig, TrainingConfig
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.mixing import Pool
from ensemble_kd.data.munge import Neighbourhood, neighbourhood
from ensemble_kd.data.prepared import Arrays
from ensemble_kd.data.versions import Others
from ensemble_kd.errors import ArtifactError
from ensemble_kd.mirror import ensure
from ensemble_kd.models.branched import Branched
from ensemble_kd.models.build import Network, build, made_up_inputs
from ensemble_kd.models.quantise import Quantiser, harden_, quantise_
from ensemble_kd.models.rows import cut_tables_, restore_tables_, tables
from ensemble_kd.models.specialist import correct_dustbin_
from ensemble_kd.models.transformer import piece_map
from ensemble_kd.models.trees import Trees
from ensemble_kd.models.weights import save_weights
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.class_weights import WeightedCrossEntropy
from ensemble_kd.objectives.hard import squared_error
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.redact import redacted_settings
from ensemble_kd.train.batches import (
    Batches,
    Block,
    MemberLogits,
    Source,
    StreamSource,
    Targets,
    TensorSource,
    as_tensor,
    mix,
    slice_block,
)
from ensemble_kd.train.branches import Branches, branched, gate_term
from ensemble_kd.train.class_bias import add_class_bias_, fit_class_bias
from ensemble_kd.train.initial import (
    LEARNED,
    WEIGHTS,
    load_initial,
    load_learned,
    load_network,
    online_networks,
)
from ensemble_kd.train.learner import Learner, Left
from ensemble_kd.train.loop import NotFiniteError, Progress, Replicas, predict, train_epochs
from ensemble_kd.train.masking import Masking, uniform
from ensemble_kd.train.online import Beside, Online
from ensemble_kd.train.peers import Peers, mutual_term, peer_settings, with_peers
from ensemble_kd.train.specialist import Judge, Specialty, correction_for, describe, start
from ensemble_kd.train.stored import JoinedLogits
from ensemble_kd.train.stored_states import KeptStates, StoredStates
from ensemble_kd.train.trees import fit_trees_, rows_of
from ensemble_kd.train.validation import validation_metrics

PREDICTIONS = "predictions.safetensors"
CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.json"
BY_LENGTH = ("transformer", "bilstm", "text_cnn")
"""Models that cost as much as their texts are long: batches are of about one length."""


@dataclass(frozen=True)
class MemberTask:
    """Everything that decides a member's weights, as JSON; its fingerprint names its folder."""

    name: str
    """For people: `teacher-003`, `distilled-seed-0`; not part of the fingerprint."""
    role: str
    """`teacher`, `specialist`, `distilled`, or a baseline: `hard`, `plain`, `pseudo`; not part of the
    fingerprint."""
    seed: int
    model: dict[str, Any]
    training: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprints of the data and, where the member reads them, of the soft targets."""
    rows: dict[str, Any] = field(
        default_factory=lambda: {"labelled": True, "bootstrap": False, "fraction": 1.0}
    )
    """Which rows of the transfer set it sees; `without` lists classes whose labelled rows it does not, and
    `drawn_by` is the seed that draws a fraction of them, where that is not its own."""
    examples_per_epoch: int = 0
    """Rows of the transfer set, so that a member that sees fewer of them still takes as many steps."""
    augment: dict[str, Any] = field(default_factory=dict)
    """AugmentConfig; empty for none."""
    views: int = 0
    """0: augment anew in every epoch; n: draw one of the n fixed views."""
    alpha: float = 0.0
    objective: dict[str, Any] | None = None
    """The soft loss and its fields; None for hard labels alone."""
    temperature: float = 1.0
    mean: str = "arithmetic"
    weights: list[float] | None = None
    calibration: list[float] | None = None
    """Temperature of each member's own, by which its logits are divided; None for logits as they are."""
    pseudo_labels: bool = False
    """A baseline: as alpha = 0, pseudo = 1."""
    pseudo: float = 0.0
    """Weight of the loss on the ensemble's most probable class, of rows without a label."""
    targets: str = "ensemble"
    """What it learns from: the `ensemble`'s members, the combination with `specialists`, or `both`."""
    specialist: dict[str, Any] | None = None
    """Fields of a Specialty, for a member that starts from a generalist."""
    class_bias: bool = False
    """Whether one bias per class is fitted on validation rows at the end."""
    initial: dict[str, Any] | None = None
    """What its network starts from (`models.transplant`): a source's weights, or those of a member."""
    terms: list[dict[str, Any]] = field(default_factory=list)
    """Further losses, that read a teacher beside the student."""
    online: dict[str, Any] | None = None
    """Teachers beside the student: `teachers` (each `stage` and `member`, or `source` and `model`),
    `shares`, and whether their `logits` take the place of the stored ones. With `stored` none of them runs:
    what was kept of them in the store is read."""
    phase: str | None = None
    """Name of the phase, for one that others start from and that is not judged itself."""
    corpus: dict[str, Any] | None = None
    """`fingerprint` of the texts to learn from, in place of the transfer set."""
    quantization: dict[str, Any] | None = None
    """Fields of a Quantiser, for a student that is shipped in integers."""
    mask_probability: float | None = None
    """Share of words to be guessed, for a masked language model; None for a classifier."""
    peers: dict[str, Any] | None = None
    """Fields of `student.peers`, for a student that learns together with other networks."""
    branches: dict[str, Any] | None = None
    """Fields of `student.branches`, for a student that is a branch of one network."""

    @property
    def reads_teacher(self) -> bool:
        """Whether it reads the stored soft targets."""
        online = self.online is not None and self.online["logits"]
        return (self.alpha > 0 and self.objective is not None and not online) or self.guess_weight > 0

    @property
    def guess_weight(self) -> float:
        return 1.0 if self.pseudo_labels else self.pseudo

    @property
    def masked_lm(self) -> bool:
        return self.mask_probability is not None

    @property
    def settings(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self).items() if k not in ("name", "role")}
        if not self.reads_teacher and self.online is None:  # so that a baseline outlives a change of T
            for key in ("objective", "temperature", "mean", "weights"):
                kept.pop(key)
            kept["calibration"] = None
        for key, usual in (
            ("specialist", None),
            ("pseudo", 0.0),
            ("calibration", None),
            ("targets", "ensemble"),
            ("class_bias", False),
            ("initial", None),
            ("terms", []),
            ("online", None),
            ("phase", None),
            ("corpus", None),
            ("mask_probability", None),
            ("quantization", None),
            ("peers", None),
            ("branches", None),
        ):
            if kept[key] == usual:
                kept.pop(key)
        if self.masked_lm:
            kept["masked_lm"] = True
        return kept

    @property
    def fingerprint(self) -> str:
        return fingerprint("member", _without_places(self.settings))

    def folder(self, members: Path) -> Path:
        return members / self.fingerprint


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the digest of a pretrained model's files alone: where they lie does not count."""

    def strip(place: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in place.items() if k != "source"} if "digest" in place else place

    kept = dict(settings)
    if kept.get("initial"):
        kept["initial"] = strip(kept["initial"])
    if kept.get("online"):
        kept["online"] = {**kept["online"], "teachers": [strip(t) for t in kept["online"]["teachers"]]}
    return kept


@dataclass
class TrainingData:
    """What the members of one worker group share: arrays held once, or shards to stream."""

    info: dict[str, Any]
    validation: Arrays
    test: Arrays
    transfer: Arrays | None = None
    """The transfer set in memory; None where it is streamed."""
    teacher: MemberLogits | None = None
    """The members' soft targets in memory, aligned with `transfer`."""
    combined: MemberLogits | None = None
    """As `teacher`, each member combined with its specialists."""
    states: KeptStates | None = None
    """Hidden states and attention of the members, aligned with `transfer`, where these are held."""
    stream: Callable[..., Callable[[int], Iterator[Block]]] | None = None
    """(`targets` or None, seed, views, here=False) -> epoch -> blocks, for a transfer set that is not in
    memory."""
    generalists: Path | None = None
    """Folder of the trained members that specialists start from."""
    run: Path | None = None
    """The run's folder, in which members start from others'."""
    corpora: dict[str, np.ndarray] = field(default_factory=dict)
    """Texts (N, L) without labels, by fingerprint."""
    weights: np.ndarray | None = None
    """(N,) float32: how much each row of the transfer set counts; None for 1 each."""

    @cached_property
    def pieces(self) -> Tensor:
        """Numbers of the word pieces that any text at hand has, padding's among them; found once for all."""
        assert self.transfer is not None
        read = np.zeros(self.info["vocabulary_size"], bool)
        read[0] = True
        for part in (self.transfer, self.validation, self.test):
            read[part.inputs.ravel()] = True
        return torch.from_numpy(np.flatnonzero(read))

    @cached_property
    def near(self) -> Neighbourhood:
        """Which rows of the transfer set are like which; found once for all."""
        assert self.transfer is not None
        return neighbourhood(self.transfer.inputs, self.info)


def finished(task: MemberTask, members: Path) -> Manifest | None:
    """The receipt of a member that is trained already."""
    return read_manifest(task.folder(members))


def train_member(
    task: MemberTask,
    data: TrainingData,
    members: Path,
    *,
    device: torch.device | None = None,
    replicas: Replicas | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda entry: None,
    on_warning: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Train one member, or go on where its checkpoint stands, and finish its folder.

    The folder then holds the weights, the logits on validation and test rows, and the manifest with the
    history. Returns False, after writing `failed.json`, for a member whose loss became NaN or infinite.
    Raises Interrupted, the state saved, once `stop` says yes.
    """
    epochs = member_epochs(
        task, data, members, device=device, replicas=replicas, on_warning=on_warning, stop=stop
    )
    while True:
        try:
            entry = next(epochs)
        except StopIteration as end:
            return bool(end.value)
        if replicas is None or replicas.rank == 0:
            on_epoch(entry)


def member_epochs(
    task: MemberTask,
    data: TrainingData,
    members: Path,
    *,
    device: torch.device | None = None,
    replicas: Replicas | None = None,
    on_warning: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] | None = None,
) -> Generator[dict[str, float], None, bool]:
    """`train_member`, one epoch at each `next`, yielding its entry of the history."""
    device = device or torch.device("cpu")
    replicas = replicas or Replicas()
    folder = task.folder(members)
    folder.mkdir(parents=True, exist_ok=True)
    if replicas.rank == 0:
        for stale in folder.glob(".*.tmp"):  # what a killed run was writing
            stale.unlink()
    began = time.perf_counter()
    training = TrainingConfig.model_validate(task.training)
    judge: Judge | None = None
    if task.specialist is None:
        network = initial_network(task, data)
        cut_tables(task, data, network)
    else:
        network, judge = _specialist(task, data)
    network = network.to(device)
    if network.quantiser is not None:
        network.quantiser.group = replicas.group
    batches = make_batches(task, data, training, device, replicas)
    loss = loss_of(task, training, data.info.get("target"))
    learner, learned = learner_of(task, data, network, loss, batches, training)
    validation = as_tensor(data.validation.inputs)
    validation_labels = as_tensor(data.validation.labels)
    if judge is not None:
        validation = validation[judge.rows]

    def evaluate(network: Network) -> dict[str, float]:
        logits = predict(network, validation, device, precision=training.precision)
        if judge is not None:
            return judge(judge.specialty.logits(logits))
        by = training.early_stopping_by
        return validation_metrics(logits, validation_labels, data.info.get("target"), by)

    if isinstance(network.body, Trees):
        if replicas.rank == 0:
            judged, target = (validation, validation_labels), data.info.get("target")
            rows = rows_of(batches.source, batches.weights)
            rounds = fit_trees_(network, task.model, training, task.seed, rows, judged, target)
            seconds = time.perf_counter() - began
            finish_member(task, data, network, Progress(rounds), folder, device, seconds)
        return True
    try:
        progress = yield from train_epochs(
            learner,
            batches,
            training,
            seed=task.seed,
            evaluate=evaluate if replicas.rank == 0 and task.corpus is None else None,
            checkpoint=folder / CHECKPOINT,
            replicas=replicas,
            on_warning=on_warning,
            on_step=network.quantiser.at if network.quantiser else None,
            stop=stop,
        )
    except NotFiniteError as error:
        if replicas.rank == 0:
            write_json(folder / FAILED, {"name": task.name, "reason": str(error)})
        return False
    for each in learner.networks:
        restore_tables_(each)
    if replicas.rank == 0:
        seconds = time.perf_counter() - began
        if learned is not None and list(learned.parameters()):
            save_weights(learned, folder / LEARNED)
        if task.phase is not None:
            finish_phase(task, network, progress, folder, seconds)
        else:
            network, left = learner.finished(evaluate, partial(logits_of, data=data, device=device), folder)
            finish_member(task, data, network, progress, folder, device, seconds, judge, left=left)
    return True


def learner_of(
    task: MemberTask,
    data: TrainingData,
    network: Network,
    loss: DistillationLoss,
    batches: Batches,
    training: TrainingConfig,
) -> tuple[Learner, nn.Module | None]:
    """What is trained: `network`, alone or with its peers; and the projections that its loss learns along."""
    if task.peers is not None or task.branches is not None:
        assert task.online is None, "no teacher runs beside them; the configuration is checked for it"
    if task.peers is not None:
        networks = [network, *(each.to(batches.device) for each in other_peers(task, data))]
        shared = with_peers(loss, mutual_term(task.peers), len(networks))
        return Peers(networks, shared, **peer_settings(task.peers)), None
    if task.branches is not None:
        views = [
            branch_view(task, data, network, i).to(batches.device) for i in range(task.branches["count"])
        ]
        return Branches(network, views, loss, gate_term(task.branches), task.branches["ship"]), None
    online, learned = beside(task, data, network, loss, batches, training.precision)
    return Learner(network, loss, online=online, learned=learned), learned


def other_peers(task: MemberTask, data: TrainingData) -> list[Network]:
    """The networks that learn together with the student, each with initial weights of its own."""
    assert task.peers is not None
    found = []
    for k in range(1, task.peers["count"]):
        model, initial = task.model, task.initial
        if task.peers["models"]:
            model, initial = task.peers["models"][k - 1], None
        own = replace(task, model=model, initial=initial, seed=mix(task.seed, 53, k))
        network = initial_network(own, data)
        cut_tables(own, data, network)
        found.append(network)
    return found


def branch_view(task: MemberTask, data: TrainingData, network: Network, number: int) -> Network:
    """Trunk and one branch of `network` as one of the student's own model; modules are shared."""
    assert isinstance(network.body, Branched)
    plain = {key: value for key, value in task.model.items() if key not in ("branches", "branch_section")}
    view = build(TypeAdapter(ModelConfig).validate_python(plain), data.info)
    view.body = network.body.branch(number)
    return view


@torch.no_grad()
def logits_of(network: Network, data: TrainingData, device: torch.device) -> dict[str, Tensor]:
    """A trained network's logits (N, C) on `validation` and `test` rows."""
    splits = {"validation": data.validation, "test": data.test}
    return {name: predict(network, as_tensor(part.inputs), device) for name, part in splits.items()}


def initial_network(task: MemberTask, data: TrainingData) -> Network:
    """The network that a task without a generalist starts from."""
    torch.manual_seed(mix(task.seed, 11))
    fields = task.model
    if task.branches is not None:
        fields = {**fields, **branched(task.branches)}
    model: Any = TypeAdapter(ModelConfig).validate_python(fields)
    network = build(model, data.info, masked_lm=task.masked_lm)
    if task.initial is not None:
        load_initial(network, task.initial, data.run, data.info)
    if task.quantization is not None:  # last: what it starts from is in float
        quantise_(network, Quantiser(**task.quantization))
    return network


def cut_tables(task: MemberTask, data: TrainingData, network: Network) -> None:
    """Leave word pieces out of a network's training, in place, that no text at hand has."""
    # Others would shrink with weight decay; a quantised table has one step for all of its rows.
    if task.training["weight_decay"] > 0 or task.quantization is not None or task.corpus is not None:
        return
    if data.info["kind"] != "text" or data.transfer is None or not tables(network):
        return
    cut_tables_(network, data.pieces)


def loss_of(
    task: MemberTask, training: TrainingConfig, target: dict[str, float] | None = None
) -> DistillationLoss:
    """What a task minimises; `target` as in DataInfo."""
    of_labels: dict[str, Any] = {}
    if target is not None and not task.masked_lm:
        of_labels = {"hard": squared_error, "unit": target["std"]}
    elif training.class_weights is not None or training.focal_gamma > 0:
        weights = training.class_weights
        assert weights is None or isinstance(weights, list), "the data stage puts numbers in place of names"
        of_labels = {"hard": WeightedCrossEntropy(tuple(weights) if weights else None, training.focal_gamma)}
    soft = build_objective(task.objective, task.temperature) if task.objective and task.alpha > 0 else None
    terms = build_terms(task.terms, task.temperature, "student.terms")
    shares = tuple(task.online["shares"]) if task.online else (1.0,)
    of_labels["pseudo"] = task.guess_weight
    return DistillationLoss(soft, task.alpha, training.label_smoothing, terms, shares, **of_labels)


def beside(
    task: MemberTask,
    data: TrainingData,
    network: Network,
    loss: DistillationLoss,
    batches: Batches,
    precision: str,
) -> tuple[Beside | None, nn.Module | None]:
    """The teachers beside the student, running or read, and what the loss trains along with it."""
    if task.online is None:
        return None, None
    online: Online | StoredStates
    if task.online.get("stored"):
        assert data.states is not None, "the stage decides so only where states are held"
        names = [str(place["member"]) for place in task.online["teachers"]]
        online = data.states.of(names, loss.wants, batches.device)
    else:
        networks = online_networks(task.online["teachers"], data.run, data.info, task.masked_lm)
        targets = None
        if task.online["logits"]:
            own = task.online.get("calibration")
            targets = Targets(task.temperature, task.mean, task.online["shares"], calibration=own)
        pieces = getattr(network.body, "pieces", None) if task.masked_lm else None
        online = Online(networks, loss.wants, precision, batches.device, targets, pieces)
    torch.manual_seed(mix(task.seed, 37))
    teachers = online if isinstance(online, StoredStates) else online.networks
    learned = prepare_loss(loss, network, teachers, data.info, batches.device)
    load_learned(learned, task.initial, data.run)
    return online, learned.to(batches.device)


@torch.no_grad()
def prepare_loss(
    loss: DistillationLoss,
    network: Network,
    teachers: Sequence[Network] | StoredStates,
    info: dict[str, Any],
    device: torch.device,
) -> nn.ModuleList:
    """`loss.prepare` on what the networks return for made-up inputs, or on what is stored of two rows; raises
    ConfigError as that does."""
    inputs = made_up_inputs(info["kind"], info["input_shape"]).to(device)
    inputs = inputs[:, :8] if info["kind"] == "text" else inputs
    was_training = network.training
    own = network.eval()(inputs, **loss.wants)
    if isinstance(teachers, StoredStates):
        none = torch.zeros(len(inputs), dtype=torch.int64)
        others = teachers(Batch(inputs, none, rows=none))
    else:
        others = [net.eval()(inputs, **loss.wants) for net in teachers]
    network.train(was_training)
    return loss.prepare(own, others)


def finish_phase(
    task: MemberTask, network: Network, progress: Progress, folder: Path, seconds: float
) -> None:
    """Write what a phase leaves to the next: weights, and the manifest, which declares it done."""
    save_weights(network, folder / WEIGHTS)
    files = [WEIGHTS, *([LEARNED] if (folder / LEARNED).exists() else [])]
    summary = {
        "name": task.name,
        "role": task.role,
        "seed": task.seed,
        "epochs": progress.epoch,
        "seconds": seconds,
        "history": progress.history,
    }
    finish(folder, "member", task.fingerprint, redacted_settings(task.settings), task.inputs, files, summary)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / FAILED).unlink(missing_ok=True)


def _specialist(task: MemberTask, data: TrainingData) -> tuple[Network, Judge]:
    """The network to train on, and how it is judged; both come from the generalist's finished folder."""
    torch.manual_seed(mix(task.seed, 11))
    assert task.specialist is not None and data.generalists is not None
    specialty = Specialty(**task.specialist)
    folder = data.generalists / specialty.generalist
    ensure(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(
            f"{folder}: the generalist of {task.name} is missing; run the teachers stage again"
        )
    logits = load_logits(folder, "validation")
    judge = Judge(specialty, logits, as_tensor(data.validation.labels))
    return start(specialty, load_network(manifest.config, data.info, folder), logits), judge


def finish_member(
    task: MemberTask,
    data: TrainingData,
    network: Network,
    progress: Progress,
    folder: Path,
    device: torch.device,
    seconds: float,
    judge: Judge | None = None,
    *,
    left: Left | None = None,
) -> None:
    """Write what a trained member leaves: weights, predictions, and the manifest, which declares it done.

    `left` is what its learner left beside the network.
    """
    left = left or Left()
    inputs = {"validation": as_tensor(data.validation.inputs), "test": as_tensor(data.test.inputs)}
    labels = as_tensor(data.validation.labels)
    special: dict[str, Any] = {}
    if task.quantization is not None:
        harden_(network)  # before anything is measured: predictions are those of the weights in the folder
    if judge is not None:
        specialty = judge.specialty
        before = specialty.logits(predict(network, inputs["validation"][judge.rows], device))
        special["dustbin_correction"] = correction_for(specialty, judge, before)
        correct_dustbin_(network, specialty.classes, specialty.output, special["dustbin_correction"])
    if task.class_bias:
        bias = fit_class_bias(predict(network, inputs["validation"], device), labels)
        add_class_bias_(network, bias)
        special["class_bias"] = bias.tolist()
    logits = {name: predict(network, part, device) for name, part in inputs.items()}
    if judge is None:
        measured = validation_metrics(logits["validation"], labels, data.info.get("target"))
    else:
        logits = {name: judge.specialty.logits(part) for name, part in logits.items()}
        measured = judge(logits["validation"][judge.rows], corrected=True)
        special |= describe(judge, measured)
    save_weights(network, folder / WEIGHTS)
    temporary = folder / f".{PREDICTIONS}.tmp"
    tensors = {name: tensor.contiguous() for name, tensor in {**logits, **left.logits}.items()}
    save_file(tensors, temporary)
    temporary.replace(folder / PREDICTIONS)
    summary = {
        "name": task.name,
        "role": task.role,
        "seed": task.seed,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch or progress.epoch,
        "parameters": network.num_parameters,
        "bytes": (folder / WEIGHTS).stat().st_size,
        **measured,
        **special,
        **left.summary,
        "seconds": seconds,
        "history": progress.history,
    }
    settings, files = redacted_settings(task.settings), [WEIGHTS, PREDICTIONS, *left.files]
    finish(folder, "member", task.fingerprint, settings, task.inputs, files, summary)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / FAILED).unlink(missing_ok=True)


def make_batches(
    task: MemberTask,
    data: TrainingData,
    training: TrainingConfig,
    device: torch.device,
    replicas: Replicas | None = None,
) -> Batches:
    """The batches that a task describes, over the data at hand."""
    replicas = replicas or Replicas()
    augment = AugmentConfig.model_validate(task.augment)
    num_classes = data.info["num_classes"]
    specialty = Specialty(**task.specialist) if task.specialist else None
    guesses, soft = task.guess_weight > 0, task.alpha > 0
    targets = Targets(task.temperature, task.mean, task.weights, guesses, soft)
    targets.calibration = task.calibration
    if specialty is not None and specialty.output == "full":
        targets.certain = specialty.inside(num_classes)
    elif specialty is not None:
        targets.specialist_outputs = specialty.outputs(num_classes)
    source: Source
    num_examples = round(task.examples_per_epoch * task.rows["fraction"])
    masking = None
    if task.corpus is not None:
        texts = as_tensor(data.corpora[task.corpus["fingerprint"]])
        none = torch.full((len(texts),), -1)
        source = TensorSource(texts, none, torch.arange(len(texts)), mix(task.seed, 13))
        num_examples = len(texts)
    elif data.transfer is not None:
        labels = as_tensor(data.transfer.labels)
        rows = pick_rows(task, labels)
        inputs, labels, rows = _resident([as_tensor(data.transfer.inputs), labels, rows], device)
        special, fraction = None, 0.5
        if specialty is not None:
            inside = (labels[rows] >= 0) & specialty.inside(num_classes).to(rows.device)[labels[rows]]
            special, rows, fraction = rows[inside], rows[~inside], specialty.special_fraction
        source = TensorSource(
            inputs,
            labels,
            rows,
            mix(task.seed, 13),
            _teacher(task, data),
            max(1, task.views),
            special,
            fraction,
        )
    else:
        assert data.stream is not None, "a transfer set is either in memory or streamed"
        wanted = task.targets if task.reads_teacher else None
        open_epoch = data.stream(wanted, mix(task.seed, 13), max(1, task.views))
        source = StreamSource(lambda epoch: _filtered(task, open_epoch(epoch), data.info, epoch))
    others: Others | None = None
    if augment.mixup and isinstance(source, TensorSource):  # a stored view is mixed with any row of the split
        others = Pool(source.inputs, source.labels, source.rows if task.views == 0 else None)
    elif augment.munge and task.views > 1:
        others = data.near
    if task.masked_lm:
        masking = _masking(task, data.info)
    return Batches(
        source,
        training.batch_size,
        max(1, num_examples // training.batch_size),
        targets,
        augment,
        fresh_views=task.views == 0,
        seed=task.seed,
        rank=replicas.rank,
        replicas=replicas.size,
        device=device,
        trim_padding=data.info["kind"] == "text",
        by_length=data.info["kind"] == "text" and any(name in BY_LENGTH for name in _models(task)),
        masking=masking,
        weights=None if data.weights is None or task.corpus is not None else as_tensor(data.weights),
        others=others,
    )


def _models(task: MemberTask) -> list[str]:
    """Names of the models that a batch is for."""
    return [task.model["name"], *(model["name"] for model in (task.peers or {}).get("models", []))]


def _masking(task: MemberTask, info: dict[str, Any]) -> Masking:
    special = info["preprocess"]["special"]
    assert task.mask_probability is not None
    mapped = None
    if task.model.get("pieces"):
        mapped = piece_map(task.model["pieces"], info["vocabulary_size"] - 1, special["unk"])
    return Masking(
        task.mask_probability,
        mix(task.seed, 41),
        special["mask"] + 1,
        tuple(number + 1 for number in special.values()),
        info["vocabulary_size"],
        mapped,
    )


def _teacher(task: MemberTask, data: TrainingData) -> MemberLogits | None:
    """The stored logits that a task reads."""
    if not task.reads_teacher:
        return None
    if task.targets == "ensemble":
        return data.teacher
    assert data.combined is not None, "the student stage asks for a combination only where there is one"
    if task.targets == "specialists":
        return data.combined
    assert data.teacher is not None
    return JoinedLogits(data.teacher, data.combined)


def _resident(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """On a GPU, rows live where the model does, as long as they take at most a quarter of its free memory.

    All or none: rows on a GPU cannot pick from inputs that are not.
    """
    if device.type != "cuda":
        return tensors
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return [tensor.to(device) for tensor in tensors] if size < free // 4 else tensors


def pick_rows(task: MemberTask, labels: Tensor) -> Tensor:
    """(n,) row numbers that the member draws its examples from."""
    rows = labelled(labels).nonzero()[:, 0] if task.rows["labelled"] else torch.arange(len(labels))
    if without := task.rows.get("without"):
        rows = rows[~torch.isin(labels[rows], torch.tensor(without))]
    generator = torch.Generator().manual_seed(mix(task.rows.get("drawn_by", task.seed), 17))
    if task.rows["fraction"] < 1:
        kept = max(1, round(len(rows) * task.rows["fraction"]))
        rows = rows[torch.randperm(len(rows), generator=generator)[:kept]]
    if task.rows["bootstrap"]:
        rows = rows[torch.randint(len(rows), rows.shape, generator=generator)]
    return rows


def _filtered(
    task: MemberTask, blocks: Iterator[Block], info: dict[str, Any], epoch: int = 0
) -> Iterator[Block]:
    """The streaming form of `pick_rows`: each row decides by a hash of its number.

    For a specialist, rows of its classes or the others are thinned to `special_fraction`, anew in each epoch.
    """
    specialty = Specialty(**task.specialist) if task.specialist else None
    inside = specialty.inside(info["num_classes"]) if specialty else None
    for block in blocks:
        keep = (
            labelled(block.labels)
            if task.rows["labelled"]
            else torch.ones_like(block.labels, dtype=torch.bool)
        )
        if without := task.rows.get("without"):
            keep &= ~torch.isin(block.labels, torch.tensor(without))
        rows = block.rows.numpy().astype(np.uint64)
        if specialty is not None and inside is not None:
            special = (block.labels >= 0) & inside[block.labels]
            chances = _chances(specialty, task, info)
            drawn = torch.from_numpy(uniform(rows, mix(task.seed, 23, epoch)))
            keep &= drawn < torch.where(special, *chances)
        if task.rows["fraction"] < 1:
            seed = mix(task.rows.get("drawn_by", task.seed), 17)
            keep &= torch.from_numpy(uniform(rows, seed) < task.rows["fraction"])
        picked = keep.nonzero()[:, 0]
        if task.rows["bootstrap"]:  # Poisson(1) copies of a row: the bootstrap for a stream
            drawn_at = uniform(rows, mix(task.seed, 19))
            edges = np.cumsum([np.exp(-1.0) / f for f in (1, 1, 2, 6, 24, 120)])
            copies = torch.from_numpy(np.searchsorted(edges, drawn_at))
            picked = picked.repeat_interleave(copies[picked])
        yield slice_block(block, picked)


def _chances(specialty: Specialty, task: MemberTask, info: dict[str, Any]) -> tuple[float, float]:
    """With what probability a row of its classes, and another, is kept: the rarer of the two always."""
    share = specialty.natural_share
    if not task.rows["labelled"]:  # of all rows it draws from
        share *= info["counts"]["labelled"] / info["counts"]["transfer"]
    wanted = specialty.special_fraction / (1 - specialty.special_fraction)
    odds = share / (1 - share) / wanted
    return (1.0, odds) if odds <= 1 else (1 / odds, 1.0)


def load_logits(folder: Path, split: str) -> Tensor:
    """A finished member's logits on the `validation` or `test` rows; the others are not read."""
    ensure(folder)
    with safe_open(folder / PREDICTIONS, framework="pt") as file:
        logits: Tensor = file.get_tensor(split)
    return logits


def discard(task: MemberTask, members: Path) -> None:
    """Remove a member's folder, finished or not."""
    shutil.rmtree(task.folder(members), ignore_errors=True)
