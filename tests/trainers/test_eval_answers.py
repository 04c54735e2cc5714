"""Samples of a training: the answers that each evaluation shows, in the folder and in the trackers' callbacks."""

import importlib
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PrinterCallback, ProgressCallback, TrainerState

from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.records import read_results
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.report.run_samples import RunSamples, add_samples, choose_rows, step_files
from aurora_rl.trainers.eval_answers import equal_share
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.progress import MeasuredProgress, measures
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig

EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1}
MakeGRPO = Callable[..., AuroraGRPOTrainer]
MakeSFT = Callable[..., AuroraSFTTrainer]


def shown(folder: Path) -> dict[int, list]:
    return {step: read_results(path) for step, path in step_files(folder)}


def test_an_evaluation_of_grpo_shows_the_first_completion_of_each_chosen_row(
    make_grpo: MakeGRPO, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
):
    trainer = make_grpo(script="gold", per_device_eval_batch_size=4, **EACH_STEP)
    add_samples(trainer, encode, train_samples[:2])
    trainer.train()
    rows = shown(tmp_path / "grpo")
    assert list(rows) == [1, 2]
    # Both rows are about one clip, and a clip is shown once.
    [result] = rows[2]
    assert result.key == train_samples[0].key and result.completion.text == train_samples[0].chain
    assert result.completion.is_right and result.completion.iou is not None and result.completion.pred_masks
    page = (tmp_path / "grpo" / "samples" / "index.html").read_text()
    assert "step 1" in page and "step 2" in page and page.count('class="clip"') == 1
    assert "<audio" in page and "first completion that the evaluation sampled" in page


