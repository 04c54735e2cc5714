import asyncio
import dataclasses
import email.utils
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.client import ChatEndpoint
from aurora_rl.endpoint.errors import BadReplyError, EndpointRefusedError, NoAnswerError
from aurora_rl.endpoint.pause import retry_after
from aurora_rl.endpoint.replies import Usage

SCHEMA = {"type": "object"}
UNKNOWN_FIELD = {
    "object": "error",
    "message": {
        "detail": [
            {
                "type": "extra_forbidden",
                "loc": ["body", "max_completion_tokens"],
                "msg": "Extra inputs are not permitted",
            }
        ]
    },
}


def ask(
    url: str, rows: list[int], *, read=json.loads, starts_after_s: float = 0.0, one_by_one: bool = False, **options: Any
):
    """Ask about rows at the same time, each `starts_after_s` later than the one before, or one after the other.

    Returns (results, Usage, Counter).
    """
    args = EndpointArguments(**{"model": "strong", "base_url": url, "backoff_s": 0.001, **options})
    usages: list[Usage] = []

    async def ask_all():
        endpoint = ChatEndpoint(args)

        async def ask_one(index: int, row: int):
            await asyncio.sleep(index * starts_after_s)
            messages = [{"role": "user", "content": f"The thing of row {row}."}]
            return await endpoint.ask(messages, schema=SCHEMA, read=read, on_usage=usages.append)

        asked = [ask_one(index, row) for index, row in enumerate(rows)]
        if one_by_one:
            results = [await one for one in asked]
        else:
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
            "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA},
        },
    }


def test_the_form_of_a_reply_is_asked_for_as_the_endpoint_knows_it(endpoint):
    ask(endpoint.url, [0], response_format="json_object")
    ask(endpoint.url, [1], response_format="none")
    formats = [request.body.get("response_format") for request in endpoint.log]
    assert formats == [{"type": "json_object"}, None]


def test_a_question_without_a_schema_gets_a_reply_in_any_form(endpoint):
    async def ask_freely():
        client = ChatEndpoint(EndpointArguments(model="judge", base_url=endpoint.url))
        text = await client.ask([{"role": "user", "content": "The thing of row 0."}], read=str)
        await client.close()
        return text

    assert json.loads(asyncio.run(ask_freely()))["answer_category"] == "drum"
    (request,) = endpoint.log
    assert "response_format" not in request.body


def test_the_room_is_imported_without_openai_and_without_what_is_above_it():
    code = "import sys, aurora_rl.endpoint.client\n"
    code += "print(sorted({'openai', 'torch', 'data_prep', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_without_openai_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"the package openai: pip install 'aurora-rl\[cot\]'"):
        ChatEndpoint(EndpointArguments(model="m", base_url="http://localhost:8000/v1"))


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
    assert isinstance(results[0], NoAnswerError)
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
    assert isinstance(results[0], NoAnswerError) and results[0].reason == "broken_body"


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


def knows_max_tokens_only(endpoint):
    """Make an endpoint refuse the newer field as Mistral's does."""
    endpoint.bodies["unknown field"] = (422, json.dumps(UNKNOWN_FIELD))
    endpoint.plan = lambda row, attempt: "good"
    endpoint.judge = lambda body, action: "unknown field" if "max_completion_tokens" in body else action


def test_an_endpoint_that_knows_max_tokens_only_is_asked_by_it_after_one_refusal(endpoint):
    knows_max_tokens_only(endpoint)
    results, _, failed = ask(endpoint.url, [0, 1, 2], one_by_one=True, max_attempts=1, max_tokens=77)
    assert all(isinstance(result, dict) for result in results) and failed == Counter()
    sent = [{name for name in request.body if name.startswith("max_")} for request in endpoint.log]
    assert sent == [{"max_completion_tokens"}, {"max_tokens"}, {"max_tokens"}, {"max_tokens"}]
    assert endpoint.log[-1].body["max_tokens"] == 77


def test_rows_under_way_when_the_other_field_is_found_are_all_asked_by_it(endpoint):
    knows_max_tokens_only(endpoint)
    endpoint.delay_s = 0.2
    results, _, failed = ask(endpoint.url, list(range(6)), max_attempts=1)
    assert all(isinstance(result, dict) for result in results) and failed == Counter()


def test_a_field_that_is_asked_for_is_kept_and_its_refusal_says_what_to_do(endpoint):
    knows_max_tokens_only(endpoint)
    results, _, _ = ask(endpoint.url, [0], max_tokens_field="max_completion_tokens")
    assert "body.max_completion_tokens: Extra inputs are not permitted; see max_tokens_field" in str(results[0])
    ask(endpoint.url, [1], max_tokens_field="max_tokens")
    assert "max_tokens" in endpoint.log[-1].body and "max_completion_tokens" not in endpoint.log[-1].body
    with pytest.raises(ValueError, match="max_tokens_field is 'most'"):
        EndpointArguments(max_tokens_field="most")


