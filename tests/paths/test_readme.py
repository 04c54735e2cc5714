import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/inference.md",
    "docs/method.md",
    "docs/results.md",
    "docs/scaling.md",
    "reward_fns/README.md",
]


def read(page: str) -> str:
    return (ROOT / page).read_text()


def reward_example(page: str) -> str:
    _, example, _ = read(page).split("<!-- reward-example -->")
    return example


def test_both_readmes_show_the_same_reward() -> None:
    assert "def temporal_consistency_reward" in reward_example("README.md")
    assert reward_example("README.md") == reward_example("reward_fns/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page))
    broken = [t for t in targets if "://" not in t and not ((ROOT / page).parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_links_to_sections_name_a_heading(page: str) -> None:
    for target, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", read(page)):
        path = ((ROOT / page).parent / target) if target else ROOT / page
        headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
        assert section in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_every_make_target_in_a_command_exists() -> None:
    named = {
        target for page in PAGES for target in re.findall(r"(?:^|`)make ([a-z-]+)", read(page), flags=re.MULTILINE)
    }
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_commands_exist(page: str) -> None:
    folders = "recipes|accelerate_configs|data_prep|tools"
    named = re.findall(rf"(?<![\w/])((?:{folders})/[\w/]+\.(?:py|yaml|txt))\b", read(page))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_front_page_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 230
