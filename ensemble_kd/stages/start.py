"""What students start from and learn beside: pretrained weights, a teacher's layers, phases, teachers at
work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from ensemble_kd.artifacts import Manifest, fingerprint, finish, read_manifest
from ensemble_kd.config import (
    Config,
    CorpusConfig,
    ModelConfig,
    OnlineConfig,
    PhaseConfig,
    TransformerConfig,
    member_settings,
    num_teachers,
    student_blocks,
    student_models,
    text_source,
    variant_of,
    variants,
)
from ensemble_kd.config.growth import NOISE, GrowthConfig, growth_problems
from ensemble_kd.config.start import StaticEmbeddingConfig
from ensemble_kd.data.corpus import (
    corpus_fingerprint,
    corpus_problems,
    load_corpus,
    prepare_corpus,
    texts_up_to,
)
from ensemble_kd.data.prepared import load_info, load_split
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.models.build import Network, build, made_up_inputs
from ensemble_kd.models.foreign import classifier_problems, taken_over
from ensemble_kd.models.outputs import Outputs, state_name
from ensemble_kd.models.pooling import LIBRARY, source_pooling
from ensemble_kd.models.transformer import Transformer, no_scores
from ensemble_kd.models.transplant import resolve, used_pieces
from ensemble_kd.models.trees import Trees
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.pretrained import (
    adapter_problem,
    read_tokenizer,
    resolve_source,
    source_folder,
    weights_digest,
)
from ensemble_kd.redact import redacted
from ensemble_kd.stages.calibrated import calibration_of
from ensemble_kd.stages.class_order import order_problems, orders_of
from ensemble_kd.stages.members import STREAM_OF_STUDENTS, best, members_folder
from ensemble_kd.stages.vectors import VectorsPlan, table_problems, vectors_plan
from ensemble_kd.train.batches import mix
from ensemble_kd.train.task import MemberTask

PHASE = "phase"
"""Role of a task that others start from."""


@dataclass(frozen=True)
class Basis:
    """What is known when students are planned: the trained teachers, and where the data lies."""

    teachers: list[dict[str, Any]]
    """Per trained teacher: name, fingerprint, validation_loss, model; none where predictions were given."""
    model: dict[str, Any]
    """The student's architecture by itself."""
    initial: dict[str, Any] | None
    """The weights that it starts from; None for random ones."""
    corpora: dict[str, str]
    """Fingerprint of each phase's corpus, by the phase's name."""
    store: StoreLayout | None = None
    """Layout of the teachers' store, where what it keeps beside logits is held for the students."""
    info: dict[str, Any] = field(default_factory=dict)
    """Of the data."""
    calibration: list[float] | None = None
    """Temperature of each member in the store; None where means are made of logits as they are."""
    vectors: VectorsPlan | None = None
    """The table that `initial` names, to be made before members are trained."""

    @cached_property
    def student(self) -> Network:
        """Without memory for its weights, to ask for shapes."""
        return skeleton(self.model, self.info, "student.model")

    @classmethod
    def alone(cls, config: Config) -> Basis:
        """A student that starts from random weights, whose teachers left nothing but soft targets."""
        return cls([], resolve(config.student.model, path="student.model")[0], None, {})


