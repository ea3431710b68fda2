"""The last net: what nobody foresaw is one line and a file, and a debug switch shows it all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ensemble_kd import cli
from ensemble_kd.config_yaml import DEBUG, nothing_unforeseen
from ensemble_kd.errors import ConfigError


def broken(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def raises(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("ensemble_kd.config.load_config", raises)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError("deep"), MemoryError(), TypeError("a\nb"), OSError(5, "broken")]
)
def test_a_bug_is_one_line_and_a_file(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("MY_PASSWORD", "hunter2hunter2")
    error.args = (*error.args, "hunter2hunter2")
    broken(monkeypatch, error)
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "digits"])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: unexpected, .*{type(error).__name__}".split(".*")[0])
    assert type(error).__name__ in line and "please report it" in line and "hunter2" not in line
    found = re.search(r"its traceback is in (\S+),", line)
    assert found is not None
    file = Path(found[1])
    text = file.read_text()
    assert "Traceback (most recent call last)" in text and "Python 3" in text and "hunter2" not in text
    assert file.stat().st_mode & 0o077 == 0


def test_a_switch_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEBUG, "1")
    broken(monkeypatch, KeyError("x"))
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "digits"])
    assert end.value.code == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_full_temporary_folder_costs_the_file_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/nope")
    broken(monkeypatch, KeyError("x"))
    with pytest.raises(SystemExit):
        cli.main(["check", "digits"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{DEBUG}=1 shows its traceback" in line


def test_the_net_around_configurations_lets_bugs_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^x: cannot be used as a configuration \(RecursionError: deep\)"):
        with nothing_unforeseen("x"):
            raise RecursionError("deep")
    with pytest.raises(AssertionError), nothing_unforeseen("x"):
        raise AssertionError
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(RecursionError), nothing_unforeseen("x"):
        raise RecursionError("deep")
