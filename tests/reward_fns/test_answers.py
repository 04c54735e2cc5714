"""Rewards read completions as the run's task has parsed them, and parse them themselves where nothing has."""

import pytest
import torch

from aurora_rl.rewards import RewardError, guard_reward_func
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.prompts import answer_for, render_chain
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
from reward_fns.category import authors_category_reward, category_reward
from reward_fns.format import answer_format_reward, format_reward
from reward_fns.perception import perception_reward
from reward_fns.reasoning_consistency import reasoning_consistency_reward

STEPS = {"look": "I see a drum and a bell.", "listen": "I hear a drum.", "read": "The drum on the left."}
CHAIN = render_chain(STEPS, answer_for("drum"))
TEXTS = [
    CHAIN,
    render_chain(STEPS, answer_for("null")),
    f"{CHAIN}\nWait, let me reconsider.\n{render_chain(STEPS, answer_for('bell'))}",
    CHAIN + CHAIN,
    answer_for("drum"),
    "the target is the dr",
    "",
]
REWARDS = [
    format_reward,
    answer_format_reward,
    category_reward,
    authors_category_reward,
    perception_reward,
    reasoning_consistency_reward,
]
COLUMNS = {
    "category": ["drum"] * len(TEXTS),
    "reference": ["the object on the left"] * len(TEXTS),
    "seen": [["drum", "bell"]] * len(TEXTS),
    "heard": [["drum"]] * len(TEXTS),
    "pred_masks": [torch.ones(1, 4, 4, dtype=torch.bool)] * len(TEXTS),
    "loudness_dbfs": [-20.0] * len(TEXTS),
}


@pytest.mark.parametrize("reward", REWARDS)
def test_a_reward_is_the_same_with_and_without_the_parsed_answers(reward):
    answers = [ReferenceSegmentation().parse(text) for text in TEXTS]
    expected = reward([None] * len(TEXTS), TEXTS, **COLUMNS)
    assert len(set(expected)) > 1
    assert reward([None] * len(TEXTS), TEXTS, answers=answers, **COLUMNS) == expected


@pytest.mark.parametrize("reward", [format_reward, category_reward, perception_reward, reasoning_consistency_reward])
def test_the_answers_are_what_is_read(reward):
    """A task may read a completion in its own way; the text alone would earn less."""
    right = [ReferenceSegmentation().parse(CHAIN)] * len(TEXTS)
    assert len(set(reward([None] * len(TEXTS), TEXTS, answers=right, **COLUMNS))) == 1


class YesNo(Answer):
    @property
    def value(self):
        return self.text


def test_a_reward_refuses_the_answers_of_another_task():
    told = "'category_reward' raised TypeError: this reads answers of reference segmentation, not YesNo"
    with pytest.raises(RewardError, match=told):
        guard_reward_func(category_reward)([None], ["yes"], answers=[YesNo("yes")], category=["drum"])


@pytest.mark.parametrize("text", TEXTS)
def test_the_task_scores_words_as_the_rewards_do(text, train_samples):
    task, sample = ReferenceSegmentation(), train_samples[0]
    scores = task.text_scores(task.parse(text), sample)
    assert [scores["format"]] == format_reward([None], [text])
    assert [scores["category"]] == category_reward([None], [text], category=[sample.category])