def basis_of(
    config: Config, run: Path, data: Path, teachers: Manifest, store: StoreLayout | None = None
) -> Basis:
    """Raises ConfigError where what the student's model asks for does not fit. `store` as in `Basis`."""
    found = []
    if teachers.summary["source"] != "predictions":
        for entry in teachers.summary["members"]:
            manifest = read_manifest(members_folder(run, "teachers") / entry["fingerprint"])
            assert manifest is not None, "the teachers stage has just looked after its members"
            found.append({**entry, "model": manifest.config["model"]})
    teacher = None
    if found:
        transformers = [entry for entry in found if entry["model"]["name"] == "transformer"]
        starts = getattr(config.student.model, "weights", None) == "teacher"
        chosen = best(transformers if starts and transformers else found)
        teacher = {"model": chosen["model"], "initial": _place(chosen)}
    pieces = None
    vocabulary = getattr(config.student.model, "vocabulary", "all")
    if vocabulary != "all":
        texts = [load_split(data, "transfer").inputs, *corpora(config, run, data).values()]
        pieces = used_pieces(texts, _special(data), vocabulary if isinstance(vocabulary, int) else None)
    model, initial = resolve(config.student.model, teacher, pieces, "student.model")
    names = {phase.name: _corpus_name(phase.corpus) for phase in config.student.phases if phase.corpus}
    calibration = calibration_of(config, run, data, teachers)
    vectors = vectors_plan(config, data, found)
    if vectors is not None:
        initial = vectors.place
    start = getattr(config.student.model, "start", None)
    if isinstance(start, GrowthConfig):
        initial = {**_place(best(growable(start, model, found))), "noise": start.noise}
    return Basis(found, model, initial, names, store, load_info(data).to_dict(), calibration, vectors)


