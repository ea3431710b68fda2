"""For the site: pages that lie outside docs/, and links that lead out of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tune/README.md": "spaces.md",
}
"""Pages of the site by their place in the repository."""
LINK = re.compile(r"\[([^\]]*)\]\((\.\./|docs/)?([^)#:]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Files) -> str:
    """Links as on the site: of pages outside to their names here, of folders and code to nothing."""

    def link(found: re.Match[str]) -> str:
        title, prefix, path, anchor = found[1], found[2] or "", found[3], found[4] or ""
        if prefix == "../" or page.file.src_uri in OUTSIDE.values():
            path = OUTSIDE.get(path, path)
        if files.get_file_from_path(path) is None:
            return f"`{path}`" if title == path else title
        return f"[{title}]({path}{anchor})"

    return LINK.sub(link, text)
