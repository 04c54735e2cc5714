"""The HTML page, built from files as a run leaves them."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from aurora_rl.data.media import load_clip
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.records import RowResult, write_results
from aurora_rl.evaluation.scoring import score_answer
from aurora_rl.report.training_page import Run, write_training_page
from aurora_rl.tasks.reference_segmentation import chain_file
from tests.row_results import rollout

EVIL = '<script>alert("&")</script>'
LOG_HISTORY = [
    {"step": step, "loss": 1.0 / step, "reward": 2.0 + step / 50, "kl": 0.01 * step, "entropy": 0.5, "note": "text"}
    | {"rewards/mask_iou_reward/mean": step / 50, "chain/see": 0.5, "completions/mean_length": 40.0}
    for step in range(1, 41)
]


class Page(HTMLParser):
    """Text, element names, and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.texts, self.tags, self.addresses, self.images = html, [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [values[name] for name in ("src", "href", "action", "data", "poster") if values.get(name)]
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture
def samples(tiny_benchmark: Path) -> list[AVSample]:
    chains = tiny_benchmark / "chains.jsonl"
    splits = [
        load_ref_avs(tiny_benchmark, split, fps=2.0, num_frames=None, chains=chain_file(chains))
        for split in ("test_s", "test_u", "test_n")
    ]
    return [sample for split in splits for sample in split]


def build_page(tmp_path: Path, evaluations: list[Run], **arguments) -> Page:
    page = write_training_page(tmp_path / "report.html", evaluations=evaluations, **({"title": "T"} | arguments))
    return Page(page.read_text("utf-8"))


def result_of(sample: AVSample, *, is_right: bool) -> RowResult:
    """The gold chain and the true masks, or an empty completion without masks; sampled reward 3 or 1."""
    gt_masks = load_clip(sample).gt_masks
    text, probs = (sample.chain, torch.from_numpy(gt_masks).float()) if is_right else ("", None)
    rollouts = [rollout(1.0, float(is_right), float(is_right))] * 2
    return score_answer(sample, text, probs, gt_masks, sampled=rollouts)


@pytest.fixture
def results(samples: list[AVSample], tmp_path: Path) -> list[Run]:
    """Before: every third row right. After: all right."""
    runs = [Run("SFT", tmp_path / "before"), Run("GRPO", tmp_path / "after")]
    write_results(file_of(runs[0]), [result_of(s, is_right=i % 3 == 0) for i, s in enumerate(samples)])
    write_results(file_of(runs[1]), [result_of(s, is_right=True) for s in samples])
    return runs


def file_of(run: Run, ablation: str = "") -> Path:
    return run.folder / f"results{ablation}.jsonl"


def take_away(run: Run, ablation: str, results: Path) -> Run:
    """The run, which has made an ablation with these results."""
    shutil.copyfile(results, file_of(run, f".{ablation}"))
    return run


@pytest.fixture
def training(tmp_path: Path) -> Run:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": LOG_HISTORY}))
    return Run("GRPO", folder)


def test_page_holds_the_numbers_of_both_models(samples, results, training, tmp_path):
    page = build_page(tmp_path, results, trainings=[training], gallery=samples)
    # Sampled reward: (3 + 1 + 1) / 3 before, 3 after. Category accuracy 1/3 before, 1 after.
    assert re.search(r"Sampled reward of 3 .*? 1\.667 3\.000 ▲ better \+1\.333", page.text)
    assert re.search(r"Category the greedy answer names the right object 0\.333 1\.000 ▲ better \+0\.667", page.text)
    assert "measured on 9 questions about 9 held-out clips" in page.text
    assert "Preset refavs" in page.text
    assert "Mix, mean of splits" in page.text and "Mix, row weighted" in page.text


def test_page_loads_nothing_from_anywhere(samples, results, training, tmp_path):
    page = build_page(tmp_path, results, trainings=[training], gallery=samples)
    assert page.addresses and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"https?://|@import|url\((?!data:|#)", page.html)
    assert "default-src 'none'" in page.html
    assert str(tmp_path) not in page.html