def test_an_evaluation_of_sft_shows_what_the_model_writes_itself_and_changes_no_weight(
    make_sft: MakeSFT, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("aurora_rl.trainers.eval_answers.MAX_TOKENS", 6)
    weights = []
    for rows in (0, 2):
        torch.manual_seed(0)
        trainer = make_sft(sample_rows=rows, bf16=True, gradient_checkpointing=True, **EACH_STEP)
        add_samples(trainer, encode, train_samples[:3])
        trainer.train()
        weights.append({name: weight.clone() for name, weight in trainer.model.state_dict().items()})
        assert (tmp_path / "sft" / "samples").exists() == (rows > 0)
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    rows = shown(tmp_path / "sft")
    assert list(rows) == [1, 2] and [result.key for result in rows[1]] == [s.key for s in train_samples[:3:2]]
    assert all(len(result.completion.pred_masks) == 4 for result in rows[1])
    assert any(result.completion.text != sample.chain for result, sample in zip(rows[1], train_samples, strict=False))


def test_lora_shows_samples_too(
    make_sft: MakeSFT, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("aurora_rl.trainers.eval_answers.MAX_TOKENS", 4)
    trainer = make_sft(peft=True, max_steps=1, **EACH_STEP)
    add_samples(trainer, encode, train_samples[:1])
    trainer.train()
    assert [len(rows) for rows in shown(tmp_path / "sft").values()] == [1]


def test_a_run_that_resumes_keeps_earlier_samples_and_one_that_begins_anew_does_not(
    make_grpo: MakeGRPO, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
):
    def train(**resume: bool) -> AuroraGRPOTrainer:
        trainer = make_grpo(script="gold", **EACH_STEP, save_strategy="steps", save_steps=1)
        add_samples(trainer, encode, train_samples[:2])
        trainer.train(**resume)
        return trainer

    train()
    folder = tmp_path / "grpo" / "samples"
    first = (folder / "step-000001.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "grpo" / "checkpoint-2")
    (folder / "step-000002.jsonl").write_text("cut off")
    (folder / "step-000009.jsonl").write_text("of a run that was killed after the checkpoint")
    (folder / "notes.txt").write_text("mine")
    trainer = train(resume_from_checkpoint=True)
    assert (folder / "step-000001.jsonl").read_bytes() == first and list(shown(tmp_path / "grpo")) == [1, 2]
    [callback] = [each for each in trainer.callback_handler.callbacks if isinstance(each, RunSamples)]
    callback.on_train_begin(trainer.args, TrainerState(is_world_process_zero=True), trainer.control)
    assert step_files(tmp_path / "grpo") == [] and (folder / "notes.txt").exists()


def test_samples_that_cannot_be_written_are_a_warning_and_training_ends_well(
    make_grpo: MakeGRPO, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path, caplog
):
    trainer = make_grpo(script="gold", max_steps=1, **EACH_STEP)
    add_samples(trainer, encode, train_samples[:2])
    (tmp_path / "grpo").mkdir(exist_ok=True)
    (tmp_path / "grpo" / "samples").write_text("a file where the folder should be")
    trainer.train()
    assert trainer.state.global_step == 1
    assert any("the samples of step 1 are not shown" in message for message in caplog.messages)


def test_words_from_outside_are_no_markup_on_the_page(
    make_grpo: MakeGRPO, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)> [SEG]"
    trainer = make_grpo(script=lambda sample, index: evil, max_steps=1, **EACH_STEP)
    add_samples(trainer, encode, train_samples[:1])
    trainer.train()
    page = (tmp_path / "grpo" / "samples" / "index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page and "<img src=x" not in page


def test_rows_are_of_different_clips_and_kinds(train_samples: list[AVSample]):
    chosen = choose_rows(train_samples, 4)
    assert len({sample.media_id for sample in chosen}) == 4
    assert len({"null" if s.is_null else s.reference_type for s in chosen}) > 1
    assert choose_rows(train_samples, 4) == chosen and choose_rows(train_samples, 0) == [] == choose_rows([], 3)
    assert len(choose_rows(train_samples, 99)) == len({sample.media_id for sample in train_samples})


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_processes_share_the_rows_in_equal_numbers_and_miss_none(train_samples: list[AVSample], num_processes: int):
    rows = train_samples[:5]
    shares = [equal_share(rows, index, num_processes) for index in range(num_processes)]
    assert len({len(share) for share in shares}) == 1
    assert {sample for share in shares for sample in share} == set(rows)


# ---- trackers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuses every connection; the addresses that were asked for."""
    asked: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trackio writes; it reads TRACKIO_DIR when it is imported, and TRL has imported it."""
    pytest.importorskip("trackio")
    folders = {"TRACKIO_DIR": tmp_path / "trackio", "MEDIA_DIR": tmp_path / "trackio" / "media"}
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "trackio"]:
        for name, folder in folders.items():
            if name in vars(module):
                monkeypatch.setattr(module, name, folder)
    return folders["TRACKIO_DIR"]


def test_a_run_that_names_no_tracker_has_a_page_on_this_machine_and_asks_no_other(
    make_grpo: MakeGRPO,
    encode: SampleEncoder,
    train_samples: list[AVSample],
    trackio_folder: Path,
    offline: list[object],
):
    trainer = make_grpo(script="gold", report_to=None, project="watched", run_name="first", **EACH_STEP)
    assert trainer.args.report_to == ["trackio"] and trainer.args.trackio_space_id is None
    assert trainer.args.trackio_static_space_id is False  # `push_to_hub` would upload the page
    add_samples(trainer, encode, train_samples[:2])
    trainer.train()
    logged = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs("watched", "first")
    assert offline == []
    [last] = [line for line in logged if line.get("train/global_step") == 2 and "samples/1" in line]
    picture, sound = last["samples/1"], last["samples/1/sound"]
    assert train_samples[0].reference in picture["caption"] and train_samples[0].chain in picture["caption"]
    assert picture["_type"] == "trackio.image" and sound["_type"] == "trackio.audio"
    assert any("train/reward" in line for line in logged)
    assert len(list((trackio_folder / "media").rglob("*.png"))) == 2 == len(list(trackio_folder.rglob("*.wav")))


def test_weights_and_biases_keeps_samples_and_numbers_of_an_offline_run(
    make_grpo: MakeGRPO,
    encode: SampleEncoder,
    train_samples: list[AVSample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "PROJECT": "watched", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    trainer = make_grpo(script="gold", report_to="wandb", **EACH_STEP)
    add_samples(trainer, encode, train_samples[:2])
    trainer.train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["train/global_step"] == 2 and "train/reward" in summary
    picture, sound = summary["samples/1"], summary["samples/1/sound"]
    assert train_samples[0].reference in picture["caption"]
    [run] = tmp_path.glob("wandb/offline-run-*")
    assert {(run / "files" / each["path"]).is_file() for each in (picture, sound)} == {True}


def test_a_run_without_trackio_has_no_tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("aurora_rl.assembly.trackers._is_installed", lambda library: False)
    args = AuroraSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert args.report_to == [] and args.trackio_static_space_id is None
    with pytest.raises(ValueError, match="report_to is wandb, which is not installed: pip install 'aurora-rl"):
        AuroraSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="wandb")
    with pytest.raises(ValueError, match="sample_rows=-1: give the number of rows"):
        AuroraSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, sample_rows=-1)


def test_tensorboard_gets_pictures_sounds_and_chains(
    make_grpo: MakeGRPO, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path, offline: list[object]
):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = make_grpo(script="gold", report_to="tensorboard", max_steps=1, **EACH_STEP)
    add_samples(trainer, encode, train_samples[:2])
    trainer.train()
    [folder] = (tmp_path / "grpo" / "runs").iterdir()
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert "samples/1" in tags["images"] and "samples/1/sound" in tags["audio"] and "eval/reward" in tags["scalars"]
    assert [event.step for event in events.Images("samples/1")] == [1]
    [*_, text] = events.Tensors("samples/1/chain/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert all(line.startswith("    ") for line in lines) and train_samples[0].chain.splitlines()[0] in lines[2]
    assert offline == []


# ---- progress -------------------------------------------------------------------------------------------------------


def test_the_bar_of_a_terminal_shows_reward_and_iou(make_grpo: MakeGRPO, capfd: pytest.CaptureFixture[str]):
    trainer = make_grpo(script="gold", disable_tqdm=False, **EACH_STEP)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert MeasuredProgress in kinds and ProgressCallback not in kinds and PrinterCallback not in kinds
    trainer.train()
    last = [line for line in trainer.state.log_history if "reward" in line][-1]
    assert {"reward", "iou", "eval_reward", "eval_iou"} <= {name for line in trainer.state.log_history for name in line}
    assert f"reward={last['reward']:.3f}, IoU={last['iou']:.3f}, eval reward=" in capfd.readouterr().err


def test_the_bar_shows_the_iou_of_sft_and_nothing_else():
    logs = {"loss": 1.0, "teacher_forced_iou": 0.5, "eval_teacher_forced_iou": 0.25, "reward": None}
    assert measures(logs) == {"IoU": "0.500", "eval IoU": "0.250"}
    assert measures({"loss": 1.0}) == {}
