"""The evaluation of tasks that are answered in words, or by boxes: no masks are asked for, scored or drawn."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.cli import main
from aurora_rl.evaluation.of_model import EvaluationArguments, _open_resume_file
from aurora_rl.evaluation.records import read_results
from aurora_rl.inference.predictor import Predictor
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.heads.boxes import BoxHead, FrameBoxes
from aurora_rl.models.heads.masks import MaskHead
from aurora_rl.report.training_page import Run, write_training_page
from aurora_rl.tasks.multiple_choice import MultipleChoice

TASK = "aurora_rl.tasks.multiple_choice:MultipleChoice"
CONFIG = f"""
task: {TASK}
benchmark: questions
fps: 2.0
num_frames: 4
instruction: "{{reference}}"
min_pixels: 256
max_pixels: 65536
num_samples: 2
max_completion_length: 4
batch_size: 4
ablations: [audio_muted, frames_blanked, text_shuffled]
use_cpu: true
"""
BOX_CONFIG = """
task: aurora_rl.tasks.reference_boxes:ReferenceBoxes
heads: {boxes: {type: dot, image_size: 32, width: 8}}
chains: chains.jsonl
fps: 2.0
num_frames: 4
instruction: "{reference}"
min_pixels: 256
max_pixels: 65536
num_samples: 2
max_completion_length: 4
batch_size: 4
use_cpu: true
"""


@pytest.fixture(scope="module")
def evaluate(tiny_benchmark: Path, omni_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Evaluates a model that has neither mask decoder nor `[SEG]`, as a user types it; `say` gives its answers."""

    def run(name: str, say: Any = None) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "evaluate.yaml").write_text(CONFIG)
        command = ["evaluate", "--model", omni_checkpoint, "--data_root", str(tiny_benchmark), "--split", "test_s"]
        command += ["--config", str(folder / "evaluate.yaml"), "--output_dir", str(folder / name)]
        with pytest.MonkeyPatch.context() as patch:
            if say is not None:
                patch.setattr(Predictor, "generate", answering(say))
            assert main([*command, "--report", str(folder / "page.html")]) == 0
        return folder / name

    return run


