"""Ray jobs on three nodes that share nothing but a store, with MLflow on PostgreSQL: faults on the way change
no bit of the student.

The digits and the mnist pipeline run in `make test-cluster`; each fault by itself is `long`. Its job finds
the stages before the fault's own in the store, and what it makes is held against an undisturbed run's:
whatever follows is a function of that. With FAULTS_JSON=FILE in the environment what each cost is written
there: `python -m benchmarks faults`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster_nodes import Cluster, running_cluster
from mlflow_server import MLflowServer, running_mlflow
from processes import Found, kill, wait_for
from stores import BUCKET, SECRET, Store, running_store

from ensemble_kd.mirror import Mirror

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TOKEN = "planted-token-0123456789abcdef0123456789abcdef"
DIGITS = [
    "teachers.num_members=2",
    "teachers.training.epochs=200",
    "student.training.epochs=20",
    "student.seeds=1",
    "specialists.training={epochs: 10, batch_size: 32}",
    "data.shard_rows=100",
    "soft_targets.batch_size=8",
    "sweep={search: grid, space: {temperature: [2, 4]}, num_seeds: 1, scheduler: none, fuse: 1}",
]
MNIST = [
    "teachers.num_members=2",
    "teachers.training={epochs: 6, batch_size: 128, learning_rate: 1.0e-3}",
    "student.training={epochs: 6, batch_size: 128, learning_rate: 2.0e-3}",
    "student.seeds=1",
    "soft_targets.views=4",
    "data.shard_rows=300",
]
CHECKPOINT = "members/*/checkpoint.safetensors"
BEFORE = {
    "teachers": ["data"],
    "soft_targets": ["data", "teachers", "gap"],
    "sweep": ["data", "teachers", "gap", "soft_targets", "clusters", "specialists", "combined_targets"],
}
BEFORE["student"] = [*BEFORE["sweep"], "sweep"]
"""What lies in the store when a fault's job begins, by the stage of the fault."""


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store(gated=True) as running:
        yield running


