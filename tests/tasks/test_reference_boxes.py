"""The text of reference segmentation with the token of boxes."""

import dataclasses

import pytest

from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.models.teacher import teacher_target
from aurora_rl.tasks.base import load_task
from aurora_rl.tasks.reference_boxes import ReferenceBoxes
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

TASK = "aurora_rl.tasks.reference_boxes:ReferenceBoxes"


@pytest.fixture
def samples(data_args):
    return load_split(dataclasses.replace(data_args, task=TASK), "train")


@pytest.mark.parametrize("target", ["chain", "answer", "teacher"])
def test_targets_are_those_of_masks_with_the_other_token(samples, train_samples, target):
    boxes, masks = load_task(TASK).targets()[target], ReferenceSegmentation().targets()[target]
    for sample, with_masks in zip(samples, train_samples, strict=True):
        assert "[SEG]" not in boxes(sample).learned and boxes(sample).learned.count("[BOX]") == 1
        assert boxes(sample).learned.replace("[BOX]", "[SEG]") == masks(with_masks).learned


def test_a_gold_chain_has_all_scores_and_one_with_the_token_of_masks_no_form(samples):
    task, sample = ReferenceBoxes(), samples[0]
    text = task.target(sample).learned
    assert set(task.text_scores(task.parse(text), sample).values()) == {1.0}
    assert task.parse(text).text == text
    assert task.text_scores(task.parse(text.replace("[BOX]", "[SEG]")), sample)["format"] == 0.0
    assert task.parse("[SEG][BOX]").num_seg == 1


def test_the_instruction_asks_for_the_token(samples):
    [message] = ReferenceBoxes().messages(samples[0])
    assert "It is [BOX]." in str(message["content"]) and "[SEG]" not in str(message["content"])


def test_boxes_have_no_teacher() -> None:
    """A teacher's features are prompts of a mask decoder."""
    with pytest.raises(ValueError, match="ReferenceBoxes has no masks.*drop `teacher`"):
        teacher_target(ReferenceBoxes())
