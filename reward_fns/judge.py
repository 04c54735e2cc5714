"""Judge reward (optional): a model behind an OpenAI-compatible endpoint grades each completion.

The questions of a batch are under way at the same time, up to the endpoint's `concurrency`, while other rewards are
computed. Retries, pauses and refusals are those of `aurora_rl.endpoint`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.client import ChatEndpoint
from aurora_rl.endpoint.errors import BadReplyError, EndpointRefusedError, NoAnswerError
from aurora_rl.endpoint.replies import Usage, read_json_object
from aurora_rl.files.journal import Journal
from aurora_rl.tasks.completions import completion_text

GRADE_SCHEMA = {
    "type": "object",
    "properties": {"grade": {"type": "number"}},
    "required": ["grade"],
    "additionalProperties": False,
}
INSTRUCTION = 'Answer with JSON alone: {"grade": G}, where G is a number from 0 to 1.'


class BudgetError(RuntimeError):
    """The grades have cost what they may cost."""


class JudgeReward:
    """The reward is the grade in [0, 1] that a chat model gives to a completion.

    Example, in a file of one's own, whose `judge_reward` a recipe names:

    >>> judge_reward = JudgeReward(
    ...     EndpointArguments(model="judge", base_url="http://localhost:8000/v1", concurrency=128),
    ...     question="Somebody asked for {reference}. Grade how well the steps lead to the answer:\\n{completion}",
    ... )
    >>> judge_reward.ask_about("I hear a drum.", {"reference": "what sounds"}).splitlines()[0]
    'Somebody asked for what sounds. Grade how well the steps lead to the answer:'
    >>> read_grade('{"grade": 0.75}')
    0.75

    Args:
        args: model, address, limits and prices of the endpoint.
        question: what the judge is asked, with `{completion}` and any columns of the row, such as `{reference}`.
        journal: JSONL file of grades and tokens; a run that is resumed asks nothing twice and earns the same again.
            The second process of a run has `NAME.1.jsonl` beside `NAME.jsonl`, and so on. None for none.
        max_cost: cost at which a process asks no further question, of all runs with its journal.

    Raises:
        ValueError: if the question leaves the completion out, or `max_cost` is given without prices.
    """

    def __init__(
        self,
        args: EndpointArguments,
        *,
        question: str,
        journal: str | Path | None = None,
        max_cost: float | None = None,
    ) -> None:
        fields = [field for _, field, _, _ in string.Formatter().parse(question) if field is not None]
        if "completion" not in fields:
            raise ValueError("the judge's question has no {completion}: say where the text stands that is graded")
        if max_cost is not None and args.input_price is None:
            raise ValueError("max_cost is given without prices: say what tokens cost by input_price and output_price")
        self.args, self.question, self.max_cost = args, question, max_cost
        self._columns = sorted({*fields} - {"completion"})
        self._path = None if journal is None else Path(journal)
        self._journal: Journal | None = None
        self._known: dict[str, float] = {}
        self._usage = Usage()

    async def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """Grade each completion; of equal questions one is asked.

        Raises:
            ValueError: if the question names a column that there is not.
            NoAnswerError: if a question stays without an answer within the endpoint's limits.
            EndpointRefusedError: if the endpoint answers no question.
            BudgetError: if the grades have cost `max_cost`.
            JournalError: if another process writes to the journal.
        """
        if missing := [name for name in self._columns if name not in columns]:
            raise ValueError(f"the judge's question names {{{missing[0]}}}, but there is no such column")
        self._open_journal()
        rows = [{name: columns[name][index] for name in self._columns} for index in range(len(completions))]
        asked = [self.ask_about(completion_text(text), row) for text, row in zip(completions, rows, strict=True)]
        new = [text for text in dict.fromkeys(asked) if self._key(text) not in self._known]
        grades = self._known | await self._ask(new)
        return [grades[self._key(text)] for text in asked]

    def ask_about(self, completion: str, row: Mapping[str, Any]) -> str:
        """Return what the judge is asked about a completion and its row."""
        return f"{self.question.format(completion=completion, **row)}\n{INSTRUCTION}"

    async def _ask(self, questions: Sequence[str]) -> dict[str, float]:
        endpoint, free = ChatEndpoint(self.args), asyncio.Semaphore(self.args.concurrency)
        failures: Sequence[BaseException] = ()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._grade(endpoint, free, question)) for question in questions]
        except* (NoAnswerError, EndpointRefusedError, BudgetError) as raised:
            failures = raised.exceptions
        finally:
            await endpoint.close()
        if failures:
            raise failures[0]
        return {self._key(question): task.result() for question, task in zip(questions, tasks, strict=True)}

    async def _grade(self, endpoint: ChatEndpoint, free: asyncio.Semaphore, question: str) -> float:
        grade: float | None = None
        replies: list[Usage] = []
        async with free:
            self._check_budget()
            try:
                grade = await endpoint.ask(
                    [{"role": "user", "content": question}],
                    read=read_grade,
                    schema=GRADE_SCHEMA,
                    schema_name="grade",
                    on_usage=replies.append,
                )
            finally:
                self._record(question, grade, sum(replies, Usage()))
        return grade

    def _check_budget(self) -> None:
        cost = self.args.cost(self._usage)
        if self.max_cost is not None and cost is not None and cost >= self.max_cost:
            raise BudgetError(f"the judge's grades cost {cost:.4f}, max_cost is {self.max_cost:g}")

    def _key(self, question: str) -> str:
        return hashlib.sha256(f"{self.args.model}\n{question}".encode(errors="replace")).hexdigest()

    def _open_journal(self) -> None:
        """Read the grades of earlier runs, before the first question."""
        if self._path is None or self._journal is not None:
            return
        rank = int(os.environ.get("RANK", "0"))
        path = self._path.with_suffix(f".{rank}{self._path.suffix}") if rank else self._path
        self._journal = Journal(path, check=_check_record)
        for record in self._journal.records:
            if record["grade"] is not None:
                self._known[record["question"]] = record["grade"]
            self._usage += Usage(**record["usage"])

    def _record(self, question: str, grade: float | None, usage: Usage) -> None:
        self._usage += usage
        if self._journal is not None:
            record = {"question": self._key(question), "grade": grade, "usage": dataclasses.asdict(usage)}
            self._journal.append(record)


def read_grade(text: str) -> float:
    """Read the grade of a reply.

    Raises:
        BadReplyError: if it holds none in [0, 1].
    """
    grade = read_json_object(text).get("grade")
    if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 <= grade <= 1:
        raise BadReplyError("invalid_grade", f"the grade is {grade!r}, not a number from 0 to 1")
    return float(grade)


def _check_record(record: Mapping[str, Any]) -> None:
    if record.keys() != {"question", "grade", "usage"}:
        raise ValueError("this is no grade of a judge")
