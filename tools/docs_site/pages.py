"""MkDocs hook: it includes pages from elsewhere in the repository, and resolves links that leave the site.

README.md and the READMEs of the tools are read on GitHub and here, so they are included unchanged. A link to a file
that is a page here leads to the page; a link to another file becomes its text, since the site has no copy of the code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: Page of the site -> file of the repository.
INCLUDED = {
    "index.md": "README.md",
    "rewards.md": "reward_fns/README.md",
    "data_preparation.md": "data_prep/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<section>#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the included pages."""
    for page, source in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links so that they lead to the named files' pages on the site."""
    name = page.file.src_uri
    folder = posixpath.dirname(INCLUDED.get(name, f"docs/{name}"))

    def resolve(link: re.Match[str]) -> str:
        return _resolve(link, folder, name)

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):  # code has no links
        parts += [LINK.sub(resolve, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(resolve, markdown[end:])])


def _resolve(link: re.Match[str], folder: str, page: str) -> str:
    """Resolve a link in a file of `folder` (relative to the root) for a page."""
    target = link["target"]
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    path = posixpath.normpath(posixpath.join(folder, target))
    by_file = {source: included for included, source in INCLUDED.items()}
    if path not in by_file and not path.startswith("docs/"):
        return _text_of(link, path)
    on_site = by_file.get(path, path.removeprefix("docs/"))
    if (ROOT / path).is_dir():
        return _text_of(link, path)
    relative = posixpath.relpath(on_site, posixpath.dirname(page) or ".")
    return f"{link['image']}[{link['text']}]({relative}{link['section'] or ''})"


def _text_of(link: re.Match[str], path: str) -> str:
    """Return the text of a link to code, with the path unless the text is the path or its end."""
    if not (ROOT / path).exists():
        return link[0]  # MkDocs will report it
    named = link["text"].strip("`").rstrip("/")
    return link["text"] if path.endswith(named) else f"{link['text']} (`{path}`)"
