"""A judge behind an endpoint grades completions: all at once, in their order, once each, and within its limits."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.rewards import RewardError, guard_reward_func
from reward_fns.judge import JudgeReward
from tests.fake_endpoint import COMPLETION_TOKENS, PROMPT_TOKENS, FakeEndpoint, endpoint

__all__ = ["endpoint"]

ROWS = 12
QUESTION = "Somebody asked for {reference}. Grade this:\n{completion}"
#: What one reply costs.
PRICES = {"input_price": 1e6 / PROMPT_TOKENS, "output_price": 1e6 / COMPLETION_TOKENS}
COST = 2.0


def judge(endpoint: FakeEndpoint, *, judge_options: dict[str, Any] | None = None, **options: Any) -> JudgeReward:
    args = {"model": "judge", "base_url": endpoint.url, "concurrency": ROWS, "backoff_s": 0.001, **options}
    return JudgeReward(EndpointArguments(**args), question=QUESTION, **(judge_options or {}))


def grade(reward: JudgeReward, rows: list[int] | range = range(ROWS)) -> list[float | None]:
    guarded = guard_reward_func(reward)
    columns = {"reference": [f"the thing of row {row}" for row in rows], "uid": [f"clip{row}" for row in rows]}
    return asyncio.run(guarded(prompts=[""] * len(rows), completions=[f"I hear {row}." for row in rows], **columns))


@pytest.fixture
def grades(endpoint: FakeEndpoint) -> FakeEndpoint:
    """The grade of row n is n / 16."""
    for row in range(16):
        endpoint.bodies[f"grade {row}"] = (200, reply(json.dumps({"grade": row / 16})))
    endpoint.bodies["too good"] = (200, reply('{"grade": 7}'))
    endpoint.plan = lambda row, attempt: f"grade {row}"
    return endpoint


def reply(text: str) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 120}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge"}
    return json.dumps(head | {"choices": [choice], "usage": usage})


def test_all_questions_of_a_batch_are_under_way_at_once_and_their_rewards_are_in_order(grades: FakeEndpoint) -> None:
    grades.delay_s = 0.2
    grades.plan = lambda row, attempt: "500" if row % 5 == 0 and attempt == 1 else f"grade {row}"  # these come last
    assert grade(judge(grades)) == [row / 16 for row in range(ROWS)]
    assert grades.most == ROWS


def test_no_more_questions_are_under_way_than_the_endpoint_allows(grades: FakeEndpoint) -> None:
    grades.delay_s = 0.02
    assert grade(judge(grades, concurrency=4)) == [row / 16 for row in range(ROWS)]
    assert grades.most == 4


def test_the_question_has_the_completion_and_its_row_and_is_asked_once(grades: FakeEndpoint) -> None:
    assert grade(judge(grades), [3, 5, 3]) == [3 / 16, 5 / 16, 3 / 16]
    assert len(grades.log) == 2
    [message] = grades.log[0].body["messages"]
    assert message["content"].startswith(
        "Somebody asked for the thing of row 3. Grade this:\nI hear 3.\nAnswer with JSON"
    )


def test_a_grade_beyond_the_scale_is_asked_for_again(grades: FakeEndpoint) -> None:
    grades.plan = lambda row, attempt: "too good" if attempt == 1 else f"grade {row}"
    assert grade(judge(grades), [4]) == [0.25]
    assert len(grades.log) == 2


def test_a_question_without_an_answer_stops_the_run_and_is_told(grades: FakeEndpoint) -> None:
    grades.plan = lambda row, attempt: "too good" if row == 4 else f"grade {row}"
    with pytest.raises(RewardError, match=r"'JudgeReward' raised NoAnswerError: the grade is 7.*sample 'clip3'"):
        grade(judge(grades, max_attempts=2), [3, 4])


def test_a_resumed_run_asks_nothing_twice_and_stops_at_its_budget(grades: FakeEndpoint, tmp_path: Path) -> None:
    options = {"journal": tmp_path / "grades.jsonl", "max_cost": 3 * COST}
    first = judge(grades, judge_options=options, concurrency=1, **PRICES)
    assert grade(first, [1, 2]) == [1 / 16, 2 / 16]
    first._journal.close()  # as at the end of its process
    resumed = judge(grades, judge_options=options, concurrency=1, **PRICES)
    assert grade(resumed, [2, 1, 3]) == [2 / 16, 1 / 16, 3 / 16]
    assert [request.row for request in grades.log] == [1, 2, 3]
    with pytest.raises(RewardError, match=r"BudgetError: the judge's grades cost 6.0000, max_cost is 6"):
        grade(resumed, [4])
    assert len(grades.log) == 3


def test_what_cannot_be_asked_is_refused() -> None:
    args = EndpointArguments(model="judge", base_url="http://localhost:1/v1")
    with pytest.raises(ValueError, match="no {completion}"):
        JudgeReward(args, question="Is it right?")
    with pytest.raises(ValueError, match="without prices"):
        JudgeReward(args, question=QUESTION, max_cost=1.0)
    with pytest.raises(RewardError, match="names {reference}, but there is no such column"):
        asyncio.run(guard_reward_func(JudgeReward(args, question=QUESTION))(prompts=[""], completions=[""]))
