import dataclasses
import itertools
import json
import math
import random

import pytest

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import check_order_is_kept, in_curriculum
from aurora_rl.data.curriculum import ORDERS, PassRate, by_pass_rates, dead_share, rate_of, read_pass_rates
from aurora_rl.data.files import DatasetError
from aurora_rl.data.sample import AVSample


def sample(row: int) -> AVSample:
    values = {"uid": f"u{row}", "row": row, "split": "train", "media_id": "a", "category": "", "reference": "?"}
    return AVSample(**values, fps=1.0, frame_paths=(), audio_path="a.wav", extra=json.dumps({"kind": "x"}))


SAMPLES = [sample(row) for row in range(40)]
PASSES = random.Random(0).choices(range(17), k=len(SAMPLES))
RATES = {(each.uid, each.row): PassRate(count, 16) for each, count in zip(SAMPLES, PASSES, strict=True)}


def counts(samples: list[AVSample]) -> list[int]:
    return [rate_of(each).passes for each in samples]


def test_rows_that_teach_nothing_are_left_out_and_the_rest_keep_their_order():
    kept = by_pass_rates(SAMPLES, RATES)
    assert counts(kept) == [count for count in PASSES if 0 < count < 16]
    assert counts(by_pass_rates(SAMPLES, RATES, above=-1, below=2)) == PASSES
    assert counts(by_pass_rates(SAMPLES, RATES, above=0.25, below=0.5)) == [c for c in PASSES if 4 < c < 8]


@pytest.mark.parametrize(
    ("order", "key"),
    [("easy_to_hard", lambda c: -c), ("hard_to_easy", lambda c: c), ("middle_out", lambda c: abs(c - 8))],
)
def test_a_strict_order_is_by_the_rate(order, key):
    found = counts(by_pass_rates(SAMPLES, RATES, order=order))
    assert list(map(key, found)) == sorted(map(key, found)) and sorted(found) == sorted(
        counts(by_pass_rates(SAMPLES, RATES))
    )


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_depends_on_rates_keys_and_seed_alone(order):
    def of(samples: list[AVSample], seed: int = 0) -> list[int]:
        return [each.row for each in by_pass_rates(samples, RATES, order=order, seed=seed)]

    shuffled = random.Random(1).sample(SAMPLES, len(SAMPLES))
    assert of(SAMPLES) == of(shuffled) != of(SAMPLES, seed=1)


def test_bands_are_equal_parts_that_are_shuffled_inside():
    strict = counts(by_pass_rates(SAMPLES, RATES, order="easy_to_hard"))
    banded = counts(by_pass_rates(SAMPLES, RATES, order="easy_to_hard", bands=4))
    edges = [round(len(strict) * number / 4) for number in range(5)]
    for start, end in itertools.pairwise(edges):
        assert sorted(banded[start:end]) == sorted(strict[start:end])
    assert banded != strict
    assert counts(by_pass_rates(SAMPLES, RATES, order="easy_to_hard", bands=10_000)) == strict


def test_further_columns_stay_beside_the_rate():
    assert by_pass_rates(SAMPLES, RATES)[0].extra_columns == {
        "kind": "x",
        "passes": counts(by_pass_rates(SAMPLES, RATES))[0],
        "tries": 16,
    }
    assert rate_of(SAMPLES[0]) is None
    assert rate_of(dataclasses.replace(SAMPLES[0], extra=json.dumps({"passes": None, "tries": None}))) is None


def test_what_cannot_be_ordered_is_told():
    with pytest.raises(DatasetError, match="1 of 40 rows have no pass rate, the first is u39#39"):
        by_pass_rates(SAMPLES, {key: rate for key, rate in RATES.items() if key[1] != 39})
    with pytest.raises(DatasetError, match="none of 40 rows"):
        by_pass_rates(SAMPLES, dict.fromkeys(RATES, PassRate(16, 16)))
    with pytest.raises(ValueError, match="unknown curriculum 'hardest'"):
        by_pass_rates(SAMPLES, RATES, order="hardest")
    with pytest.raises(ValueError, match="curriculum_bands is 0"):
        by_pass_rates(SAMPLES, RATES, order="shuffled", bands=0)


@pytest.mark.parametrize("passes", range(17))
@pytest.mark.parametrize("size", [2, 8, 16])
def test_dead_share_is_that_of_all_groups_of_the_tries(passes, size):
    """Counted over all subsets of the 16 tries where they are few, else by its closed form at the ends."""
    if size == 2:
        tries = [True] * passes + [False] * (16 - passes)
        groups = list(itertools.combinations(tries, 2))
        expected = sum(a == b for a, b in groups) / len(groups)
    else:
        expected = (math.comb(passes, size) + math.comb(16 - passes, size)) / math.comb(16, size)
    assert dead_share(PassRate(passes, 16), size) == pytest.approx(expected)


def test_dead_share_is_unbiased():
    """Its mean over all outcomes of 16 tries at p = 0.9 is p^G + (1-p)^G; that of the rate put in for p is not."""
    p, size = 0.9, 8
    weights = [math.comb(16, k) * p**k * (1 - p) ** (16 - k) for k in range(17)]
    exact = p**size + (1 - p) ** size
    assert sum(w * dead_share(PassRate(k, 16), size) for k, w in enumerate(weights)) == pytest.approx(exact)
    inserted = sum(w * ((k / 16) ** size + (1 - k / 16) ** size) for k, w in enumerate(weights))
    assert inserted > exact + 0.01
    with pytest.raises(ValueError, match="4 tries a row tell nothing about groups of 8"):
        dead_share(PassRate(1, 4), 8)


GOOD = {"uid": "a", "row": 0, "passes": 3, "tries": 16}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([{**GOOD, "passes": 17}], "17 passes in 16 tries"),
        ([{**GOOD, "tries": 0, "passes": 0}], "0 passes in 0 tries"),
        ([{**GOOD, "passes": -1}], "-1 passes"),
        ([{**GOOD, "passes": True}], "no pass rate"),
        ([{"uid": "a", "row": 0}], "no pass rate"),
        ([GOOD, GOOD], "a#0 again"),
        (["{"], "cannot read pass rates"),
    ],
)
def test_a_malformed_file_is_told_by_its_line(tmp_path, lines, problem):
    path = tmp_path / "rates.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(DatasetError, match=problem):
        read_pass_rates(path)
    with pytest.raises(DatasetError, match="cannot read pass rates"):
        read_pass_rates(tmp_path / "none.jsonl")


def test_a_recipes_words_reach_the_order(tmp_path):
    path = tmp_path / "rates.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "uid": f"u{n}", "row": n, "passes": n % 5}) + "\n" for n in range(40)))
    args = DataArguments(pass_rates=str(path), curriculum="hard_to_easy", pass_rate_below=0.25)
    assert counts(in_curriculum(args, SAMPLES)) == [1] * 8 + [2] * 8 + [3] * 8
    assert in_curriculum(DataArguments(), SAMPLES) == SAMPLES


def test_an_order_that_would_be_lost_is_refused():
    with pytest.raises(ValueError, match="needs `pass_rates`"):
        in_curriculum(DataArguments("root", curriculum="easy_to_hard"), SAMPLES)
    with pytest.raises(ValueError, match="shuffle_dataset: false"):
        check_order_is_kept(DataArguments("root", curriculum="easy_to_hard"), is_shuffled=True)
    check_order_is_kept(DataArguments("root", curriculum="easy_to_hard"), is_shuffled=False)
    check_order_is_kept(DataArguments("root", pass_rates="rates.jsonl"), is_shuffled=True)