def test_all_text_is_escaped(samples, results, training, tmp_path):
    evil = [dataclasses.replace(sample, reference=EVIL, reference_type=EVIL) for sample in samples]
    for run in results:
        write_results(
            file_of(run), [result_of(dataclasses.replace(sample, chain=EVIL), is_right=True) for sample in evil]
        )
    runs = [Run(EVIL, results[0].folder), Run("GRPO", results[1].folder), Run(f"{EVIL} again", results[0].folder)]
    log = [{"step": 1, f"rewards/{EVIL}/mean": 0.5}]
    (training.folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    ablated = take_away(runs[0], "audio_muted", file_of(runs[0]))
    trainings = [Run(EVIL, training.folder)]
    page = build_page(tmp_path, runs, title=EVIL, note=EVIL, ablated=ablated, trainings=trainings, gallery=evil)
    assert page.html.count("<script") == page.tags.count("script") == 1
    assert '“<script>alert("&")</script>”' in page.text  # there, as text


def test_seg_token_stands_out_in_the_chain(samples, results, training, tmp_path):
    page = build_page(tmp_path, results, trainings=[training], gallery=samples)
    assert 'It is <span class="seg">[SEG]</span>.' in page.html


def test_every_clip_has_sound_and_pictures_described_in_words(samples, results, tmp_path):
    page = build_page(tmp_path, results, gallery=samples, num_clips=5)
    assert page.tags.count("audio") == 5
    assert len(page.images) == 5 * 3 and all(image["alt"] for image in page.images)
    assert any("nothing" in image["alt"] for image in page.images)  # a null reference is among them


def test_curves_are_drawn_for_what_was_logged_and_nothing_else(results, training, tmp_path):
    page = build_page(tmp_path, results, trainings=[training])
    assert page.html.count('class="chart"') == 7
    assert "GRPO: Rewards by function. mask IoU from 0.02 to 0.8." in page.text
    assert "Mask losses" not in page.text


def test_sections_without_results_are_left_out(results, tmp_path):
    page = build_page(tmp_path, results)
    for section in ("runs", "ablations", "curves", "clips"):
        assert f'id="{section}"' not in page.html and f'href="#{section}"' not in page.html


def test_further_runs_are_compared_with_the_first(results, tmp_path):
    page = build_page(tmp_path, [*results, Run("GRPO without guards", results[0].folder)])
    assert "SFT 1.667 " in page.text and "GRPO 3.000 ▲ better +1.333" in page.text
    assert "GRPO without guards 1.667 ○ unclear 0.000" in page.text


def test_ablations_are_compared_with_the_model_that_has_all(results, tmp_path):
    ablated = take_away(results[1], "audio_muted", file_of(results[0]))
    page = build_page(tmp_path, results, ablated=Run("long SFT", ablated.folder))
    assert "Differences are from long SFT." in page.text
    assert "long SFT 3.000" in page.text and "audio muted 1.667 ▼ worse −1.333" in page.text


def test_two_runs_of_one_name_are_an_error(results, tmp_path):
    for runs in ([results[0], results[0]], results[:1]):
        with pytest.raises(ValueError, match="give two or more, each with a name of its own"):
            build_page(tmp_path, runs)


def test_results_without_sampled_completions_still_make_a_page(samples, results, tmp_path):
    for run, is_right in zip(results, (False, True), strict=True):
        write_results(file_of(run), [dataclasses.replace(result_of(s, is_right=is_right), sampled=()) for s in samples])
    page = build_page(tmp_path, results)
    assert "category went from 0.00 to 1.00" in page.text
    assert "Sampled reward of 3" not in page.text


def test_evaluations_of_different_rows_are_an_error(samples, results, training, tmp_path):
    write_results(file_of(results[1]), [result_of(sample, is_right=True) for sample in samples[1:]])
    with pytest.raises(ValueError, match="in one run only"):
        build_page(tmp_path, results)
