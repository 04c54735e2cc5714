import asyncio
import dataclasses
import email.utils
import json
import time
from collections import Counter
from typing import Any

import pytest

from data_prep.endpoint import (
    BadReplyError,
    ChatEndpoint,
    EndpointArguments,
    EndpointRefusedError,
    RowFailedError,
    Usage,
    retry_after,
)

SCHEMA = {"type": "object"}


def ask(url: str, rows: list[int], *, read=json.loads, starts_after_s: float = 0.0, **options: Any):
    """Ask about rows at the same time, each `starts_after_s` later than the one before; (results, Usage, Counter)."""
    args = EndpointArguments(**{"model": "strong", "base_url": url, "backoff_s": 0.001, **options})
    usages: list[Usage] = []

    async def ask_all():
        endpoint = ChatEndpoint(args)

        async def ask_one(index: int, row: int):
            await asyncio.sleep(index * starts_after_s)
            messages = [{"role": "user", "content": f"The thing of row {row}."}]
            return await endpoint.ask(messages, schema=SCHEMA, read=read, on_usage=usages.append)

        asked = [ask_one(index, row) for index, row in enumerate(rows)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        await endpoint.close()
        return results, endpoint.failed_attempts

    results, failed_attempts = asyncio.run(ask_all())
    return results, sum(usages, Usage()), failed_attempts


def test_a_request_holds_what_was_asked_for(endpoint):
    ask(endpoint.url, [0], temperature=0.5, max_tokens=77, extra_body='{"top_k": 3}')
    (request,) = endpoint.log
    assert request.body == {
        "model": "strong",
        "messages": [{"role": "user", "content": "The thing of row 0."}],
        "max_completion_tokens": 77,
        "temperature": 0.5,
        "top_k": 3,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "chain", "strict": True, "schema": SCHEMA},
        },
    }


def test_the_form_of_a_reply_is_asked_for_as_the_endpoint_knows_it(endpoint):
    ask(endpoint.url, [0], response_format="json_object")
    ask(endpoint.url, [1], response_format="none")
    formats = [request.body.get("response_format") for request in endpoint.log]
    assert formats == [{"type": "json_object"}, None]


def test_after_a_429_nobody_asks_until_the_pause_is_over(endpoint):
    endpoint.plan = lambda row, attempt: "429:0.6" if (row, attempt) == (0, 1) else "good"
    ask(endpoint.url, [0, 1, 2], starts_after_s=0.2)
    first, *others = endpoint.log
    assert (first.row, first.action) == (0, "429:0.6")
    assert sorted(request.row for request in others) == [0, 1, 2]
    assert min(request.arrived for request in others) - first.arrived >= 0.6


def test_a_burst_of_429s_lengthens_the_pause_once(endpoint):
    endpoint.delay_s = 0.1  # all are under way when the first is refused
    endpoint.plan = lambda row, attempt: "429" if attempt == 1 else "good"
    results, _, failed = ask(endpoint.url, list(range(12)), backoff_s=0.01, timeout_s=60)
    assert failed == Counter(rate_limit=12)  # 2^11 x 0.01 s would be 20 s, and the test's limit
    assert len(results) == 12 and all(isinstance(result, dict) for result in results)


def test_rate_limits_have_a_bound_of_their_own(endpoint):
    endpoint.plan = lambda row, attempt: "429:0" if attempt <= 4 else "good"
    results, _, failed = ask(endpoint.url, [0], max_attempts=1, max_rate_limits=5)
    assert results[0]["answer_category"] == "drum" and failed == Counter(rate_limit=4)
    endpoint.plan = lambda row, attempt: "429:0"
    results, _, _ = ask(endpoint.url, [1], max_attempts=1, max_rate_limits=5)
    assert isinstance(results[0], RowFailedError)
    assert (results[0].reason, results[0].attempts) == ("rate_limit", 5)


def test_a_reply_that_does_not_come_is_a_timeout(endpoint):
    endpoint.plan = lambda row, attempt: "hang"
    results, usage, failed = ask(endpoint.url, [0], timeout_s=0.2, max_attempts=2)
    assert results[0].reason == "timeout" and failed == Counter(timeout=2)
    assert usage == Usage()


def test_no_server_is_a_connection_that_failed():
    results, _, _ = ask("http://127.0.0.1:9/v1", [0], max_attempts=2)
    assert (results[0].reason, results[0].attempts) == ("connection", 2)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"choices": null}',
        '{"choices": []}',
        '{"choices": [null]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": null}}]}',
        '{"choices": [{"message": {"content": 7}}]}',
        '{"choices": [{"message": {"content": " "}}], "usage": "many"}',
        '{"choices": 7, "usage": {"prompt_tokens": "x"}}',
    ],
)
def test_a_body_that_is_no_completion_is_a_bad_reply(body, endpoint, monkeypatch):
    monkeypatch.setattr(f"{type(endpoint).__module__}.completion", lambda action, row: body)
    results, _, _ = ask(endpoint.url, [0], max_attempts=1)
    assert isinstance(results[0], RowFailedError) and results[0].reason == "broken_body"


def test_a_refusal_of_the_model_is_one_also_when_there_is_text(endpoint, monkeypatch):
    for choice in (
        {"message": {"content": "x", "refusal": "I cannot"}},
        {"message": {"content": "x"}, "finish_reason": "content_filter"},
    ):
        body = json.dumps({"choices": [choice]})
        monkeypatch.setattr(f"{type(endpoint).__module__}.completion", lambda action, row, body=body: body)
        results, _, _ = ask(endpoint.url, [0], max_attempts=1)
        assert results[0].reason == "refused"


def test_tokens_of_bad_replies_count_and_replies_without_numbers_are_told(endpoint):
    endpoint.plan = lambda row, attempt: ["no json", "no usage", "good"][attempt - 1]

    def read(text: str) -> str:
        if not text.startswith("{") or len(endpoint.log) < 3:
            raise BadReplyError("unwanted", text)
        return text

    _, usage, failed = ask(endpoint.url, [0], read=read)
    assert usage == Usage(requests=3, prompt_tokens=200, completion_tokens=40, uncounted=1)
    assert failed == Counter(unwanted=2)


def test_a_wait_of_days_ends_the_run_instead_of_sleeping(endpoint):
    endpoint.plan = lambda row, attempt: "429:86400"
    results, _, _ = ask(endpoint.url, [0])
    assert isinstance(results[0], EndpointRefusedError) and "wait for 86400 s" in str(results[0])


def test_retry_after_is_a_number_of_seconds_or_a_date():
    assert retry_after({}) is None
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "-3"}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < retry_after({"retry-after": in_a_minute}) <= 60


def test_a_cost_is_tokens_times_prices_of_a_million():
    args = EndpointArguments(model="strong", input_price=2.5, output_price=10.0)
    assert args.cost(Usage(1, prompt_tokens=400_000, completion_tokens=30_000)) == pytest.approx(1.0 + 0.3)
    assert dataclasses.replace(args, input_price=None, output_price=None).cost(Usage(1, 5, 5)) is None
