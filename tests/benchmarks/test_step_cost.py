import contextlib
import io
import json
import math

import pytest
import torch

from aurora_rl.data.sample import AVSample
from benchmarks import step_cost
from benchmarks.contenders import MASK_PARTS, PARTS, Step, make_aurora, make_stock, make_words
from benchmarks.mask_decoding import WAYS
from benchmarks.sharing_sweep import CORNERS, GROUP, PROMPTS, SHORT, SWEEP, Point, group_of, points_along
from benchmarks.tables import Comparison
from benchmarks.timing import Seconds, Stopwatch
from benchmarks.workload import ImageEncoder, aurora_dataset, build_policy


def cells(output: str, first: str) -> list[list[str]]:
    """The rows of all tables that begin with a cell."""
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    return [row[1:] for row in rows if row[0] == first]


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory) -> tuple[str, dict[str, float]]:
    """What `step_cost.py --size toy` prints and writes."""

    path, output = tmp_path_factory.mktemp("bench") / "out.json", io.StringIO()
    plot = path.with_name("plot.svg")
    with contextlib.redirect_stdout(output):
        step_cost.main(["--size", "toy", "--num_threads", "1", "--output", str(path), "--plot", str(plot)])
    assert all(line in plot.read_text() for line in ("tokens, by count", "forward + backward", "whole step"))
    return output.getvalue(), json.loads(path.read_text())


def test_the_json_has_the_medians(toy_run):
    _, medians = toy_run
    ratios = ["ratio_without_masks", "ratio_dot", "ratio_without_head"]
    shared = ["ratio_shared_fwd_bwd", "tokens_ratio", "kept_bytes_ratio", "prefill_tokens_ratio", "ratio_shared_step"]
    shared += ["ratio_shared_short_prompt"]
    assert list(medians) == [*ratios, "decode_peak_gb", "decode_vs_loop", *shared]
    assert medians["tokens_ratio"] == 8 * (40 + 8) / (40 - 1 + 8 * (8 + 1))
    assert medians["prefill_tokens_ratio"] == 8 and medians["kept_bytes_ratio"] < 1
    assert all(math.isfinite(value) and value > 0 for value in medians.values())
    assert medians["ratio_dot"] > medians["ratio_without_masks"]  # the parts for masks, on one turn


def test_shared_prompts_can_be_measured_alone(monkeypatch):
    monkeypatch.setattr(step_cost, "measure_masks", lambda *_: pytest.fail("masks are measured, too"))
    monkeypatch.setattr(step_cost, "measure_shared_prompts", lambda *_: {})
    step_cost.main(["--only_sharing", "--num_threads", "1"])
    for wrong in (["--quick", "--plot", "plot.svg"], ["--plot", "plot.txt"]):
        with pytest.raises(SystemExit):
            step_cost.main(wrong)


def test_groups_of_several_sizes_have_a_row_each(toy_run):
    short, (_step, measured, counted) = cells(toy_run[0], "8")[0], cells(toy_run[0], "2")
    assert short[:4] == ["2", "8", "80", "73"] and short[-1] == "–"
    assert measured[:5] == ["40", "6", "92", "53", "1.74"]
    assert all(float(ratio) > 0 for ratio in measured[5:])
    assert counted == ["200", "32", "464", "265", "1.75", "–", "–", "–"]


def test_the_sweep_is_along_each_size_from_the_group_of_the_targets():
    points = list(map(Point, SWEEP))
    along = [[point.group.sizes for point in points_along(axis, points)] for axis in range(3)]
    assert along[0] == [(g, 1200, 128) for g in (2, 4, 8, 16, 32)]
    assert along[1] == [(8, p, 128) for p in (200, 600, 1200, 2400)]
    assert along[2] == [(8, 1200, c) for c in (32, 64, 128, 256, 512)]
    assert len(SWEEP) == 12 and len({group.sizes for group in CORNERS}) == 8
    assert all(group.prompt_length < group.shape.completion_length for group in SHORT)
    assert Point(GROUP).tokens_ratio == pytest.approx(10624 / 2231)


