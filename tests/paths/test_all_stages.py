"""The shipped stages at toy size, stopped once: every stage of the method by the commands that a user would type."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from aurora_rl.data.chains import add_reflections
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.scripts.run_stages import main
from aurora_rl.tasks.reference_segmentation import chain_file

ROOT = Path(__file__).resolve().parents[2]
#: Stages that differ from one of these in their numbers alone.
LEFT_OUT = ("sft_plain", "sft_longer", "grpo_after_sft_plain", "grpo_after_sft", "grpo_after_sft_longer")
FEW_STEPS = {"max_steps": 2, "per_device_train_batch_size": 4, "warmup_steps": 1, "logging_steps": 1, "save_steps": 2}
TOY = {
    "data": {"train": 12, "val": 2, "test_s": 3, "test_n": 2},
    "teacher": FEW_STEPS,
    "sft": FEW_STEPS,
    "mistakes": {"max_rows": 4, "max_completion_length": 8},
    "reflection": FEW_STEPS,
    "grpo_after_reflection": {**FEW_STEPS, "num_generations": 2, "max_completion_length": 8},
    "evaluate_teacher": {"num_samples": 0, "max_completion_length": 8},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages leave."""
    folder = tmp_path_factory.mktemp("stages")
    content = yaml.safe_load((ROOT / "recipes/synthetic/stages.yaml").read_text())
    names = {*LEFT_OUT, *(f"evaluate_{name}" for name in LEFT_OUT)}
    stages = {name: fields for name, fields in content["stages"].items() if name not in names}
    for name, fields in stages.items():
        fields.get("each", {}).update(seed=[0])
        fields["options"] |= TOY["evaluate_teacher"] if name.startswith("evaluate_") else TOY.get(name, {})
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump({**content, "output_dir": str(folder / "out"), "stages": stages}, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PYTHONPATH", str(ROOT))
        stop_while_it_teaches(path, folder / "out")
        assert main(["--config", str(path)]) == 0
    return folder / "out"


def stop_while_it_teaches(path: Path, out: Path) -> None:
    """Run the stages and stop them by SIGTERM once its stage `teacher` has begun."""
    process = subprocess.Popen([sys.executable, "recipes/run_stages.py", "--config", str(path)], env=dict(os.environ))
    while not (out / "logs" / "teacher.log").exists():
        assert process.poll() is None, "the run ended before its stage `teacher`"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert not (out / "logs" / "sft-0.log").exists()


pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1500)]


def logs(out: Path, stage: str) -> list[dict]:
    history = json.loads((out / stage / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "loss" in line]


def test_the_student_is_pulled_to_the_teacher(out: Path) -> None:
    assert all(line["distillation"] > 0 for line in logs(out, "sft-0"))
    assert not any("distillation" in line for line in logs(out, "teacher"))


def test_every_mistake_is_corrected_and_carried_to_the_row_it_belongs_to(out: Path) -> None:
    samples = load_ref_avs(
        out / "data", "train", fps=2.0, num_frames=4, chains=chain_file(out / "data" / "chains.jsonl")
    )
    mistakes = [json.loads(line) for line in (out / "mistakes-0" / "mistakes.jsonl").read_text().splitlines()]
    reflected = {
        sample.row: sample
        for sample in add_reflections(samples, chain_file(out / "corrections-0" / "reflections.jsonl"))
        if sample.wrong is not None
    }
    said = {record["row"]: record["completion"].replace("[SEG]", "").strip() for record in mistakes}
    assert {row for row, text in said.items() if text} == set(reflected)
    for row, sample in reflected.items():
        assert sample.wrong in said[row]
        assert sample.chain == next(other.chain for other in samples if other.row == row)  # gold stands in


def test_each_stage_goes_on_from_the_one_before(out: Path) -> None:
    def projector(stage: str) -> list[float]:
        with safe_open(out / stage / "model.safetensors", framework="pt") as weights:
            return weights.get_tensor("seg_head.projector.0.bias").tolist()

    found = [projector(stage) for stage in ("init", "teacher", "sft-0", "reflection-0")]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    # Two steps of SFT teach no `[SEG]`, so GRPO has no masks to teach and leaves the head as reflection did.
    assert len(logs(out, "grpo_after_reflection-0")) == 2
    assert projector("grpo_after_reflection-0") == projector("reflection-0")


def test_the_table_tells_every_stage_and_what_it_adds(out: Path) -> None:
    result = json.loads((out / "table" / "result.json").read_text())
    assert (result["system"], result["size"], result["figures"]) == ("stages", "1 seed, 5 held-out rows", [])
    table = result["numbers"]
    assert list(table["stages"]) == ["teacher", "sft", "reflection", "grpo_after_reflection"]
    assert [gain["name"] for gain in table["gains"]] == ["GRPO after reflective training"]
    text = (out / "table" / "table.md").read_text()
    assert "Gold chains" in text and "| reflective training |" in text
