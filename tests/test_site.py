"""The documentation site: built with warnings as errors, and nothing in it asks the network for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("material") is None or find_spec("mkdocstrings") is None:
        pytest.skip("no mkdocs-material, mkdocstrings: pip install 'ensemble-kd[docs]'")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):  # nobody answers there
        environment[name] = "http://127.0.0.1:9"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there_and_asks_nobody(site: Path) -> None:
    for name in PAGES:
        assert (site / name.replace(".md", ".html")).is_file(), name
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="?(?:https?:)?//[^">\s]*', text)
        fetched += re.findall(r'<link[^>]*rel="?(?:stylesheet|preconnect)"?[^>]*href="?(?:https?:)?//', text)
        assert not fetched, (page.name, fetched)


@pytest.mark.slow
def test_the_reference_shows_signatures_arguments_and_all_that_is_offered(site: Path) -> None:
    import ensemble_kd

    text = (site / "reference.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'id="ensemble_kd\.(?:\w+\.)*(\w+)"', text))
    offered = {name for name in ensemble_kd.__all__ if not name.startswith("__")}
    assert offered | {"SoftTargets", "DistillationTrainer", "DistillationModule", "ConfigError"} <= shown
    assert "<li><strong>objective</strong>:" in text.replace("<li>\n<p>", "<li>")


@pytest.mark.slow
def test_pages_outside_docs_and_links_that_lead_out(site: Path) -> None:
    assert 'href="spaces.html"' in (site / "guide.html").read_text(encoding="utf-8")
    assert 'href="integrations.html"' in (site / "changelog.html").read_text(encoding="utf-8")
    assert "Dockerfile" in (site / "cluster.html").read_text(encoding="utf-8")
    assert not list(site.rglob("*.py"))


def test_every_page_stands_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = [page for section in yaml.safe_load(text)["nav"] for page in next(iter(section.values()))]
    names = [page if isinstance(page, str) else next(iter(page.values())) for page in listed]
    outside = {"spaces.md", "contributing.md", "changelog.md"}
    assert sorted(names) == sorted({*PAGES, *outside})


def test_pictures_have_words_for_those_who_do_not_see_them() -> None:
    for picture in (ROOT / "docs/pictures").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert "<title" in text and "<desc" in text and 'role="img"' in text
    for page in (ROOT / "docs").glob("*.md"):
        assert not re.search(r"!\[\]\(", page.read_text(encoding="utf-8")), page.name