@pytest.fixture(scope="module")
def mlflow(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    with running_mlflow(folder, f"s3://{BUCKET}/mlflow", store.environment) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    ray |= {"RAY_worker_niceness": "0"}  # at Ray's 15 they starve beside anything else on this machine
    with running_cluster(folder, folder / "scratch", [0, 1, 1], {**store.environment, **ray}) as running:
        yield running


def alone(recipe: str, folder: Path, *settings: str) -> Path:
    """The same run in one process of this machine, without Ray, undisturbed: its folder."""
    command = [sys.executable, "-m", "ensemble_kd", "run", recipe, "--run-dir", str(folder)]
    done = subprocess.run(
        [*command, *sets(*settings, "tracking.enabled=false", "compute.executor=local")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def digits(mlflow: MLflowServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made while MLflow's server starts."""
    return alone("digits", tmp_path_factory.mktemp("digits") / "run", *DIGITS)


@pytest.fixture(scope="module")
def mnist_data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 of its training rows and 1,000 of its test rows."""
    folder = tmp_path_factory.mktemp("mnist-data")
    for split, rows in (("train", 3000), ("test", 1000)):
        table = pq.read_table(shared_data / "mnist" / f"{split}.parquet").slice(0, rows)
        pq.write_table(table, folder / f"{split}.parquet")
    (folder / "labels.txt").write_bytes((shared_data / "mnist/labels.txt").read_bytes())
    return folder


class Scene:
    """A run folder in the store, and the job that works on it."""

    def __init__(
        self,
        recipe: str,
        settings: list[str],
        cluster: Cluster,
        store: Store,
        mlflow: MLflowServer,
        look: Path,
        script: str = "pipeline",
    ) -> None:
        """`script` is the job: the whole pipeline, or up to one stage."""
        self.whole = script == "pipeline"
        self.cluster, self.store, self.mlflow = cluster, store, mlflow
        self.uri = f"s3://{BUCKET}/{look.parent.name}"
        self.look = Mirror(self.uri, look)
        more = [f"tracking.uri={mlflow.uri}", f"compute.scratch={cluster.scratch}"]
        self.command = ["python", f"jobs/{script}.py", recipe, "--run-dir", self.uri]
        self.command += sets(*settings, *more, "compute.placement_timeout=180")
        self.job: subprocess.Popen[bytes] | None = None
        self.log = look.parent / "job.log"
        self.seconds = 0.0
        """How long jobs ran, all together."""
        self.ready()

    def ready(self) -> None:
        """As before any fault: what a test before this one broke works again."""
        if self.store.gate is not None and self.store.gate.listener is None:
            self.store.gate.open()
        if self.mlflow.process is None or self.mlflow.process.poll() is not None:
            self.mlflow.start()
        self.mlflow.wait()
        if self.cluster.isolated:
            self.cluster.empty_scratch()
        while len(self.cluster.alive()) < 3:
            self.cluster.start_node(1)

    def give(self, folder: Path, stages: list[str]) -> None:
        """Lay finished stages of another run into the store."""
        Mirror(self.uri, folder).push(*(folder / stage for stage in stages))

    def driver(self) -> list[int]:
        return self.cluster.processes(self.command[1])

    def submit(self) -> None:
        self.began, self.submitted = time.monotonic(), time.time()
        self.written = self.log.stat().st_size if self.log.exists() else 0
        self.job = self.cluster.submit(*self.command, log=self.log)

    @property
    def text(self) -> str:
        """What the last job said."""
        return self.log.read_bytes()[self.written :].decode(errors="replace")

    def end(self, seconds: float = 600) -> int:
        assert self.job is not None
        try:
            code = self.job.wait(seconds)
        finally:
            self.job.kill()
        self.seconds += time.monotonic() - self.began
        return code

    def until(self, what: Callable[[], Found], seconds: float = 400) -> Found:
        """Raises AssertionError if the job ends first."""
        assert self.job is not None
        return wait_for(what, self.job, seconds, lambda: self.text, pause=0.1)

    def until_in(self, stage: str, pattern: str) -> None:
        """Until the store shows that this job is in the middle of a stage. Fails where it is over by then."""

        def middle() -> bool:
            found = self.look.listed(self.look.root)
            over = [
                name for name in found if fnmatch(name, f"{stage}/*/manifest.json") and name.count("/") == 2
            ]
            assert not over, f"{stage} was over before it could be disturbed"
            times = [e.mtime_ns or 0 for name, e in found.items() if fnmatch(name, f"{stage}/{pattern}")]
            return any(at / 1e9 > self.submitted for at in times)

        self.until(middle)

    def process(self, name: str) -> int:
        """One of the cluster's that works on this run."""
        return self.until(lambda: self.cluster.processes(name))[-1]

    def node_at_work(self) -> int:
        """The number of a node, not the head, that trains."""
        cluster = self.cluster
        return self.until(lambda: [n for n in cluster.alive()[1:] if cluster.processes("RayTrainWorker", n)])[
            -1
        ]


def nothing_happens(scene: Scene) -> None:
    """What the others are measured against."""


def a_node_is_killed(scene: Scene) -> None:
    scene.until_in("teachers", CHECKPOINT)
    scene.cluster.kill_node(scene.node_at_work())
    scene.cluster.start_node(1)


def a_worker_is_killed(scene: Scene) -> None:
    scene.until_in("teachers", CHECKPOINT)
    kill(scene.process("RayTrainWorker"))


def the_driver_is_killed(scene: Scene) -> None:
    scene.until_in("student", CHECKPOINT)
    kill(*scene.driver())
    assert scene.end() != 0
    scene.submit()


def the_job_is_stopped(scene: Scene) -> None:
    """SIGTERM, as in a preemption."""
    scene.until_in("teachers", CHECKPOINT)
    scene.cluster.stop_job(scene.text)
    scene.end()  # with 0: Ray says so of a job that was stopped
    assert "was stopped" in scene.text and "stopped by SIGTERM" in scene.text, scene.text[-3000:]
    scene.submit()


def an_actor_of_ray_data_is_killed(scene: Scene) -> None:
    scene.until_in("soft_targets", "*/part-*.parquet")
    kill(scene.process("ray::MapWorker"))


def a_trial_is_killed(scene: Scene) -> None:
    scene.until_in("sweep", CHECKPOINT)
    kill(scene.process("ray::Students"))


def the_store_refuses_for_30_s(scene: Scene) -> None:
    scene.until_in("teachers", CHECKPOINT)
    assert scene.store.gate is not None
    scene.store.gate.close()
    time.sleep(30)
    scene.store.gate.open()


def mlflow_stops_and_starts(scene: Scene) -> None:
    scene.until_in("teachers", CHECKPOINT)
    scene.mlflow.stop()
    time.sleep(20)
    scene.mlflow.start()


def a_checkpoint_is_truncated(scene: Scene) -> None:
    scene.until_in("teachers", CHECKPOINT)
    kill(*scene.driver())
    assert scene.end() != 0
    names = [name for name in scene.look.listed(scene.look.root) if fnmatch(name, f"teachers/{CHECKPOINT}")]
    system, base = scene.look.store
    with system.open_input_stream(f"{base}/{names[0]}") as stream:
        content = stream.read()
    with system.open_output_stream(f"{base}/{names[0]}") as stream:
        stream.write(content[: len(content) // 2])
    scene.submit()
    scene.until(lambda: "this member starts again" in scene.text)


def the_disk_is_full(scene: Scene) -> None:
    """The scratch of every node; it is told, and with room again the same command goes on."""
    scene.until_in("teachers", CHECKPOINT)
    scene.cluster.fill_scratch()
    assert scene.end() != 0
    assert "No space left on device" in scene.text
    scene.cluster.empty_scratch()
    scene.submit()


def a_second_run_comes(scene: Scene) -> None:
    scene.until_in("teachers", CHECKPOINT)
    second = scene.cluster.submit(*scene.command, log=scene.log.with_name("second.log"))
    assert second.wait(120) != 0
    assert "another run is at work here" in scene.log.with_name("second.log").read_text()


FAULTS = {
    "teachers": [
        nothing_happens,
        a_worker_is_killed,
        a_node_is_killed,
        the_store_refuses_for_30_s,
        the_disk_is_full,
        mlflow_stops_and_starts,
        a_checkpoint_is_truncated,
        a_second_run_comes,
        the_job_is_stopped,
    ],
    "soft_targets": [nothing_happens, an_actor_of_ray_data_is_killed],
    "sweep": [nothing_happens, a_trial_is_killed],
    "student": [nothing_happens, the_driver_is_killed],
}
"""By the stage in which they come."""
SCRIPTS = {"teachers": "teachers", "soft_targets": "soft_targets"}
"""The job of a stage; of the others the pipeline, which they are the end of."""


def survives(scene: Scene, folder: Path, *faults: Callable[[Scene], None]) -> None:
    """The job runs through the faults, ends well, and ships the bytes in `folder`; no secret is anywhere."""
    scene.submit()
    for fault in faults:
        fault(scene)
    assert scene.end() == 0, scene.text[-4000:]
    assert ("report:" if scene.whole else ": running (") in scene.text, "progress is readable in the log"
    if "sent by the next run" in scene.text:  # MLflow came back too late for this one
        scene.mlflow.wait()
        scene.submit()
        assert scene.end() == 0, scene.text[-4000:]
    scene.look.pull()
    copy = scene.look.root
    if scene.whole:
        assert json.loads((copy / "report.json").read_text())["verdict"]["text"]
    for name in made(folder, scene.whole or any(copy.glob("soft_targets/*")), scene.whole):
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    logs = [path for end in ("log", "out", "err") for path in scene.cluster.ray.rglob(f"*.{end}")]
    for file in [*copy.rglob("*"), *scene.log.parent.glob("*.log"), *logs]:
        content = file.read_bytes() if file.is_file() else b""
        assert SECRET.encode() not in content and TOKEN.encode() not in content, file
    tracked(scene)


def made(folder: Path, soft_targets: bool, model: bool) -> list[str]:
    """Files whose bytes must be the undisturbed run's: the teachers, and of later stages what a job made."""
    patterns = ["teachers/members/*/*.safetensors"]
    patterns += ["soft_targets/*/part-*.parquet"] if soft_targets else []
    patterns += ["model/weights.safetensors"] if model else []
    found = [str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)]
    assert len(found) > 1
    return found


def tracked(scene: Scene) -> None:
    """MLflow has every run of this folder, ended well, and its report lies in the store."""
    import boto3
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=scene.mlflow.uri)
    experiment = client.get_experiment_by_name("ensemble-kd")
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    copy = str(Mirror.of(scene.uri, str(scene.cluster.scratch)).root)
    parents = [run for run in runs if run.data.tags.get("folder") == copy]
    last = max(parents, key=lambda run: run.info.start_time)
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == last.info.run_id]
    assert last.info.status == "FINISHED"
    assert {run.info.status for run in below} <= {"FINISHED"}
    above = {run.data.tags.get("mlflow.parentRunId") for run in runs}
    assert any(run.info.run_id in above for run in parents), "no stage stands below any of its runs"
    prefix = f"mlflow/{experiment.experiment_id}/{last.info.run_id}/"
    if scene.whole:
        assert boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents")
    everything = str([run.to_dictionary() for run in runs])
    assert SECRET not in everything and TOKEN not in everything


@pytest.fixture
def scene_of(
    cluster: Cluster, store: Store, mlflow: MLflowServer, tmp_path: Path
) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def make(recipe: str, settings: list[str], script: str = "pipeline") -> Scene:
        scenes.append(Scene(recipe, settings, cluster, store, mlflow, tmp_path / "look", script))
        return scenes[0]

    yield make
    for scene in scenes:
        if scene.job is not None and scene.job.poll() is None:  # the test failed: others want the CPUs
            cluster.stop_job(scene.text)
            scene.end(120)


def test_digits_is_stopped_then_loses_a_node(digits: Path, scene_of: Callable[..., Scene]) -> None:
    survives(scene_of("digits", DIGITS), digits, the_job_is_stopped, a_node_is_killed)


def test_mnist_loses_store_mlflow_an_actor_and_a_node(
    mnist_data: Path,
    scene_of: Callable[..., Scene],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = [f"data.path={mnist_data}", *MNIST]
    reference = alone("mnist", tmp_path_factory.mktemp("mnist") / "run", *settings)

    def a_node_is_killed_under_the_student(scene: Scene) -> None:
        scene.until_in("student", CHECKPOINT)
        scene.cluster.kill_node(scene.node_at_work())

    def mlflow_stops(scene: Scene) -> None:
        scene.mlflow.stop()

    def mlflow_starts(scene: Scene) -> None:
        scene.mlflow.start()

    survives(
        scene_of("mnist", settings),
        reference,
        the_store_refuses_for_30_s,
        mlflow_stops,
        an_actor_of_ray_data_is_killed,
        a_node_is_killed_under_the_student,
        mlflow_starts,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        pytest.param(stage, fault, id=f"{fault.__name__}-{stage}")
        for stage, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_one_fault(
    stage: str, fault: Callable[[Scene], None], digits: Path, scene_of: Callable[..., Scene]
) -> None:
    scene = scene_of("digits", DIGITS, SCRIPTS.get(stage, "pipeline"))
    scene.give(digits, BEFORE[stage])
    survives(scene, digits, fault)
    if wanted := os.environ.get("FAULTS_JSON"):
        path = Path(wanted)
        known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
        known.setdefault(stage, {})[fault.__name__.replace("_", " ")] = round(scene.seconds, 1)
        path.write_text(json.dumps(known, indent=2))


def test_the_script_s_exit_code_is_told(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = cluster.submit("python", "jobs/pipeline.py", "digits", "--set", "student.temperature=0", log=log)
    assert job.wait(300) != 0
    assert "student.temperature" in log.read_text() and "code 2" in log.read_text(), log.read_text()[-2000:]


def test_without_the_token_nobody_is_served(cluster: Cluster) -> None:
    bare = {k: v for k, v in cluster.environment.items() if not k.startswith("RAY_AUTH")}
    command = [str(Path(sys.executable).parent / "ray"), "job", "list"]
    command.append(f"--address=http://127.0.0.1:{cluster.dashboard}")
    done = subprocess.run(
        command, env={**bare, "HOME": "/nonexistent"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "oken" in done.stdout + done.stderr
