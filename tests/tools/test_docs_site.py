"""The documentation site as `make docs` builds it, with every connection refused."""

import dataclasses
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_rl.assembly.options import OptionParser
from aurora_rl.cli import SUB_COMMANDS
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from tools.docs_site.api_pages import modules
from tools.docs_site.config_reference import SCRIPTS, attribute_texts, configuration_page, own_fields
from tools.docs_site.formulas import draw_formula
from tools.script_parser import script_parser

ROOT = Path(__file__).parents[2]
BUILD = """
import socket, sys

def refuse(self, address):
    raise SystemExit(f"the build asked for {address}")

socket.socket.connect = refuse
from mkdocs.__main__ import cli
cli(sys.argv[1:])
"""
#: What a browser fetches by itself; a link is followed by a click only.
LOADED = re.compile(r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"' >]+)")
LINKED = re.compile(r"<link\b(?![^>]*rel=[\"']?(?:canonical|next|prev))[^>]*href=[\"']?((?:https?:)?//[^\"' >]+)")


def build(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, "build", "--strict", "--site-dir", str(site), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_site_is_built_without_a_network_and_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert len(pages) > 100
    assert [address for page in pages for found in (LOADED, LINKED) for address in found.findall(page)] == []
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert [address for style in styles for address in re.findall(r"url\([\"']?(?:https?:)?//[^)]+", style)] == []


def test_every_page_is_reached_from_the_first(site: Path) -> None:
    found, ahead = set(), ["index.html"]
    while ahead:
        page = ahead.pop()
        if page not in found:
            found.add(page)
            links = re.findall(r'href="?([^"#: >]+\.html)', (site / page).read_text())
            ahead += [os.path.normpath(os.path.join(os.path.dirname(page), link)) for link in links]
    assert {str(path.relative_to(site)) for path in site.rglob("*.html")} - found == {"404.html"}


def test_every_key_of_every_script_is_on_the_page(site: Path) -> None:
    page = (site / "configuration.html").read_text()
    names = {
        field.name
        for script in SCRIPTS
        for kind in getattr(script_parser(script), "dataclass_types", [])
        for field in dataclasses.fields(kind)
        if field.init
    }
    assert len(names) > 200
    assert [name for name in sorted(names) if f"<code>{name}</code>" not in page] == []


def test_every_script_with_a_command_line_is_listed() -> None:
    scripts = {
        str(path.relative_to(ROOT))
        for folder in ("recipes", "data_prep", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert set(SCRIPTS) == scripts


def test_every_option_of_every_command_is_on_the_page(site: Path) -> None:
    page = html.unescape((site / "commands.html").read_text())
    commands = OptionParser().add_subparsers()
    for sub_command in SUB_COMMANDS:
        sub_command.register(commands)
    options = {option for sub in commands.choices.values() for option in sub._option_string_actions}
    assert {"--preset", "--no_merge"} <= options
    assert [option for option in sorted(options - {"-h", "--help"}) if option not in page] == []


def test_every_public_module_has_a_page_with_its_docstrings(site: Path) -> None:
    for module, summary in modules():
        page = html.unescape((site / "reference" / f"{module}.html").read_text())
        assert summary.split("`")[0].replace("\\|", "|").split("*")[0][:60] in " ".join(page.split()), module
    assert "scalar, weighted mean over rows" in (site / "reference" / "aurora_rl.losses.html").read_text()


def test_formulas_are_drawn(site: Path) -> None:
    for page in ("method.html", "evaluation.html"):
        text = (site / page).read_text()
        assert 'class="arithmatex"' not in text and "$$" not in text
        assert text.count('<svg role="img"') > 10


def test_a_key_has_its_type_default_help_and_docstring() -> None:
    page = configuration_page()
    assert (
        "| `lora_r` | `int` | `8` | Rank of the LoRA matrices. |\n" in page  # help and docstring say the same
        and "LoRA adapter.<br><small>Hub name or directory of an MLLM, of a model trained here, or of a LoRA" in page
        and "| `split` | `list[str]` | `[]` | Splits that are scored; by default all that begin with 'test'. |\n"
        in page
        and "| `beta` | `float` | `0.04` | Coefficient of the KL divergence from the reference model. |\n" in page
    )


def test_of_a_subclass_of_trls_config_only_what_is_added_or_set_is_explained() -> None:
    names = [field.name for field in own_fields(AuroraGRPOConfig)]
    assert {"mask_loss_on", "report_to", "loss_type", "beta"} <= set(names)
    assert not {"learning_rate", "epsilon"} & set(names)


def test_texts_of_attributes_run_over_lines() -> None:
    class Example:
        """What it is.

        Attributes:
            one: first
                and second line.
            two: another.

        Raises:
            ValueError: never.
        """

    assert attribute_texts(Example) == {"one": "first and second line.", "two": "another."}


def test_a_formula_that_cannot_be_drawn_is_an_error() -> None:
    assert draw_formula(r"\operatorname*{mean}_t \big[ x \big]").startswith('<svg role="img"')
    with pytest.raises(ValueError, match="nonsense"):
        draw_formula(r"\nonsense{x}")


@pytest.mark.parametrize(
    ("link", "complaint"),
    [("[gone](gone.md)", "gone.md"), ("[gone](method.md#gone)", "#gone"), ("[gone](../recipes/gone.py)", "gone.py")],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, link: str, complaint: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "page.md").write_text(f"# Page\n\n{link}\n")
    (docs / "method.md").write_text("# Method\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nnav: [page.md, method.md]\nplugins: []\nextra_css: []\n"
        f"hooks: [{ROOT / 'tools/docs_site/pages.py'}]\n"
    )
    done = build(tmp_path / "site", "--config-file", str(config))
    assert done.returncode != 0
    assert complaint in done.stderr