def test_a_value_that_is_too_large_is_no_unknown_field(endpoint):
    endpoint.bodies["large"] = (400, '{"error": {"message": "max_completion_tokens is too large: 2048"}}')
    endpoint.plan = lambda row, attempt: "large"
    results, _, _ = ask(endpoint.url, [0])
    assert "max_completion_tokens is too large: 2048" in str(results[0]) and len(endpoint.log) == 1


def test_a_length_in_extra_body_is_sent_alone(endpoint):
    ask(endpoint.url, [0], extra_body='{"max_tokens": 5}')
    assert {name: value for name, value in endpoint.log[0].body.items() if "max" in name} == {"max_tokens": 5}


PARTS = [
    ([{"type": "text", "text": '{"a":'}, {"type": "text", "text": " 1}"}], '{"a": 1}'),
    (
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
            {"type": "reasoning", "text": "Hm."},
            {"type": "text", "text": "{}"},
        ],
        "{}",
    ),
    (['{"a": 1', {"type": "output_text", "text": "}"}], '{"a": 1}'),
    ([{"text": "{}"}, None, 7, {"type": "text", "text": None}, {"type": "image_url"}], "{}"),
]


@pytest.mark.parametrize(("content", "text"), PARTS)
def test_a_reply_in_parts_is_their_text_without_thinking(content, text, endpoint):
    body = {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}
    endpoint.bodies["parts"] = (200, json.dumps(body))
    endpoint.plan = lambda row, attempt: "parts"
    assert ask(endpoint.url, [0], read=lambda said: said)[0] == [text]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "broken_body"),
        ([{"type": "thinking", "thinking": "Hm."}], "broken_body"),
        ([{"type": "refusal", "refusal": "I cannot"}], "refused"),
    ],
)
def test_parts_without_text_are_no_reply(content, reason, endpoint):
    endpoint.bodies["parts"] = (200, json.dumps({"choices": [{"message": {"content": content}}]}))
    endpoint.plan = lambda row, attempt: "parts"
    (result,), _, _ = ask(endpoint.url, [0], max_attempts=1)
    assert isinstance(result, NoAnswerError) and result.reason == reason


def test_an_error_inside_a_status_of_200_is_read_as_one(endpoint):
    endpoint.bodies |= {
        "flagged": (200, '{"error": {"code": 403, "message": "Your input was flagged by moderation"}}'),
        "dead": (200, '{"choices": [{"error": {"code": 502, "message": "upstream is gone"}, "message": {}}]}'),
        "poor": (200, '{"error": {"code": 402, "message": "Insufficient credits"}}'),
    }
    endpoint.plan = lambda row, attempt: ["flagged", "dead", "poor"][row]
    results, _, _ = ask(endpoint.url, [0, 1, 2], max_attempts=1)
    assert [type(result) for result in results] == [NoAnswerError, NoAnswerError, EndpointRefusedError]
    assert (results[0].reason, results[1].reason) == ("moderated", "server_error")
    assert "upstream is gone" in str(results[1])


def test_a_bare_403_ends_the_run_unless_another_row_under_way_is_answered(endpoint):
    endpoint.bodies["bare"] = (403, "Forbidden")
    endpoint.plan = lambda row, attempt: "slow" if row == 0 else "bare"
    results, _, _ = ask(endpoint.url, [0, 1, 2])
    assert isinstance(results[0], dict)
    assert [(type(result), result.reason) for result in results[1:]] == [(NoAnswerError, "bad_request")] * 2
    endpoint.plan = lambda row, attempt: "bare"
    results, _, _ = ask(endpoint.url, [3, 4, 5])
    assert [type(result) for result in results] == [EndpointRefusedError] * 3
    assert "status 403: Forbidden" in str(results[0])


@pytest.mark.parametrize(
    "quoted",
    [
        "Wrong key {key}!",
        "Bearer {key}",
        "Wrong key {beginning}...",
        '{{"detail": "no \\"{key}\\""}}',
        '{{"detail": [{{"loc": ["header"], "msg": "{key}"}}]}}',
        '{{"odd": {{"{key}": "{key}"}}}}',
        "<b>{key}</b>",
    ],
)
@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_is_quoted_in_any_form_is_cut_out(quoted, status, endpoint, monkeypatch):
    key = "sk-very-secret/0123+456789="
    monkeypatch.setenv("MY_KEY", key)
    endpoint.bodies["quoting"] = (status, quoted.format(key=key, beginning=key[:16]))
    endpoint.plan = lambda row, attempt: "quoting"
    (result,), _, _ = ask(endpoint.url, [0], api_key_env="MY_KEY", max_attempts=1)
    assert "[key]" in str(result) and "very-s" not in str(result)


def test_a_placeholder_for_a_key_changes_no_reply(endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", "drum")
    (result,), _, _ = ask(endpoint.url, [0], api_key_env="MY_KEY")
    assert result["answer_category"] == "drum"


def test_an_address_of_the_environment_keeps_the_rule_of_the_option(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:secret@localhost:8000/v1")
    EndpointArguments(model="m", base_url="http://localhost:8000/v1")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL holds") as raised:
        EndpointArguments(model="m")
    assert "secret" not in str(raised.value)
