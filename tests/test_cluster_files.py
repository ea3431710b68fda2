"""The files for clusters: what Ray's launcher ships says that they are right, and so do KubeRay's types."""

from __future__ import annotations

import copy
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import ensemble_kd

ROOT = Path(__file__).parents[1]
LAUNCHER = ["cluster.yaml", "docs/cluster/onprem.yaml"]
KUBERAY = ["docs/cluster/kuberay-cluster.yaml", "docs/cluster/kuberay-job.yaml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------------------------- Ray's cluster launcher


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` understands it, or an error as `ray up` raises it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(whole)
    return whole


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_launcher_file(name: str) -> None:
    whole = prepared(load(name))
    head = whole["available_node_types"][whole["head_node_type"]]
    workers = [node for key, node in whole["available_node_types"].items() if key != whole["head_node_type"]]
    if name == "cluster.yaml":
        assert head["max_workers"] == 0 and head["resources"] == {"CPU": 0}
        assert "InstanceMarketOptions" not in head["node_config"], "losing the head ends the run"
        assert sum(node["max_workers"] for node in workers) == whole["max_workers"]
    else:
        assert head["max_workers"] == len(whole["provider"]["worker_ips"]) == whole["max_workers"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c.update(idle_timeout="10"), jsonschema.ValidationError),
        (lambda c: c["available_node_types"]["gpu_worker"].pop("resources"), jsonschema.ValidationError),
        (lambda c: c.update(head_node_type="other"), (ValueError, KeyError)),
        (lambda c: c.update(max_workers=1), ValueError),
    ],
)
def test_the_check_sees_mistakes(change: Callable[[Any], Any], error: Any) -> None:
    broken = load("cluster.yaml")
    change(broken)
    with pytest.raises(error):
        prepared(broken)


def test_instances_are_what_ec2_takes() -> None:
    """Held against the request's shape that botocore ships."""
    session = pytest.importorskip("botocore.session").get_session()
    validate = pytest.importorskip("botocore.validate").ParamValidator()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    nodes = load("cluster.yaml")["available_node_types"]
    for name, node in nodes.items():
        report = validate.validate({"MinCount": 1, "MaxCount": 1, **node["node_config"]}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        market = node["node_config"].get("InstanceMarketOptions")
        if name != "head":
            assert market["MarketType"] == "spot" and float(market["SpotOptions"]["MaxPrice"]) > 0
            assert 0 < node["max_workers"] < 100
    wrong = {"MinCount": 1, "MaxCount": 1, "InstanceMarketOptions": {"MaxPrice": "1"}}
    assert validate.validate(wrong, shape).has_errors()


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_node_has_the_token_and_the_dashboard_stays_on_localhost(name: str) -> None:
    config = load(name)
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = [command for command in config[key] if "ray start" in command]
        assert len(start) == 1 and "RAY_AUTH_MODE=token" in start[0]
    head = config["head_start_ray_commands"][-1]
    assert "--head" in head and "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--address=$RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHER)
def test_bash_understands_every_command(name: str) -> None:
    config = load(name)
    commands = [line for key, lines in config.items() if key.endswith("_commands") for line in lines]
    assert len(commands) >= 8
    for command in commands:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_package_is_copied_and_installed(name: str) -> None:
    config = load(name)
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"][f"{home}/ensemble_kd"] == "."
    install = [command for command in config["setup_commands"] if "$HOME/ensemble_kd[" in command]
    assert len(install) == 1
    extras = re.findall(r"\[(.*?)\]", install[0])[0].split(",")
    assert "cluster" in extras and set(extras) <= set(PROJECT["optional-dependencies"])
    assert {"**/.git", "**/.venv", "**/runs"} <= set(config["rsync_exclude"])


# ----------------------------------------------------------------------------------------------- KubeRay

# What the CRDs rayclusters.ray.io and rayjobs.ray.io (v1) require and allow at the levels that the files use.
# Source: raycluster_types.go and rayjob_types.go in ray-operator/apis/ray/v1 of the repository
# ray-project/kuberay, from which the CRDs are generated; for pods the same levels of the CRD. (Required,
# allowed) by name, a list's name standing for its items; `None`: any names, with strings as values.
OF_CLUSTER = """upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations
    enableInTreeAutoscaling gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions
    headGroupSpec rayVersion workerGroupSpecs"""
OF_JOB = """activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector
    submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode
    entrypointResources entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished
    shutdownAfterJobFinishes suspend"""
OF_GROUP = "rayStartParams template resources labels"
TYPES: dict[str, tuple[str, str | None]] = {
    "": ("apiVersion kind metadata spec", "status"),
    "metadata": ("name", "namespace labels annotations"),
    "authOptions": ("", "mode secretName enableK8sTokenAuth"),
    "autoscalerOptions": (
        "",
        """resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env
        envFrom volumeMounts command args""",
    ),
    "headGroupSpec": (
        "template",
        f"{OF_GROUP} headService enableIngress ingressOptions serviceType",
    ),
    "workerGroupSpecs": (
        "groupName minReplicas maxReplicas template",
        f"{OF_GROUP} suspend replicas idleTimeoutSeconds priority scaleStrategy numOfHosts",
    ),
    "rayStartParams": ("", None),
    "template": ("spec", "metadata"),
    "template.spec": (
        "containers",
        """volumes initContainers nodeSelector tolerations affinity serviceAccountName imagePullSecrets
        securityContext terminationGracePeriodSeconds priorityClassName""",
    ),
    "containers": (
        "name",
        "image env envFrom resources volumeMounts ports lifecycle securityContext command args",
    ),
    "env": ("name", "value valueFrom"),
    "envFrom": ("", "configMapRef prefix secretRef"),
    "secretRef": ("", "name optional"),
    "resources": ("", "claims limits requests"),
    "requests": ("", None),
    "limits": ("", None),
    "volumeMounts": ("mountPath name", "mountPropagation readOnly recursiveReadOnly subPath subPathExpr"),
    "volumes": ("name", "persistentVolumeClaim emptyDir secret configMap hostPath nfs csi ephemeral"),
    "persistentVolumeClaim": ("claimName", "readOnly"),
    "emptyDir": ("", "medium sizeLimit"),
    "nodeSelector": ("", None),
    "tolerations": ("", "key operator value effect tolerationSeconds"),
}
INTEGERS = {
    "backoffLimit",
    "idleTimeoutSeconds",
    "maxReplicas",
    "minReplicas",
    "replicas",
    "terminationGracePeriodSeconds",
    "ttlSecondsAfterFinished",
}
BOOLEANS = {"enableInTreeAutoscaling", "optional", "shutdownAfterJobFinishes"}
CHOICES = {
    "mode": {"disabled", "token"},
    "version": {"v1", "v2"},
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "operator": {"Exists", "Equal"},
}
QUANTITY = re.compile(r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE])?$")


def level(name: str, parent: str, kind: str) -> tuple[set[str], set[str] | None] | None:
    """Required and allowed names below `name`; None where the table has no such level."""
    if name in ("spec", "rayClusterSpec") and parent != "template":
        cluster = kind == "RayCluster" or name == "rayClusterSpec"
        required, further = ("headGroupSpec", OF_CLUSTER) if cluster else ("", OF_JOB)
    else:
        entry = TYPES.get(f"{parent}.{name}", TYPES.get(name))
        if entry is None:
            return None
        required, more = entry
        if more is None:
            return set(required.split()), None
        further = more
    return set(required.split()), {*required.split(), *further.split()}


def mistakes(value: Any, kind: str, name: str = "", parent: str = "") -> list[str]:
    """Everything that the table of types does not allow, one line each."""
    if isinstance(value, list):
        return [line for item in value for line in mistakes(item, kind, name, parent)]
    if not isinstance(value, dict):
        return _of_leaf(value, name, parent)
    found = level(name, parent, kind)
    if found is None:
        return [f"{parent}.{name}: not in the table"]
    required, allowed = found
    lines = [f"{name}: {key} is missing" for key in sorted(required - value.keys())]
    if allowed is not None:
        lines += [f"{name}: {key} is unknown" for key in sorted(value.keys() - allowed)]
    return lines + [line for key, inner in value.items() for line in mistakes(inner, kind, str(key), name)]


def _of_leaf(value: Any, name: str, parent: str) -> list[str]:
    wanted: type = int if name in INTEGERS else bool if name in BOOLEANS else str
    if type(value) is not wanted:
        return [f"{parent}.{name}: {value!r} is no {wanted.__name__}"]
    if name in CHOICES and value not in CHOICES[name]:
        return [f"{parent}.{name}: {value!r} is none of {sorted(CHOICES[name])}"]
    if parent in ("requests", "limits") and not QUANTITY.match(str(value)):
        return [f"{parent}.{name}: {value!r} is no quantity"]
    return []


@pytest.mark.parametrize("name", KUBERAY)
def test_the_manifest_fits_kuberays_types(name: str) -> None:
    found = load(name)
    assert found["apiVersion"] == "ray.io/v1" and found["kind"] in ("RayCluster", "RayJob")
    assert mistakes(found, found["kind"]) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("headGroupSpec"), "spec: headGroupSpec is missing"),
        (lambda s: s.update(autoscaling=True), "spec: autoscaling is unknown"),
        (lambda s: s["workerGroupSpecs"][1].pop("maxReplicas"), "maxReplicas is missing"),
        (lambda s: s["workerGroupSpecs"][1].update(minReplicas="2"), "minReplicas: '2' is no int"),
        (lambda s: s["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "num-cpus: 0 is no str"),
        (lambda s: s["authOptions"].update(mode="none"), "mode: 'none' is none of"),
        (lambda s: s["headGroupSpec"]["template"]["spec"].pop("containers"), "containers is missing"),
    ],
)
def test_the_table_sees_mistakes(change: Callable[[Any], Any], told: str) -> None:
    broken = load("docs/cluster/kuberay-cluster.yaml")
    change(broken["spec"])
    lines = mistakes(broken, "RayCluster")
    assert lines and told in lines[0]


def test_the_job_brings_the_same_cluster() -> None:
    cluster, job = (load(name)["spec"] for name in KUBERAY)
    assert job["rayClusterSpec"] == cluster
    assert job["shutdownAfterJobFinishes"] and "clusterSelector" not in job
    assert job["entrypoint"].startswith("ensemble-kd run ")


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_ask_for_a_token_and_see_the_runs(name: str) -> None:
    spec = load(name)["spec"]
    spec = spec.get("rayClusterSpec", spec)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = container["volumeMounts"]
            assert {mount["name"] for mount in mounts} <= volumes
            assert "/runs" in [mount["mountPath"] for mount in mounts]
            assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


# ---------------------------------------------------------------------------------------------- versions


def pins() -> dict[str, Requirement]:
    return {Requirement(line).name: Requirement(line) for line in PROJECT["dependencies"]}


def test_versions_agree_with_the_projects_pins() -> None:
    ray, torch = pins()["ray"].specifier, pins()["torch"].specifier
    stated = 0
    for name in [*LAUNCHER, *KUBERAY]:
        text = (ROOT / name).read_text(encoding="utf-8")
        for version in re.findall(r"rayproject/ray:([\d.]+)|rayVersion: \"([\d.]+)\"", text):
            assert Version(version[0] or version[1]) in ray, f"{name}: Ray {version}"
            stated += 1
        for python in re.findall(r"rayproject/ray:[\d.]+-py3(\d+)", text):
            assert ">=3.11,<3.14" == PROJECT["requires-python"] and 11 <= int(python) < 14, name
        for line in re.findall(r"\"(torch[^\"]*)\"", text):
            assert Requirement(line).specifier == torch, f"{name}: {line}"
            stated += 1
        for version in re.findall(r"/ensemble-kd:([\w.]+)", text):
            assert version == ensemble_kd.__version__, name
            stated += 1
    assert stated >= 10
    cluster = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["cluster"])}
    assert cluster["ray"].specifier == ray and cluster["ray"].extras == {"default"}
    assert {"boto3", "psycopg2-binary"} <= cluster.keys()


@pytest.mark.parametrize("name", [*LAUNCHER, *KUBERAY])
def test_no_keys_in_the_files_and_it_is_said_what_to_change(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "Change" in text.split("\napiVersion")[0].split("\ncluster_name")[0]
    assert not re.search(r"AKIA|aws_secret|BEGIN .*PRIVATE KEY", text, re.IGNORECASE)
