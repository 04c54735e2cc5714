import random

import pytest
import torch

from aurora_rl.losses import exact_policy_loss
from reward_fns.tool_gain import tool_choice_reward, tool_gain_reward
from tests.tasks.test_tool_choice import question

NOBODY_KNOWS, HEARD_ALONE, RESCUED = question(), question((), (0,)), question((1,), (0, 1))


def rewards(func, *answers):
    """Of pairs of a row and what is answered."""
    texts = [text for _, text in answers]
    return func([None] * len(texts), texts, sample=[row for row, _ in answers])


def test_the_gain_is_what_the_tools_change_and_an_unreadable_set_is_no_better_than_a_wrong_one():
    right_with, broken, both = (
        (RESCUED, "<answer>1</answer>"),
        (HEARD_ALONE, "<answer>2</answer>"),
        (HEARD_ALONE, "<answer>0</answer>"),
    )
    unreadable = (HEARD_ALONE, "none")
    found = rewards(tool_gain_reward, right_with, broken, both, unreadable, (RESCUED, "none"))
    assert found == pytest.approx([1.0, -0.9, 0.05, -0.95, 0.0])


def test_a_right_choice_earns_more_the_fewer_tools_it_takes():
    one, none = (RESCUED, "<answer>1</answer>"), (HEARD_ALONE, "<answer></answer>")
    wrong, wrong_all = (NOBODY_KNOWS, "<answer></answer>"), (NOBODY_KNOWS, "<answer>0,1,2</answer>")
    found = rewards(tool_choice_reward, one, none, wrong, wrong_all, (HEARD_ALONE, "<answer>0"))
    assert found == pytest.approx([1 + 0.1 / 3, 1.1, -0.9, -1.1, -1.1])
    assert rewards(tool_choice_reward, (question((0, 1, 2)), "<answer>0,1,2</answer>")) == pytest.approx([0.9])


def test_a_row_without_a_table_is_named():
    row = question().to_row() | {"extra": None}
    with pytest.raises(ValueError, match="sample a#0 has no entry of a tool table"):
        rewards(tool_choice_reward, (type(RESCUED).from_row(row), "<answer>0</answer>"))


def test_in_grpo_the_differential_reward_is_accuracy_where_all_sets_are_readable():
    drawn = random.Random(0)
    for _ in range(200):
        row = question(*[(tool,) for tool in range(3) if drawn.random() < 0.5], *([()] if drawn.random() < 0.5 else []))
        answers = [(row, f"<answer>{drawn.randrange(3)}</answer>") for _ in range(6)]
        gain = torch.tensor(rewards(tool_gain_reward, *answers), dtype=torch.float64)
        right = (torch.tensor(rewards(tool_choice_reward, *answers), dtype=torch.float64) > 0).double()
        if right.std() > 0:
            advantages = [(each - each.mean()) / each.std() for each in (gain, right)]
            assert torch.allclose(*advantages, atol=1e-6)


def test_a_price_that_a_group_is_scaled_by_is_as_loud_as_an_answer():
    chosen = ["", "0", "0,1", "0,1,2"]
    found = torch.tensor(
        rewards(tool_choice_reward, *[(NOBODY_KNOWS, f"<answer>{tools}</answer>") for tools in chosen])
    )
    unscaled = found - found.mean()
    assert unscaled == pytest.approx(torch.tensor([0.1, 0.1 / 3, -0.1 / 3, -0.1]), abs=1e-6)
    assert unscaled / found.std() == pytest.approx(torch.tensor([1.162, 0.387, -0.387, -1.162]), abs=1e-3)


def test_the_exact_loss_is_the_expected_reward_and_its_gradient_is_the_policys():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]], requires_grad=True)  # two sets are right, each a quarter likely
    gains = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss = exact_policy_loss(logits.log_softmax(1), gains, rest_reward=-1.1, entropy_weight=0.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    loss.backward()
    # d/dl_a of -sum pi r is -pi_a (r_a - mean r)
    assert logits.grad == pytest.approx(torch.tensor([[-0.25, 0.25, -0.25, 0.25]]), abs=1e-6)


def test_the_exact_loss_counts_what_is_no_set_as_unreadable_and_adds_the_entropy():
    half = torch.tensor([[0.25, 0.25]]).log()
    entropy = 2 * 0.25 * 1.386294
    for rest_reward in (-1.1, torch.tensor([-1.1])):
        found = exact_policy_loss(half, torch.ones(1, 2), rest_reward=rest_reward, entropy_weight=0.03)
        assert found.item() == pytest.approx(-(0.5 - 0.55 + 0.03 * entropy), abs=1e-5)
    with pytest.raises(ValueError, match="both"):
        exact_policy_loss(half, torch.ones(2), rest_reward=0.0)