def growable(
    start: GrowthConfig, model: dict[str, Any], teachers: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The trained teachers that a network of settings `model` can start from.

    Raises ConfigError where none of those that finished is left.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(ModelConfig)
    new, found = adapter.validate_python(model), []
    for teacher in teachers:
        old = adapter.validate_python(teacher["model"])
        if not growth_problems(start, old, new):
            found.append(teacher)
    if not found:
        raise ConfigError(
            f"student.model.start: none of the teachers that finished can be grown by {start.name}; leave "
            "it out"
        )
    return found


def _special(data: Path) -> dict[str, int]:
    special: dict[str, int] = load_info(data).preprocess.get("special", {})
    if not special:
        raise ConfigError(
            "student.model.vocabulary: drops word pieces of a pretrained tokenizer; set "
            "data.text.tokenizer=pretrained"
        )
    if absent := [role for role in ("pad", "unk") if role not in special]:
        raise ConfigError(
            "student.model.vocabulary: the pieces that are dropped become the unknown one, and this "
            f"tokenizer has no special token for {' and '.join(absent)}; set it to all"
        )
    return special


def _place(teacher: dict[str, Any]) -> dict[str, Any]:
    return {"stage": "teachers", "member": teacher["fingerprint"]}


def online_of(
    online: OnlineConfig,
    basis: Basis,
    weights: list[float] | None,
    path: str,
    terms: Sequence[dict[str, Any]] = (),
    averaged: bool = False,
) -> dict[str, Any]:
    """The teachers beside a student, as a task names them. Raises ConfigError where there are none.

    With `terms`, losses on rows of the transfer set: `stored` where the store holds all that these read.
    `averaged`: their logits are, whatever the settings say.
    """
    if online.source is not None:
        wanted: Any = TypeAdapter(ModelConfig).validate_python(
            {"name": "transformer", "source": online.source, "pooling": "cls"}  # its own classifier, or none
        )
        model, initial = resolve(wanted, path=f"{path}.online")
        assert initial is not None
        if basis.info:
            initial |= taken_over(online.source, basis.info, None)
        return {"teachers": [{**initial, "model": model}], "shares": [1.0], "logits": online.logits}
    if not basis.teachers:
        raise ConfigError(
            f"{path}.online: a loss reads a teacher beside the student, and of the run's teachers there are "
            "only numbers; use losses on stored logits, train the teachers, or set online.source"
        )
    names = [teacher["name"] for teacher in basis.teachers]
    if online.teachers == "best":
        chosen = [best(basis.teachers)]
    elif online.teachers == "all":
        chosen = basis.teachers
    else:
        if unknown := [n for n in online.teachers if f"teacher-{n:03d}" not in names]:
            raise ConfigError(f"{path}.online.teachers: {unknown}, but the teachers are {', '.join(names)}")
        chosen = [basis.teachers[names.index(f"teacher-{n:03d}")] for n in online.teachers]
    shares = [1.0] * len(chosen)
    if weights is not None:
        shares = [weights[names.index(teacher["name"])] for teacher in chosen]
        if not sum(shares) > 0:
            raise ConfigError(f"{path}.online.teachers: student.weights gives all of them 0; choose others")
    total = sum(shares)
    places = [_place(teacher) for teacher in chosen]
    found = {"teachers": places, "shares": [share / total for share in shares], "logits": online.logits}
    if basis.calibration is not None and (online.logits or averaged):
        found["calibration"] = [basis.calibration[names.index(teacher["name"])] for teacher in chosen]
    return {**found, "stored": True} if not online.logits and stored(basis, terms) else found


def stored(basis: Basis, terms: Sequence[dict[str, Any]]) -> bool:
    """Whether the states and scores that the store keeps are all that these losses read of a teacher."""
    if basis.store is None or basis.store.kept is None or not terms:
        return False
    kept, loss = basis.store.kept, DistillationLoss(terms=build_terms(terms, 1.0, "student.terms"))
    for objective in (term.objective for term in loss.terms):
        needs = objective.needs
        if "logits" in needs and basis.store.top_k is not None:
            return False
        if kept.features:
            if not getattr(objective, "features_only", False):
                return False
            continue
        if getattr(objective, "reads_last", False) and kept.depth not in kept.hidden:
            return False
        if "hidden" in needs and kept.first_only and not getattr(objective, "first_only", False):
            return False
        # What does not say which layers it reads may read all.
        whole = len(kept.hidden) > kept.depth or "hidden" not in needs
        whole &= len(kept.attention) == kept.depth or "attention" not in needs
        if not hasattr(objective, "prepare") and not whole:
            return False
    states = {"features": torch.zeros(2, kept.features)} if kept.features else None
    teacher = Outputs(
        torch.zeros(2, basis.store.classes),
        states
        or {state_name(k): torch.zeros(2, 1 if kept.first_only else 8, kept.width) for k in kept.hidden},
        tuple(torch.zeros(2, kept.heads, 8, 8) for _ in kept.attention),
        torch.ones(2, 1 if kept.first_only else 8, dtype=torch.bool),
        kept.depth,
        kept.attention,
    )
    try:
        loss.prepare(sample_outputs(basis.student, basis.info, loss.wants), [teacher])
    except ConfigError:
        return False
    return True


def phase_tasks(
    config: Config,
    basis: Basis,
    data: str,
    store: str,
    counts: dict[str, int],
    weights: list[float] | None,
    seed: int,
) -> list[MemberTask]:
    """The phases of one seed, each starting from the one before."""
    found: list[MemberTask] = []
    for number, phase in enumerate(config.student.phases):
        own = basis
        if phase.model is not None:
            settings, _ = resolve(phase.model, path=f"student.phases.{number}.model")
            own = replace(basis, model=settings)
        initial = _after(found[-1], own.model) if found else basis.initial
        found.append(_phase(config, phase, number, own, initial, data, store, counts, weights, seed))
    return found


def start_of(config: Config, basis: Basis, phases: list[MemberTask], baseline: bool) -> dict[str, Any] | None:
    """What the last phase starts from; a baseline goes through shared phases alone."""
    taken = phases
    if baseline:
        taken = [task for task, phase in zip(phases, config.student.phases, strict=True) if phase.shared]
    return _after(taken[-1], basis.model) if taken else basis.initial


def _after(task: MemberTask, model: dict[str, Any]) -> dict[str, Any]:
    """What a network of these settings starts from: the task's, or that grown to its size."""
    place: dict[str, Any] = {"stage": "student", "member": task.fingerprint}
    return place if task.model == model else {**place, "noise": NOISE}


def _phase(
    config: Config,
    phase: PhaseConfig,
    number: int,
    basis: Basis,
    initial: dict[str, Any] | None,
    data: str,
    store: str,
    counts: dict[str, int],
    weights: list[float] | None,
    seed: int,
) -> MemberTask:
    path = f"student.phases.{number}"
    soft = phase.objective is not None and phase.alpha > 0
    beside = bool(phase.terms) or (soft and (phase.corpus is not None or phase.online.logits))
    terms = phase.terms if phase.corpus is None else []
    computed = soft and phase.corpus is not None  # a corpus has no stored logits
    online = online_of(phase.online, basis, weights, path, terms, averaged=computed) if beside else None
    if online is not None and computed:
        online["logits"] = True
    reads = soft and not (online is not None and online["logits"])
    states = online is not None and bool(online.get("stored"))
    inputs = {"data": data, **({"soft_targets": store} if reads or states else {})}
    corpus = None
    if phase.corpus is not None:
        corpus = {"fingerprint": basis.corpora[phase.name]}
        inputs["corpus"] = basis.corpora[phase.name]
    rows: dict[str, Any] = {"labelled": False, "bootstrap": False, "fraction": 1.0}
    if corpus is None:
        labelled = phase.alpha < 1 and not soft and not phase.terms
        rows |= {"labelled": labelled, "fraction": config.student.fraction}
        if config.student.without_classes:
            rows["without"] = config.student.without_classes
    return MemberTask(
        name=f"{phase.name}-seed-{seed}",
        role=PHASE,
        seed=mix(config.seed, STREAM_OF_STUDENTS, seed),  # the student's own: same start, same rows
        model=basis.model,
        training=phase.training.model_dump(mode="json"),
        inputs=inputs,
        rows=rows,
        examples_per_epoch=0 if corpus else counts["transfer"],
        views=1,
        alpha=phase.alpha,
        objective=phase.objective_fields if soft else None,
        temperature=phase.temperature,
        mean=(config if phase.task == "classify" else config.student).mean if soft else "arithmetic",
        weights=weights if reads else None,
        calibration=basis.calibration if reads else None,
        initial=initial,
        terms=phase.terms,
        online=online,
        phase=phase.name,
        corpus=corpus,
        mask_probability=phase.mask_probability if phase.task == "mlm" else None,
    )


def _corpus_name(corpus: CorpusConfig) -> str:
    """Content and settings of a corpus."""
    return fingerprint(corpus_fingerprint(corpus), corpus.model_dump(mode="json", exclude={"path"}))


def corpora(config: Config, run: Path, data: Path) -> dict[str, Any]:
    """The phases' texts (N, L) by fingerprint, tokenised once and kept in the run's folder."""
    found: dict[str, Any] = {}
    for phase in config.student.phases:
        if phase.corpus is None:
            continue
        name = _corpus_name(phase.corpus)
        folder = run / "corpus" / fingerprint("corpus", name, data.name)
        manifest = read_manifest(folder)
        if manifest is None:
            folder.mkdir(parents=True, exist_ok=True)
            summary = prepare_corpus(phase.corpus, config.data.text, data, folder, config.data.shard_rows)
            files = sorted(path.name for path in folder.glob("corpus-*.parquet"))
            manifest = finish(
                folder,
                "corpus",
                folder.name,
                redacted(phase.corpus.model_dump(mode="json")),
                {"data": data.name},
                files,
                summary,
            )
        found[name] = load_corpus(folder, int(manifest.summary["longest"]))
    return found


def source_problems(config: Config) -> list[str]:
    """Pretrained models that are not where the configuration says: folders, installed packages."""
    start = getattr(config.student.model, "start", None)
    wanted = [(f"{path}.source", getattr(m, "source", None)) for path, m in student_models(config.student)]
    wanted += [("student.model.start.source", getattr(start, "source", None))]
    wanted += [(f"{path}.online.source", block.online.source) for path, block in student_blocks(config)]
    if config.teachers.source in ("pretrained", "transformers"):
        wanted += [(f"teachers.given.{i}", source) for i, source in enumerate(config.teachers.given)]
    if config.teachers.source == "train":
        models = [config.teachers.model, *(o.model for _, o in variants(config.teachers) if o.model)]
        wanted += [("teachers.model.source", getattr(model, "source", None)) for model in models]
    problems: list[str] = []
    for path, phase in student_blocks(config)[1:]:
        if phase.corpus is not None:
            problems += [f"{path}.{line}" for line in corpus_problems(phase.corpus)]
    folders: dict[str, str] = {}
    for path, source in wanted:
        try:
            if source and (folder := source_folder(source, path)) is not None:
                adapter = adapter_problem(folder, path)
                problems += [adapter] if adapter else []
                folders[path] = str(folder)
        except ConfigError as error:
            problems += error.problems
    for path, model in student_models(config.student):
        if getattr(model, "weights", "") == "random":
            folders.pop(f"{path}.source", None)  # only its architecture is taken over
    if config.teachers.source == "transformers":  # each reads its own word pieces
        folders = {path: folder for path, folder in folders.items() if not path.startswith("teachers.")}
    return problems or _tokenizer_problems(config, folders)


def _tokenizer_problems(config: Config, folders: dict[str, str]) -> list[str]:
    """Sources whose weights know other word pieces than those that the data's texts are cut into."""
    usual = text_source(config)
    if usual is None or not folders:
        return []
    own = _vocabulary(str(source_folder(usual) or resolve_source(usual)))
    problems = []
    for path, folder in folders.items():
        theirs = _vocabulary(folder) if own else {}
        if not theirs or theirs == own:
            continue
        other = next(piece for piece in sorted(own | theirs) if own.get(piece) != theirs.get(piece))
        problems.append(
            f"{path}: its tokenizer has {len(theirs)} word pieces and is not the one that the texts are cut "
            f"by, that of {usual} with {len(own)} (for one, {other!r} is {theirs.get(other)} there and "
            f"{own.get(other)} here); teachers and students read the same pieces: use models that share a "
            + (
                "tokenizer, or ask each with its own: teachers.source=transformers"
                if path.startswith("teachers.given")
                else "tokenizer, or set weights: random for this one"
            )
        )
    return problems


@cache
def _vocabulary(folder: str) -> dict[str, int]:
    """Numbers of the word pieces of a source's tokenizer; empty where it has none that can be read."""
    try:
        vocabulary: dict[str, int] = read_tokenizer(folder).get_vocab(with_added_tokens=True)
    except (ConfigError, InputError):
        return {}
    return vocabulary


def fit_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether data, teachers, student and losses fit each other: all are built without memory for weights."""
    return teacher_problems(config, info) or student_problems(config, info)


def teacher_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether the teachers fit the data: one line each, starting with a field.

    Pretrained ones must be classifiers for its classes. Those that are asked about raw inputs, or whose
    predictions exist, are left out.
    """
    problems: list[str] = order_problems(config, info)
    orders = [None] * num_teachers(config) if problems else orders_of(config, info)
    for model, path in _teacher_models(config):
        try:
            settings, _ = resolve(model, path=path)
            if isinstance(model, TransformerConfig):  # a user's own is not run more often than it must be
                skeleton(settings, info, path)
            if config.teachers.source == "pretrained":
                said = orders[int(path.rsplit(".", 1)[1])]
                problems += classifier_problems(
                    model.source, info, path, model.trust_remote_code, named=said is None
                )
        except ConfigError as error:
            problems += [line for line in error.problems if line not in problems]
    return problems


def student_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether the student and its losses fit data and teachers, as `teacher_problems`, which come first."""
    if not _is_new(config):
        return []
    problems: list[str] = []
    teachers = resolved_teachers(config)
    try:
        problems += table_problems(config, teachers)
    except ConfigError as error:
        problems += error.problems
    any_of: list[dict[str, Any] | None] = [*teachers] or [None]
    starts = getattr(config.student.model, "weights", None) == "teacher"
    if starts and not (config.student.terms or config.student.phases or config.student.online.logits):
        any_of = [each for each in teachers if each["name"] == "transformer"] or any_of
    for teacher in any_of:  # each may turn out to be the best
        given = None if teacher is None else {"model": teacher, "initial": {}}
        try:
            settings, _ = resolve(config.student.model, given, path="student.model")
            for path, block in student_blocks(config):
                own = settings
                if path != "student" and block.model is not None:
                    own, _ = resolve(block.model, path=f"{path}.model")
                problems += block_problems(config, path, block, own, teacher, info)
        except ConfigError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def phase_size_problems(config: Config, rows: int) -> list[str]:
    """Phases on the transfer set, of which a student sees `rows`, whose batches are larger."""
    return [
        f"{path}.training.batch_size: {phase.training.batch_size}, but a student sees {rows} rows; lower it"
        for path, phase in student_blocks(config)[1:]
        if phase.corpus is None and rows < phase.training.batch_size
    ]


def corpus_size_problems(config: Config, data: Path) -> list[str]:
    """Phases whose corpus has too few texts for one batch; reads no more texts than one takes."""
    problems = []
    for path, phase in student_blocks(config)[1:]:
        if phase.corpus is None:
            continue
        size = phase.training.batch_size
        try:
            found = texts_up_to(phase.corpus, config.data.text, data, size)
        except InputError as error:
            problems += [f"{path}.{line}" for line in error.problems]
            continue
        if found < size:
            problems.append(
                f"{path}.training.batch_size: {size}, but its corpus has {found} texts of "
                f"{phase.corpus.min_length} tokens or more (corpus.min_length, corpus.rows); lower it, or "
                "give more texts"
            )
    return problems


def _teacher_models(config: Config) -> list[tuple[Any, str]]:
    """Each different model of teachers that are networks of ours, with its field; as a rule, one."""
    if config.teachers.source not in ("train", "pretrained"):
        return []
    models = [teacher_model(config, i) for i in range(num_teachers(config))]
    return list({f"{path} {model!r}": (model, path) for model, path in models}.values())


def resolved_teachers(config: Config) -> list[dict[str, Any]]:
    """The architecture of each different teacher that is a network of ours."""
    return [resolve(model, path=path)[0] for model, path in _teacher_models(config)]


def teacher_model(config: Config, index: int) -> tuple[Any, str]:
    """The model of a teacher, and the field that says so."""
    teachers = config.teachers
    if teachers.source == "pretrained":  # taken as it is
        trusted = bool(getattr(teachers.model, "trust_remote_code", False))
        source = teachers.given[index]
        given = TransformerConfig(source=source, trust_remote_code=trusted, pooling="cls")
        return given, f"teachers.given.{index}"
    own = variant_of(teachers, index)
    path = own[0] if own is not None and own[0].startswith("teachers.kinds") and own[1].model else "teachers"
    return member_settings(teachers, index)[0], f"{path}.model"


def _is_new(config: Config) -> bool:
    """Whether the student is a transformer, starts from one, or learns from more than stored logits."""
    student = config.student
    more = student.terms or student.phases or student.online.logits
    started = getattr(student.model, "start", None) is not None
    return isinstance(student.model, TransformerConfig) or started or bool(more)


def block_problems(
    config: Config,
    path: str,
    block: Any,
    student: dict[str, Any],
    teacher: dict[str, Any] | None,
    info: dict[str, Any],
) -> list[str]:
    """One phase, or the last one: its texts against both networks, its losses against what they return."""
    masked_lm = getattr(block, "task", "classify") == "mlm"
    corpus = getattr(block, "corpus", None)
    if corpus is not None:
        info = {**info, "input_shape": [corpus.max_length]}
    if block.online.source is not None:
        model: Any = TransformerConfig(source=block.online.source, pooling="cls")
        teacher, _ = resolve(model, path=f"{path}.online")
    try:
        own = skeleton(student, info, "student.model", masked_lm)
        words = corpus is not None and block.objective is not None and block.alpha > 0
        if block.online.source is not None and not masked_lm and (block.online.logits or words):
            if problems := classifier_problems(block.online.source, info, f"{path}.online.source"):
                return problems
        if not (block.terms or block.online.logits or words):
            return []
        if teacher is None:
            return [
                f"{path}.terms: a loss reads a teacher beside the student, and teachers.source="
                f"{config.teachers.source} has only numbers; use losses on logits, train the teachers, or "
                f"set {path}.online.source"
            ]
        beside = skeleton(teacher, info, f"{path}.online", masked_lm)
        if masked_lm and words and (problem := _other_words(own, beside, path)):
            return [problem]
        loss = DistillationLoss(terms=build_terms(block.terms, block.temperature, f"{path}.terms"))
        loss.prepare(sample_outputs(own, info, loss.wants), [sample_outputs(beside, info, loss.wants)])
    except ConfigError as error:
        return error.problems
    return []


def _other_words(student: Network, teacher: Network, path: str) -> str | None:
    """Whether the two guess among different words: a student's own pieces are picked from the teacher's."""
    bodies = [network.body for network in (student, teacher)]
    assert all(isinstance(body, Transformer) for body in bodies)
    if bodies[0].pieces is not None:
        return None
    sizes = [body.model.config.vocab_size for body in bodies]
    if sizes[0] == sizes[1]:
        return None
    return (
        f"{path}.objective: the student guesses among {sizes[0]} words and the teacher among {sizes[1]}; use "
        "models of one vocabulary, or terms on hidden states"
    )


def skeleton(settings: dict[str, Any], info: dict[str, Any], path: str, masked_lm: bool = False) -> Network:
    """A network, without memory for its weights where it is a text transformer.

    Raises ConfigError, with the field's path.
    """
    model: Any = TypeAdapter(ModelConfig).validate_python(settings)
    large = isinstance(model, TransformerConfig) and info["kind"] == "text"
    try:
        with torch.device("meta") if large else nullcontext():
            return build(model, info, masked_lm=masked_lm)
    except ConfigError as error:
        raise ConfigError([f"{path}.{line}" for line in error.problems]) from error


@torch.no_grad()
def sample_outputs(network: Network, info: dict[str, Any], wants: dict[str, bool]) -> Outputs:
    """Outputs of the shapes that a network returns; of a text transformer without running it."""
    body = network.body
    if wants.get("hidden") and isinstance(body, Trees):
        raise ConfigError(
            "student.terms: a loss reads a teacher's hidden states, and a teacher is of trees, which have "
            "none; use losses on logits, or leave the trees out"
        )
    if not isinstance(body, Transformer) or body.kind != "text":
        if wants.get("attention") and not isinstance(body, Transformer):
            raise ConfigError(f"a model of type {type(body).__name__} has no attention; use a transformer")
        return network.eval()(made_up_inputs(info["kind"], info["input_shape"]), **wants)
    config = body.model.config
    if wants.get("attention") and not body.has_scores:
        raise ConfigError(no_scores(config.model_type))
    names = ["embedding", *(f"layer_{i + 1}" for i in range(config.num_hidden_layers))]
    heads = tuple(torch.zeros(2, config.num_attention_heads, 8, 8) for _ in names[1:])
    return Outputs(
        torch.zeros(2, info["num_classes"]),
        {name: torch.zeros(2, 8, config.hidden_size) for name in names} if wants.get("hidden") else None,
        heads if wants.get("attention") else None,
        torch.ones(2, 8, dtype=torch.bool),
    )


def source_digests(config: Config) -> list[str]:
    """Fingerprints of the files that a student reads beside the run's own: pretrained models, corpora."""
    student = config.student
    sources = [getattr(student.model, "source", None), student.online.source]
    sources += [getattr(model, "source", None) for model in student.assistants]
    start = getattr(student.model, "start", None)
    if isinstance(start, StaticEmbeddingConfig) and start.weights == "pretrained":
        sources.append(start.source or text_source(config))
    found = []
    for phase in student.phases:
        sources.append(phase.online.source)
        found += [_corpus_name(phase.corpus)] if phase.corpus else []
    for source in filter(None, sources):
        folder = resolve_source(source)
        found.append(weights_digest(folder) if Path(folder).is_dir() else folder)
    if (pooling := source_pooling(student.model)) != LIBRARY:
        found.append(pooling)
    return found
