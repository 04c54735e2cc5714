"""The HTML page, built from files as a run leaves them."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from aurora_rl.data.media import load_clip
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.records import RolloutScore, RowResult, write_results
from aurora_rl.evaluation.scoring import score_answer
from aurora_rl.report.training_page import ReportResults, read_log_history, write_report
from aurora_rl.tasks.reference_segmentation import chain_file

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


def build_page(tmp_path: Path, results: ReportResults, **arguments) -> Page:
    defaults = {"title": "T", "runs": {}, "gallery": []}
    return Page(write_report(tmp_path / "report.html", results=results, **(defaults | arguments)).read_text("utf-8"))


def result_of(sample: AVSample, *, is_right: bool) -> RowResult:
    """The gold chain and the true masks, or an empty completion without masks; sampled reward 3 or 1."""
    gt_masks = load_clip(sample).gt_masks
    text, probs = (sample.chain, torch.from_numpy(gt_masks).float()) if is_right else ("", None)
    rollouts = [RolloutScore(1.0, float(is_right), float(is_right))] * 2
    return score_answer(sample, text, probs, gt_masks, sampled=rollouts)


@pytest.fixture
def results(samples: list[AVSample], tmp_path: Path) -> ReportResults:
    """Before: every third row right. After: all right."""
    write_results(tmp_path / "before.jsonl", [result_of(s, is_right=i % 3 == 0) for i, s in enumerate(samples)])
    write_results(tmp_path / "after.jsonl", [result_of(s, is_right=True) for s in samples])
    return ReportResults(before=tmp_path / "before.jsonl", after=tmp_path / "after.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": LOG_HISTORY}))
    return folder


def test_page_holds_the_numbers_of_both_models(samples, results, run, tmp_path):
    page = build_page(tmp_path, results, runs={"GRPO": run}, gallery=samples)
    # Sampled reward: (3 + 1 + 1) / 3 before, 3 after. Category accuracy 1/3 before, 1 after.
    assert re.search(r"Sampled reward of 3 .*? 1\.667 3\.000 ▲ better \+1\.333", page.text)
    assert re.search(r"Category the greedy answer names the right object 0\.333 1\.000 ▲ better \+0\.667", page.text)
    assert "measured on 9 questions about 9 held-out clips" in page.text
    assert "Preset refavs" in page.text
    assert "Mix, mean of splits" in page.text and "Mix, row weighted" in page.text


def test_page_loads_nothing_from_anywhere(samples, results, run, tmp_path):
    page = build_page(tmp_path, results, runs={"GRPO": run}, gallery=samples)
    assert page.addresses and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"https?://|@import|url\((?!data:|#)", page.html)
    assert "default-src 'none'" in page.html
    assert str(tmp_path) not in page.html


def test_all_text_is_escaped(samples, results, run, tmp_path):
    evil = [dataclasses.replace(sample, reference=EVIL, reference_type=EVIL) for sample in samples]
    for path in (results.before, results.after):
        write_results(path, [result_of(dataclasses.replace(sample, chain=EVIL), is_right=True) for sample in evil])
    named = dataclasses.replace(results, before_name=EVIL, ablations={EVIL: results.after})
    log = [{"step": 1, f"rewards/{EVIL}/mean": 0.5}]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    page = build_page(tmp_path, named, title=EVIL, runs={EVIL: run}, gallery=evil)
    assert page.html.count("<script") == page.tags.count("script") == 1
    assert '“<script>alert("&")</script>”' in page.text  # there, as text


def test_seg_token_stands_out_in_the_chain(samples, results, run, tmp_path):
    page = build_page(tmp_path, results, runs={"GRPO": run}, gallery=samples)
    assert 'It is <span class="seg">[SEG]</span>.' in page.html


def test_every_clip_has_sound_and_pictures_described_in_words(samples, results, tmp_path):
    page = build_page(tmp_path, results, gallery=samples, num_clips=5)
    assert page.tags.count("audio") == 5
    assert len(page.images) == 5 * 3 and all(image["alt"] for image in page.images)
    assert any("nothing" in image["alt"] for image in page.images)  # a null reference is among them


def test_curves_are_drawn_for_what_was_logged_and_nothing_else(results, run, tmp_path):
    page = build_page(tmp_path, results, runs={"GRPO": run})
    assert page.html.count('class="chart"') == 7
    assert "GRPO: Rewards by function. mask IoU from 0.02 to 0.8." in page.text
    assert "Mask losses" not in page.text


def test_sections_without_results_are_left_out(results, tmp_path):
    page = build_page(tmp_path, results)
    for section in ("guards", "ablations", "curves", "clips"):
        assert f'id="{section}"' not in page.html and f'href="#{section}"' not in page.html


def test_run_without_the_chains_guards_and_ablations_are_compared(results, tmp_path):
    full = dataclasses.replace(results, without_chain_guards=results.before, ablations={"sound muted": results.before})
    page = build_page(tmp_path, full)
    assert "GRPO without the chain's guards 1.667 ○ unclear 0.000" in page.text  # compared with SFT
    assert "sound muted 1.667 ▼ worse −1.333" in page.text  # compared with GRPO


def test_ablations_of_another_model_are_compared_with_that_model(results, tmp_path):
    other = dataclasses.replace(
        results, ablated=results.before, ablated_name="long SFT", ablations={"muted": results.after}
    )
    page = build_page(tmp_path, other)
    assert "Differences are from long SFT." in page.text
    assert "muted 3.000 ▲ better +1.333" in page.text


def test_results_without_sampled_completions_still_make_a_page(samples, results, tmp_path):
    for path, is_right in ((results.before, False), (results.after, True)):
        write_results(path, [dataclasses.replace(result_of(s, is_right=is_right), sampled=()) for s in samples])
    page = build_page(tmp_path, results)
    assert "category went from 0.00 to 1.00" in page.text
    assert "Sampled reward of 3" not in page.text


def test_evaluations_of_different_rows_are_an_error(samples, results, run, tmp_path):
    write_results(results.after, [result_of(sample, is_right=True) for sample in samples[1:]])
    with pytest.raises(ValueError, match="in one run only"):
        build_page(tmp_path, results)


def test_log_is_read_from_the_file_or_its_folder(run):
    assert read_log_history(run) == read_log_history(run / "trainer_state.json") == LOG_HISTORY


def test_file_that_is_no_trainer_state_is_an_error(tmp_path):
    (tmp_path / "trainer_state.json").write_text("[]")
    with pytest.raises(ValueError, match="no trainer state"):
        read_log_history(tmp_path)
