"""The notebook of the docs: its cells run in order at a small size, and it is stored without outputs.

No kernel is installed for the tests: the cells are run by Python itself in a process of its own, and a stub stands for
IPython's display of a video.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
RUN = """
import json, sys, types
import matplotlib

display = types.ModuleType("IPython.display")
display.Video = lambda path, **options: open(path, "rb").close()
ipython = types.ModuleType("IPython")
ipython.display, ipython.version_info, ipython.get_ipython = display, (9, 0), lambda: None
sys.modules |= {"IPython": ipython, "IPython.display": display}
matplotlib.use("Agg")
names = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin)):
    exec(compile(source, f"code cell {number}", "exec"), names)
"""


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    return json.loads(NOTEBOOK.read_text())


def code(notebook: dict[str, Any], *, with_install: bool = False) -> list[str]:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    run = [cell for cell in cells if with_install or "install" not in cell["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in run]


def test_it_is_stored_without_outputs(notebook: dict[str, Any]):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert "%pip install" in code(notebook, with_install=True)[0] and "%" not in code(notebook)[0]


def test_its_cells_run_in_order_from_an_answer_to_a_model_that_a_reward_has_changed(
    notebook: dict[str, Any], tmp_path: Path
):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NOTEBOOK_STEPS": "1", "NOTEBOOK_PROMPTS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(code(notebook)),
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert 'clip 3: "The object on the right making a sound."' in done.stdout and "of the pixels" in done.stdout
    assert "before: 0." in done.stdout and "after 1 steps: 0." in done.stdout
    assert "'rewards/coverage_reward/mean'" in done.stdout
    assert (tmp_path / "aurora-rl-demo" / "overlay.mp4").is_file()
    assert (tmp_path / "outputs" / "mine" / "model.safetensors").is_file()
