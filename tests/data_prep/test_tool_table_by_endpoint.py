"""A reasoner at an endpoint makes the table, whenever the run was killed and whatever the endpoint does."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aurora_rl.data.question_tables import load_question_table
from aurora_rl.data.tool_table import load_tool_questions, rights_of
from aurora_rl.scripts.tool_table_by_endpoint import main
from tests.fake_endpoint import FakeEndpoint

ROWS, SETS = 3, 4
Command = Callable[..., int]


def reply(text: str) -> tuple[int, str]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return 200, json.dumps(whole)


@pytest.fixture
def reasoner(endpoint: FakeEndpoint) -> FakeEndpoint:
    """One that believes the tool `pitch`, guesses wrong without it, and is unreadable with both."""
    endpoint.bodies = {
        "right": reply("Answer: high"),
        "wrong": reply("Answer: low"),
        "no answer": reply("Who knows?"),
    }

    def judge(body: dict, action: str) -> str:
        said = json.dumps(body)
        if action != "good":
            return action
        heard = "pitch: " in said, "duration: " in said
        return {(False, False): "wrong", (True, True): "no answer"}.get(heard, "right" if heard[0] else "wrong")

    endpoint.judge = judge
    return endpoint


@pytest.fixture
def command(tmp_path: Path, reasoner: FakeEndpoint) -> Command:
    """The command on three questions and two tools, into `<folder>/table.jsonl`."""
    root = tmp_path / "questions"
    root.mkdir()
    soundfile.write(root / "a.wav", np.sin(np.arange(8000) * 0.3).astype(np.float32), 16_000)
    asked = {"multi_choice": ["low", "high"], "answer": 1, "audio_path": "a.wav", "question_type": "pitch"}
    lines = [{"id": f"q{row}", "question_text": f"Which is the thing of row {row}?", **asked} for row in range(ROWS)]
    (root / "avqa_train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(load_question_table("avqa", root, "train")) == ROWS

    def run(folder: Path, **options: object) -> int:
        values = {
            **{"data_root": root, "benchmark": "avqa", "output": folder / "table.jsonl"},
            **{"task": "aurora_rl.tasks.multiple_choice:ChoiceInWords", "model": "strong", "base_url": reasoner.url},
            **{"backoff_s": 0.001, "concurrency": 2, "temperature": 0, **options},
        }
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return main(["--tools", "duration", "pitch", *words])

    return run


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("table.jsonl", "rows.jsonl", "tools.json")]


def test_a_table_is_asked_for_with_words_sound_and_options(command: Command, reasoner: FakeEndpoint, tmp_path: Path):
    reasoner.plan = lambda row, attempt: {1: "500", 2: "drop"}.get(attempt, "good") if row == 1 else "good"
    assert command(tmp_path / "out") == 0
    samples = load_tool_questions(tmp_path / "out", "train")
    assert len(samples) == ROWS
    assert all(rights_of(sample) == {(): False, (0,): False, (1,): True, (0, 1): False} for sample in samples)
    lines = [json.loads(line) for line in (tmp_path / "out" / "table.jsonl").read_text().splitlines()]
    assert [line["readable"] for line in lines[:SETS]] == [True, True, True, False]
    body = next(request.body for request in reasoner.log if "pitch: " in json.dumps(request.body))
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "input_audio", "text"] and body["temperature"] == 0 and "response_format" not in body
    assert "low" in body["messages"][0]["content"][-1]["text"]


def test_whenever_a_run_was_killed_the_table_has_each_answer_once(
    command: Command, reasoner: FakeEndpoint, tmp_path: Path
):
    """A kill leaves the first bytes of a journal, whose answers are in any order, or a whole one without a table."""
    whole = tmp_path / "whole"
    assert command(whole) == 0
    lines = (whole / "table.jsonl.parts" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == len(reasoner.log) == ROWS * SETS
    drawn = random.Random(0)
    for killed_at in (0.0, 0.3, 0.77, 1.0):
        torn = tmp_path / str(killed_at)
        shutil.copytree(whole / "table.jsonl.parts", torn / "table.jsonl.parts")
        drawn.shuffle(lines)
        size = int(killed_at * sum(map(len, lines)))
        (torn / "table.jsonl.parts" / "answers.jsonl").write_bytes(b"".join(lines)[:size])
        kept = b"".join(lines)[:size].count(b"\n")
        reasoner.log.clear()
        assert command(torn) == 0
        assert contents(torn) == contents(whole)
        assert len(reasoner.log) == ROWS * SETS - kept


def test_a_run_that_money_ends_leaves_no_table_and_goes_on(command: Command, reasoner: FakeEndpoint, tmp_path: Path):
    prices = {"input_price": 10_000, "output_price": 0}  # a reply costs 1
    assert command(tmp_path / "out", **prices, max_cost=5) == 1
    assert not (tmp_path / "out" / "table.jsonl").exists() and 5 <= len(reasoner.log) <= 6
    with pytest.raises(SystemExit):  # another reasoner's answers
        command(tmp_path / "out", model="weak")
    assert command(tmp_path / "out", **prices) == 0
    assert len(reasoner.log) == ROWS * SETS and len(load_tool_questions(tmp_path / "out", "train")) == ROWS


def test_a_question_that_lacks_an_answer_is_left_out_until_it_has_one(
    command: Command, reasoner: FakeEndpoint, tmp_path: Path
):
    reasoner.bodies["moderated"] = (400, json.dumps({"error": {"message": "filtered", "code": "content_filter"}}))
    reasoner.plan = lambda row, attempt: "moderated" if (row, attempt) == (1, 1) else "good"
    assert command(tmp_path / "out") == 0
    assert [sample.uid for sample in load_tool_questions(tmp_path / "out", "train")] == ["q0", "q2"]
    assert command(tmp_path / "out") == 0
    assert len(load_tool_questions(tmp_path / "out", "train")) == ROWS
    assert len(reasoner.log) == ROWS * SETS + 1