def test_the_prompts_of_whole_steps_have_as_many_tokens_as_those_of_the_passes():
    policy, sample = build_policy(step_cost.TOY), AVSample.from_row(aurora_dataset()[0])
    for length in PROMPTS:
        encoder = ImageEncoder(policy, group_of(prompt_length=length).shape)
        assert len(encoder.prepare(sample)().prompt.prompt_ids) == length


def test_the_tables_have_every_part_and_the_parts_sum_to_the_whole(toy_run):
    output, _ = toy_run
    names = (*PARTS, *MASK_PARTS)
    assert all(len(cells(output, name)) == 4 for name in names)  # trained on once and twice, words alone, a long prompt
    for turn in range(2):
        for column in range(2):
            parts = sum(float(cells(output, name)[turn][column]) for name in names)
            whole = float(cells(output, "**whole step**")[turn][column])
            assert parts == pytest.approx(whole, abs=0.0005 * (len(names) + 1))
        for part in ("generation", "forward", "backward"):
            assert all(float(cell) > 0 for cell in cells(output, part)[turn][:2])
        assert all(float(cells(output, part)[turn][0]) == 0 for part in MASK_PARTS)  # TRL's trainer has none
        assert all(float(cells(output, part)[turn][1]) > 0 for part in ("mask decode", "mask backward"))
    for part in MASK_PARTS:  # a task without a head has none
        assert float(cells(output, part)[2][1]) == 0
    assert all(len(cells(output, way)) == 1 for way in WAYS)
    assert len(cells(output, "encoded in the step")) == len(cells(output, "read from the cache")) == 1
    assert "StepShape(num_generations=2, num_frames=2" in output


def test_masks_add_no_forward_pass(toy_run):
    once, twice, words, _long = cells(toy_run[0], "forward passes, rollouts aside")
    assert once[:2] == words[:2] == ["1", "1"]  # the loss
    assert [float(row[1]) for row in cells(toy_run[0], "mask states")] == [0, 0, 0, 0]
    assert twice[:2] == ["3", "3"]  # old log-probabilities and two losses


@pytest.mark.parametrize("make_ours", [make_aurora, make_words])
def test_both_trainers_train_on_the_same_prompt_images_and_completions(make_ours):
    policy, stopwatch = build_policy(step_cost.TOY, has_head=make_ours is make_aurora), Stopwatch()
    batches = []
    for make in (make_stock, make_ours):
        contender = make(policy, step_cost.TOY, stopwatch)
        trainer = contender.trainer
        rollout, calls = trainer._generate_and_score_completions, []
        trainer._generate_and_score_completions = lambda rows, rollout=rollout, calls=calls: (
            calls.append(rollout(rows)) or calls[-1]
        )
        contender.step()
        batches.append(calls[0])
    stock, aurora = batches
    assert torch.equal(stock["prompt_ids"], aurora["prompt_ids"])
    assert stock["completion_ids"].shape == (2, 6)
    assert torch.equal(stock["completion_ids"], aurora["completion_ids"])
    assert make_ours is make_words or (stock["completion_ids"][:, -2] == policy.seg_token_id).all()
    assert not torch.equal(*stock["completion_ids"])  # the two differ, as sampled ones would
    images = aurora["encoded_rows"][0].prompt.features["pixel_values"]
    torch.testing.assert_close(stock["pixel_values"], torch.cat([images, images]))


def test_ratios_are_medians_over_pairs_and_leave_masks_out():
    def step(forward: float, masks: float) -> Step:
        return Step({"forward": Seconds(9, forward), "mask decode": Seconds(9, masks)}, peak_gb=0.0, num_forwards=1)

    # 1.1, 1.5 and 1.2 without masks; 1.2, 1.6 and 1.3 with them.
    pairs = [(step(10, 0), step(11, 1)), (step(20, 0), step(30, 2)), (step(10, 0), step(12, 1))]
    comparison = Comparison(pairs)
    assert comparison.ratio_without_masks("cpu") == pytest.approx(1.2)
    assert comparison.ratio("cpu") == pytest.approx(1.3)
