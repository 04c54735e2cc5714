"""Mistakes are what a model really answered: kept with their reasons, once a row, through kills."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample
from aurora_rl.inference.predictor import Completion, Predictor
from aurora_rl.scripts.collect_mistakes import MistakeArguments, main

Answer = Callable[[AVSample], tuple[str, bool]]


def right(sample: AVSample) -> tuple[str, bool]:
    return sample.chain, True


def zebra(sample: AVSample) -> tuple[str, bool]:
    return "Look: I see a zebra.\nAnswer: the target is the zebra. It is [SEG].", True


def silent(sample: AVSample) -> tuple[str, bool]:
    return sample.chain.replace(" It is [SEG].", ""), False


def flawed(sample: AVSample) -> tuple[str, bool]:
    """Rows 0, 3, 6, ... are right, 1, 4, ... name a zebra, 2, 5, ... give no masks."""
    return (right, zebra, silent)[sample.row % 3](sample)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[AVSample]]:
    """Let the model answer by a function; masks are the truth where it gives some. Returns the rows that were asked."""

    def install(*answers: Answer) -> list[AVSample]:
        asked: list[AVSample] = []

        def predict(self: Predictor, samples: list[AVSample], **options: Any) -> Iterator[tuple[Any, list[Completion]]]:
            for sample in samples:
                encoded = self.encode(sample)
                asked.append(sample)
                completions = []
                for answer in answers:
                    text, has_masks = answer(sample)
                    truth = torch.from_numpy(load_clip(sample).gt_masks).float()
                    completions.append(Completion(text, truth if has_masks else None))
                yield encoded, completions

        monkeypatch.setattr(Predictor, "predict", predict)
        return asked

    return install


@pytest.fixture
def collect(data_args: DataArguments, tiny_checkpoint: str, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run the tool and read what it wrote."""

    def run(**options: Any) -> list[dict[str, Any]]:
        out = tmp_path / "mistakes.jsonl"
        main(ModelArguments(model=tiny_checkpoint), data_args, MistakeArguments(str(out), use_cpu=True, **options))
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def test_wrong_answers_are_kept_with_their_reasons(answering, collect, train_samples):
    answering(flawed)
    mistakes = collect()
    assert [record["row"] for record in mistakes] == [s.row for s in train_samples if s.row % 3]
    by_row = {sample.row: sample for sample in train_samples}
    for record in mistakes:
        sample = by_row[record["row"]]
        assert (record["uid"], record["category"], record["exp"]) == (sample.uid, sample.category, sample.reference)
        assert record["completion"] == flawed(sample)[0]
        assert record["answered"] == ("zebra" if sample.row % 3 == 1 else sample.category.replace("-", " "))
        assert record["reasons"] == (["category"] if sample.row % 3 == 1 else ["no_seg", "iou"])
    assert len({record["model"] for record in mistakes}) == 1


def test_a_right_answer_with_a_poor_mask_is_a_mistake_only_below_the_threshold(
    answering, collect, train_samples, monkeypatch
):
    answering(right)
    monkeypatch.setattr(
        "aurora_rl.scripts.collect_mistakes.score_rollout",
        lambda *args, **options: type("Score", (), {"is_right": True, "iou": 0.4}),
    )
    assert collect(min_iou=0.4) == []


def test_an_iou_below_the_threshold_is_a_mistake(answering, collect, monkeypatch, train_samples):
    answering(right)
    monkeypatch.setattr(
        "aurora_rl.scripts.collect_mistakes.score_rollout",
        lambda *args, **options: type("Score", (), {"is_right": True, "iou": 0.4}),
    )
    assert {tuple(record["reasons"]) for record in collect(min_iou=0.5)} == {("iou",)}


def test_of_several_completions_the_first_wrong_one_is_kept(answering, collect):
    answering(right, zebra, silent)
    assert {record["answered"] for record in collect(num_samples=3)} == {"zebra"}


def test_a_killed_run_goes_on_where_it_was(answering, collect, train_samples, tmp_path):
    def killed_at_row_five(sample: AVSample) -> tuple[str, bool]:
        if sample.row == 5:
            raise KeyboardInterrupt
        return flawed(sample)

    answering(killed_at_row_five)
    with pytest.raises(KeyboardInterrupt):
        collect()
    part = tmp_path / "mistakes.jsonl.parts" / "00000.jsonl"
    with part.open("ab") as file:
        file.write(b'{"uid": "torn')  # as a kill in the middle of a write leaves it
    asked = answering(flawed)
    resumed = collect()
    # The batch of row 5 whole, as padding makes a row's numbers depend on its batch; its other rows are not kept twice.
    first = 5 - 5 % MistakeArguments.batch_size
    assert [sample.row for sample in asked] == [s.row for s in train_samples if s.row >= first]
    rows = [json.loads(line)["row"] for line in part.read_text().splitlines()]
    assert rows == [sample.row for sample in train_samples]
    shutil.rmtree(part.parent)
    assert collect() == resumed


@pytest.mark.parametrize(("name", "value"), [("fps", 1.0), ("system_prompt", "Be brief."), ("max_pixels", 4096)])
def test_a_run_that_puts_the_clips_otherwise_is_refused(name, value, answering, collect, data_args):
    answering(flawed)
    mistakes = collect()
    data_args.chains = None  # no answer depends on it
    assert collect() == mistakes
    setattr(data_args, name, value)
    with pytest.raises(ValueError, match=rf"was begun with other \['{name}'\]"):
        collect()


def test_a_run_with_other_settings_is_refused(answering, collect):
    answering(flawed)
    collect(min_iou=0.5)
    with pytest.raises(ValueError, match=r"was begun with other \['min_iou'\]: delete it, or choose another `output`"):
        collect(min_iou=0.3)


def test_only_the_first_rows_are_asked_where_that_is_wanted(answering, collect, train_samples):
    asked = answering(zebra)
    assert len(collect(max_rows=3)) == 3
    assert asked == train_samples[:3]


def test_a_real_model_that_knows_nothing_is_wrong_in_every_row(collect, train_samples):
    """No script here: the random checkpoint writes what it writes."""
    mistakes = collect(max_rows=4, max_completion_length=4, batch_size=4)
    assert [record["row"] for record in mistakes] == [sample.row for sample in train_samples[:4]]
    assert all({"category", "no_seg"} <= set(record["reasons"]) for record in mistakes)


@pytest.mark.parametrize("num_samples", [0, 2])
def test_only_the_last_position_of_a_prompt_is_projected(collect, projected, num_samples):
    collect(max_rows=2, max_completion_length=4, num_samples=num_samples)
    assert projected and set(projected) == {1}