def answering(say: Any) -> Any:
    """A stand-in for `Predictor.generate`: what `say` answers to a sample whose sound is heard, or not."""

    def generate(self: Predictor, rows: list[EncodedSample], noise: Any = None) -> list[torch.Tensor]:
        texts = [say(row.sample, is_muted=row.loudness_dbfs < -60) for row in rows]
        return [torch.tensor(self.encode.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]

    return generate


def right(sample, *, is_muted: bool) -> str:
    """The true answer, without reasoning, if it is an option; a muted clip is answered by none of them."""
    if is_muted:
        return "nothing"
    index = sample.choices.index(sample.answer) if sample.answer in sample.choices else 0
    return MultipleChoice().write(None, "ABCD"[index])


def always_a(sample, *, is_muted: bool) -> str:
    return MultipleChoice().write(None, "A")


@pytest.fixture(scope="module")
def good(evaluate: Any) -> Path:
    return evaluate("good", right)


@pytest.fixture(scope="module")
def first_option(evaluate: Any) -> Path:
    return evaluate("first_option", always_a)


def scores_of(folder: Path, ablation: str = "") -> dict[str, Any]:
    return json.loads((folder / f"scores{ablation}.json").read_text())


def test_a_model_without_a_mask_decoder_is_evaluated(evaluate, capsys):
    folder = evaluate("untrained")
    rows = read_results(folder)
    assert rows and all(row.masks is None and row.greedy.iou is None and not row.greedy.pred_masks for row in rows)
    overall = scores_of(folder)["overall"]
    assert overall["n"] == len(rows) and {"accuracy", "sampled_accuracy", "unreadable"} <= overall.keys()
    assert not {"J", "F", "S", "missing", "greedy_iou", "sampled_reward"} & overall.keys()
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "preset" not in shown and "J&F" not in shown


def test_a_task_without_a_head_calls_none_though_the_model_has_one(
    tiny_benchmark, tiny_checkpoint, tmp_path, monkeypatch
):
    def refuse(*args, **options):
        raise AssertionError("the mask head was called")

    monkeypatch.setattr(MaskHead, "forward", refuse)
    (tmp_path / "evaluate.yaml").write_text(CONFIG)
    command = ["evaluate", "--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--split", "test_s"]
    command += ["--config", str(tmp_path / "evaluate.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--ablations", "audio_muted", "--num_samples", "0"]) == 0


def test_answers_are_scored_by_the_task(good):
    rows = read_results(good)
    assert [(row.greedy.is_right, row.answer == row.category) for row in rows] == [(True, True)] * len(rows)
    overall = scores_of(good)["overall"]
    assert (overall["accuracy"], overall["sampled_accuracy"], overall["unreadable"]) == (1.0, 1.0, 0)
    assert overall["format_rate"] == 0.0  # no reasoning
    assert scores_of(good)["intervals"]["overall"]["accuracy"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_an_ablation_takes_away_what_the_answer_needs(good):
    muted, blanked = (scores_of(good, f".{name}")["overall"] for name in ("audio_muted", "frames_blanked"))
    assert (muted["accuracy"], muted["unreadable"], blanked["accuracy"]) == (0.0, muted["n"], 1.0)
    assert "sampled_accuracy" not in muted


def test_a_shuffled_question_comes_with_its_options(good):
    """A letter of the options that were asked is judged by those of the row itself."""
    shuffled = scores_of(good, ".text_shuffled")["overall"]
    assert shuffled["unreadable"] == 0 and shuffled["accuracy"] < 1.0


def test_two_systems_are_compared_by_their_answers(good, first_option, tmp_path, capsys):
    report, both = tmp_path / "both.html", tmp_path / "both.json"
    capsys.readouterr()
    assert main(["compare", str(first_option), str(good), "--report", str(report), "--output", str(both)]) == 0
    assert "preset" not in capsys.readouterr().out
    accuracy = {row["name"]: row for row in json.loads(both.read_text())["splits"]["test_s"]}["accuracy"]
    assert accuracy["wins"] > 0 and accuracy["losses"] == 0 and accuracy["second"] == 1.0
    page = report.read_text()
    assert "Accuracy" in page and "J&amp;F" not in page and "empty mask" not in page
    assert "Largest wins of good" in page


def test_page_of_scores_shows_wrong_answers_and_no_masks(first_option):
    page = (first_option.parent / "page.html").read_text()
    wrong = [row for row in read_results(first_option) if not row.greedy.is_right]
    assert f"{len(wrong)} of" in page and wrong[0].answer in page and "Wrong answers" in page
    assert "Lowest J" not in page and "empty mask" not in page and ">missing<" not in page


def test_page_of_a_training_shows_questions_with_their_options(tiny_benchmark, good, first_option, tmp_path):
    args = DataArguments(str(tiny_benchmark), task=TASK, benchmark="questions", fps=2.0, num_frames=4)
    page = write_training_page(
        tmp_path / "report.html",
        title="T",
        evaluations=[Run("first", first_option), Run("good", good)],
        ablated=Run("good", good),
        gallery=load_split(args, "test_s"),
        num_clips=4,
    ).read_text()
    assert '<ol type="A">' in page and "The right answer is" in page and ">wrong</span>" in page
    assert "Mask IoU" not in page and 'alt="True mask' not in page and "data:image/png" not in page
    assert "data:image/webp" in page and "data:audio/" in page
    assert "accuracy went from" in page and "audio muted" in page


def test_a_half_done_evaluation_is_resumed_by_the_sampler_that_began_it(tmp_path):
    def identity(**options: Any) -> dict[str, Any]:
        model_args, data_args = ModelArguments(model="of/hub"), DataArguments(data_root="data")
        args = EvaluationArguments(output_dir=str(tmp_path), **options)
        with contextlib.closing(_open_resume_file("", [], model_args, data_args, args)) as file:
            return file._identity

    plain, engine = identity(), identity(use_vllm=True)
    assert plain != engine != identity(use_vllm=True, vllm_engine_kwargs={"quantization": "fp8"})
    assert engine == identity(use_vllm=True, vllm_gpu_memory_utilization=0.3, vllm_max_model_length=4096)
    assert plain == identity(vllm_gpu_memory_utilization=0.3)
    assert not [name for name in plain["arguments"] if "vllm" in name]  # files of former versions are resumed


# ---- boxes ------------------------------------------------------------------------------------------------------


def test_boxes_are_scored_on_the_frames_that_are_annotated(tiny_benchmark, tiny_checkpoint, tmp_path):
    (tmp_path / "evaluate.yaml").write_text(BOX_CONFIG)
    command = [
        "evaluate",
        "--model",
        tiny_checkpoint,
        "--data_root",
        str(tiny_benchmark),
        "--split",
        "test_s",
        "test_n",
    ]
    assert main([*command, "--config", str(tmp_path / "evaluate.yaml"), "--output_dir", str(tmp_path / "out")]) == 0
    rows = read_results(tmp_path / "out")
    names = ("box_iou", "box_hits", "point_in_mask")
    for row in rows:
        assert row.masks is None and not row.greedy.pred_masks
        assert all((row.greedy.scores[name] is None) == row.is_null for name in names)
        assert 0.0 <= row.greedy.scores["presence"] <= 1.0
    splits = scores_of(tmp_path / "out")["splits"]
    assert {*names, "presence", "category_accuracy", "sampled_box_iou"} <= splits["test_s"].keys()
    assert not {*names} & splits["test_n"].keys() and "presence" in splits["test_n"]


def test_box_head_scores_the_annotated_frames_and_a_missing_prediction():
    head = BoxHead(8, {"type": "dot", "image_size": 32, "width": 8})
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]])
    told = FrameBoxes(boxes, torch.tensor([5.0, 5.0, -5.0]), boxes[:, 2:] / 2, torch.zeros(3, 4, 4), (1.0, 1.0))
    left = torch.zeros(1, 4, 4, dtype=torch.bool)
    left[:, :, :2] = True
    assert head.scores(told, left, (0,)) == {"box_iou": 1.0, "box_hits": 1.0, "point_in_mask": 1.0, "presence": 1.0}
    assert head.scores(told, left, (1,))["box_iou"] == pytest.approx(0.5)
    assert head.scores(told, left, (2,))["presence"] == 0.0
    assert head.scores(None, left) == {"box_iou": 0.0, "box_hits": 0.0, "point_in_mask": 0.0, "presence": 0.0}
    empty = {"box_iou": None, "box_hits": None, "point_in_mask": None}
    assert head.scores(None, torch.zeros_like(left)) == {**empty, "presence": 1.0}
