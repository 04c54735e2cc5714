"""Pass rates count what a model really answered, once a row, through kills."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.data.curriculum import read_pass_rates
from aurora_rl.files.journal import Journal
from aurora_rl.rollout.base import Rollouts
from aurora_rl.scripts import asked_rows
from aurora_rl.scripts.pass_rates import PassRateArguments, main
from tests.data_prep.test_collect_mistakes import answering, right, silent, zebra  # noqa: F401 (a fixture)


@pytest.fixture
def count(data_args: DataArguments, tiny_checkpoint: str, tmp_path: Path) -> Callable[..., list[dict]]:
    """Run the tool and read what it wrote."""

    def run(**options: object) -> list[dict]:
        out = tmp_path / "rates.jsonl"
        main(ModelArguments(model=tiny_checkpoint), data_args, PassRateArguments(str(out), use_cpu=True, **options))
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def test_every_row_has_its_count_of_right_answers(answering, count, train_samples, tmp_path):  # noqa: F811
    answering(right, zebra, right, silent)  # `silent` is right in its words and has no masks
    rates = count()
    assert [record["row"] for record in rates] == [sample.row for sample in train_samples]
    assert all((record["passes"], record["tries"]) == (3, 4) for record in rates)
    assert len(read_pass_rates(tmp_path / "rates.jsonl")) == len(train_samples)


def test_masks_count_where_they_are_asked_for(answering, count):  # noqa: F811
    answering(right, zebra, right, silent)
    assert {record["passes"] for record in count(min_iou=0.5)} == {2}


def test_ten_kills_lose_and_double_no_row(answering, count, train_samples, monkeypatch, tmp_path):  # noqa: F811
    asked = answering(right, zebra)
    expected = count()
    shutil.rmtree(tmp_path / "rates.jsonl.parts")
    appended, append = [], Journal.append

    def killed(self: Journal, record: dict) -> None:
        append(self, record)
        appended.append(record)
        if len(appended) % 3 == 0 and len(appended) <= 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", killed)
    kills = 0
    while True:
        try:
            assert count() == expected
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == min(10, len(train_samples) // 3) and len(appended) == len(train_samples)
    assert len(asked) >= 2 * len(train_samples)


def test_tries_with_other_settings_are_not_mixed(answering, count):  # noqa: F811
    answering(right)
    count()
    with pytest.raises(ValueError, match="begun with other"):
        count(num_samples=8)
    with pytest.raises(ValueError, match="one try at least"):
        PassRateArguments("x", num_samples=0)


def test_vllm_is_asked_where_it_is_on(count, train_samples, monkeypatch):
    """An engine that ends each turn at once; what it samples in truth is tested in tests/rollout/test_engine.py."""
    started, drawn, temperatures = [], [], []

    def generate_rows(prompts, *, seeds: list[int], **options: object) -> Rollouts:
        drawn.extend(seeds)
        temperatures.append(started[0][1].temperature)
        return Rollouts([[0]] * len(prompts), [[0.0]] * len(prompts))

    def start_engine(args: PassRateArguments, loaded: object) -> SimpleNamespace:
        started.append((args, SimpleNamespace(generate_rows=generate_rows, max_model_length=None)))
        return started[0][1]

    monkeypatch.setattr(asked_rows, "start_engine", start_engine)
    rates = count(use_vllm=True, num_samples=2)
    assert {(record["passes"], record["tries"]) for record in rates} == {(0, 2)}
    assert len({*drawn}) == 2 * len(train_samples)
    assert len(started) == 1 and started[0][0].use_vllm and {*temperatures} == {1.0}
    with pytest.raises(ValueError, match="begun with other"):
        count(num_samples=2)
