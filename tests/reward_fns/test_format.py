import pytest

from aurora_rl.tasks.prompts import answer_for, render_chain
from reward_fns.format import answer_format_reward, format_reward

CHAIN = render_chain({"look": "I see a drum.", "listen": "I hear a drum.", "read": "asked for."}, answer_for("drum"))
ANSWER = answer_for("drum")


def _reward(reward_func, text):
    return reward_func(prompts=["p"], completions=[[{"role": "assistant", "content": text}]])[0]


def test_a_whole_chain_earns_one():
    assert _reward(format_reward, CHAIN) == 1.0
    assert _reward(format_reward, render_chain({"look": "a", "listen": "b", "read": "c"}, answer_for("null"))) == 1.0


def test_an_answer_without_steps_is_enough_only_where_none_are_required():
    assert _reward(format_reward, ANSWER) == 0.0
    assert _reward(answer_format_reward, ANSWER) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        CHAIN.replace(" It is [SEG].", ""),  # no [SEG]
        CHAIN.replace("I see", "[SEG] I see"),  # two [SEG]
        CHAIN + " It is [SEG].",  # two [SEG]
        CHAIN[:-1],  # truncated
        CHAIN + " Thanks.",
    ],
)
def test_a_malformed_end_earns_nothing(text):
    assert _reward(format_reward, text) == 0.0
    assert _reward(answer_format_reward, text) == 0.0


def test_a_missing_step_earns_nothing():
    assert _reward(format_reward, CHAIN.replace("Listen:", "Then")) == 0.0


def test_a_chain_taken_back_and_started_anew_earns_one():
    wrong = CHAIN.replace(" It is [SEG].", "")
    assert _reward(format_reward, f"{wrong}\nWait, let me reconsider.\n{CHAIN}") == 1.0
    assert _reward(format_reward, f"{wrong}\n{CHAIN}") == 0.0  # two chains and no withdrawal
    assert _reward(format_reward, f"{CHAIN}\nWait, let me reconsider.\n{CHAIN}") == 0.0  # two [SEG]
