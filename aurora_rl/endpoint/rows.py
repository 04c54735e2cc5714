"""A run over many rows: it asks the endpoint about each, writes a record of each to disk, and makes a report.

    chains.jsonl            a record a row; appended and synced one by one, and sorted by row when a run ends
    chains.failures.jsonl   rows without a record: uid, row, split, reason, detail, attempts
    chains.usage.jsonl      tokens of each reply, valid or not, of all runs together
    chains.report.json      the numbers of the last run

The same command resumes a run that was killed or stopped, or that left rows without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.client import ChatEndpoint
from aurora_rl.endpoint.errors import BadReplyError, EndpointRefusedError, NoAnswerError
from aurora_rl.endpoint.replies import Usage
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.journal import Journal, Record, RowJournal, RowKey, row_key, sort_by_row

logger = logging.getLogger(__name__)

FIRST_ROWS = 8  # if so many are refused in the same words, all would be
INTERRUPTED = 130  # a shell's exit code for Ctrl-C


class RowFailedError(NoAnswerError):
    """A row stays without a record because of its content; no question was sent."""


@dataclasses.dataclass
class RunArguments:
    """The output of a run, and the limits that end it early.

    Attributes:
        output: JSONL file to write or to resume; the other files are written beside it.
        max_rows: number of rows to read, from the first, for a trial; the rows of a clip are consecutive, so these are
            few clips.
        max_cost: cost of all runs into `output` at which no further row is begun; rows in progress are finished.
        max_failures_in_a_row: number of consecutive rows without an answer that ends the run.
    """

    output: str = dataclasses.field(metadata={"help": "JSONL file to write or to continue."})
    max_rows: int | None = dataclasses.field(
        default=None, metadata={"help": "Number of rows to look at, from the first."}
    )
    max_cost: float | None = dataclasses.field(
        default=None, metadata={"help": "Cost of all runs into `output` at which no further row is begun."}
    )
    max_failures_in_a_row: int = dataclasses.field(
        default=50, metadata={"help": "Number of consecutive failed rows that ends the run."}
    )

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_cost", "max_failures_in_a_row"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be above 0")

    def path(self, kind: str) -> Path:
        """Return the path of a kind of file ("failures.jsonl") beside the output."""
        return Path(self.output).with_suffix(f".{kind}")


class RowWork(Protocol):
    """What is asked about one row: one question, or a whole conversation.

    Attributes:
        uid: uid of the row.
        row: number of the row.
        split: split of the row.
    """

    @property
    def uid(self) -> str: ...
    @property
    def row(self) -> int: ...
    @property
    def split(self) -> str: ...

    async def answer(self, endpoint: ChatEndpoint, on_usage: Callable[[Usage], None]) -> tuple[Record, Sequence[str]]:
        """Ask, and return the row's record and the names of repairs.

        Raises:
            NoAnswerError: if the row has no answer, of which a `RowFailedError` is for its own content.
            EndpointRefusedError: if no row will have one.
        """


@dataclasses.dataclass
class RunReport:
    """The numbers of a run.

    Attributes:
        model: name of the model that answered.
        rows: number of rows that should have a record.
        kept: number of rows that had one before.
        answered: number of rows that got one.
        failed: number of rows whose question failed.
        not_asked: number of rows that were not asked about before the run ended.
        failures: numbers of failed rows by reason.
        failed_attempts: numbers of failed attempts by reason, also for rows that got an answer later.
        repairs: numbers of repaired steps by kind.
        usage: tokens of this run.
        cost: cost of this run; None without prices.
        total_usage: tokens of all runs into this output.
        total_cost: cost of all runs.
        stopped: reason why the run ended early.
    """

    model: str
    rows: int
    kept: int
    answered: int = 0
    failed: int = 0
    not_asked: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    failed_attempts: Counter[str] = dataclasses.field(default_factory=Counter)
    repairs: Counter[str] = dataclasses.field(default_factory=Counter)
    usage: Usage = Usage()
    cost: float | None = None
    total_usage: Usage = Usage()
    total_cost: float | None = None
    stopped: str | None = None

    @property
    def exit_status(self) -> int:
        """0 if every row was asked about, so that the output can be used; 1 if the run ended early or has no record."""
        has_records = self.kept + self.answered > 0 or self.rows == 0
        return 0 if self.stopped is None and has_records else 1

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON's types; counts are sorted by name."""
        return {name: _to_json(value) for name, value in vars(self).items()}

    def to_text(self) -> str:
        """Format the report for people."""
        lines = [
            f"{self.rows} rows: {self.kept} had a record, {self.answered} got one, {self.failed} failed, "
            f"{self.not_asked} not asked",
            *_count_lines("failed rows", self.failures),
            *_count_lines("failed attempts", self.failed_attempts),
            *_count_lines("repairs", self.repairs),
            f"this run: {_usage_text(self.usage, self.cost)}",
            f"all runs: {_usage_text(self.total_usage, self.total_cost)}",
        ]
        return "\n".join(lines if self.stopped is None else [*lines, f"stopped: {self.stopped}"])


class Run:
    """Asks about rows, several at a time, and writes their records.

    Args:
        questions: questions about all rows that should have a record, also those that have one.
        endpoint: endpoint that is asked.
        args: output and limits.

    Raises:
        JournalError: if another process writes to the output, or it is damaged.
    """

    def __init__(self, questions: Sequence[RowWork], endpoint: ChatEndpoint, args: RunArguments) -> None:
        self._endpoint, self._args = endpoint, args
        self._files = contextlib.ExitStack()
        with self._files:
            self._journal = self._files.enter_context(RowJournal(Path(args.output)))
            self._failures = self._files.enter_context(Journal(args.path("failures.jsonl"), check=row_key))
            self._usage = self._files.enter_context(Journal(args.path("usage.jsonl")))
            self._files = self._files.pop_all()
        self._failed = {row_key(record): record for record in self._failures.records}
        open_questions = [question for question in questions if _key(question) not in self._journal]
        # Rows that failed before come last: many consecutive ones would end each run before the others are asked.
        self._open_questions = sorted(open_questions, key=lambda question: _key(question) in self._failed)
        self._failures_in_a_row = 0
        self._refusals: list[str] = []  # the endpoint's messages, without numbers
        self._last_refusal = ""
        num_kept = len(questions) - len(self._open_questions)
        self.report = RunReport(model=str(endpoint.args.model), rows=len(questions), kept=num_kept)
        for record in self._usage.records:
            self.report.total_usage += Usage(*(record.get(field.name, 0) for field in dataclasses.fields(Usage)))
        self._count_cost()

    async def run(self) -> RunReport:
        """Ask about every row that has no record; what is finished stays, whatever ends the run."""
        # disable=None shows the bar on a terminal only.
        with self._files, tqdm(total=self.report.rows, initial=self.report.kept, unit="row", disable=None) as progress:
            questions = iter(self._open_questions)
            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(self._endpoint.args.concurrency):
                        workers.create_task(self._work(questions, progress))
            except* EndpointRefusedError as refusals:
                self.report.stopped = str(refusals.exceptions[0])
            finally:
                await self._endpoint.close()
            self._finish()
        return self.report

    async def _work(self, questions: Iterator[RowWork], progress: tqdm) -> None:
        """One of several workers that share the questions."""
        while not self._should_stop() and (question := next(questions, None)) is not None:
            await self._ask(question)
            cost = {} if self.report.total_cost is None else {"cost": f"{self.report.total_cost:.2f}"}
            progress.set_postfix({"failed": self.report.failed, **cost}, refresh=False)
            progress.update()

    async def _ask(self, question: RowWork) -> None:
        try:
            record, repairs = await question.answer(self._endpoint, lambda usage: self._log_usage(question, usage))
        except NoAnswerError as error:
            self._fail(question, error)
        else:
            self._journal.append(record)
            self.report.answered += 1
            self.report.repairs.update(repairs)
            self._failures_in_a_row = 0

    def _fail(self, question: RowWork, error: NoAnswerError) -> None:
        record = failure_record(question.uid, question.row, question.split, error)
        self._failures.append(record)
        self._failed[_key(question)] = record
        self.report.failed += 1
        self.report.failures[error.reason] += 1
        if error.reason == "bad_request":
            self._last_refusal = str(error)
            self._refusals.append(re.sub(r"\d+", "0", str(error)))
        self._failures_in_a_row += error.attempts > 0  # an unreadable file is not the endpoint's failure

    def _log_usage(self, question: RowWork, usage: Usage) -> None:
        self._usage.append({"uid": question.uid, "row": question.row, **dataclasses.asdict(usage)})
        self.report.usage += usage
        self.report.total_usage += usage
        self._count_cost()

    def _count_cost(self) -> None:
        self.report.cost = self._endpoint.args.cost(self.report.usage)
        self.report.total_cost = self._endpoint.args.cost(self.report.total_usage)

    def _should_stop(self) -> bool:
        """Return whether the run should end now; the report gets the reason."""
        report, args = self.report, self._args
        if args.max_cost is not None and (report.total_cost or 0.0) >= args.max_cost:
            report.stopped = f"all runs cost {report.total_cost:.4f}, max_cost is {args.max_cost:g}"
        elif self._failures_in_a_row >= args.max_failures_in_a_row:
            report.stopped = f"{self._failures_in_a_row} rows in a row failed: see {args.path('failures.jsonl')}"
        elif self._are_all_refused_alike():
            report.stopped = (
                f"the endpoint refused the first {len(self._refusals)} rows alike, so that the others were not asked; "
                f"the last one: {self._last_refusal}"
            )
        return report.stopped is not None

    def _are_all_refused_alike(self) -> bool:
        """Return whether the endpoint has answered nothing so far and refused the first rows in the same words."""
        has_answered = self._endpoint.has_answered or self.report.kept > 0
        return not has_answered and len(self._refusals) >= FIRST_ROWS and len(set(self._refusals)) == 1

    def _finish(self) -> None:
        """Sort the files, so that they depend neither on the order of the answers nor on interruptions."""
        self.report.not_asked = len(self._open_questions) - self.report.answered - self.report.failed
        self.report.failed_attempts = self._endpoint.failed_attempts
        still_failed = (record for key, record in self._failed.items() if key not in self._journal)
        self._failures.rewrite(sort_by_row(still_failed))
        self._journal.finish()
        write_report(self.report, self._args)


def run_rows(questions: Sequence[RowWork], endpoint_args: EndpointArguments, args: RunArguments) -> RunReport:
    """Ask about rows and return the report.

    Raises:
        ValueError: if the arguments contradict each other, or the output cannot be used.
    """
    if args.max_cost is not None and endpoint_args.input_price is None:
        raise ValueError("max_cost is given without prices: say what tokens cost by --input_price and --output_price")

    async def ask() -> RunReport:  # the client belongs to the event loop that makes it
        return await Run(questions, ChatEndpoint(endpoint_args), args).run()

    try:
        return asyncio.run(ask())
    except KeyboardInterrupt:
        logger.warning("Interrupted. What is finished is in %s; the same command resumes from it.", args.output)
        raise SystemExit(INTERRUPTED) from None


def _key(work: RowWork) -> RowKey:
    return work.uid, work.row


def failure_record(uid: str, row: int, split: str, error: NoAnswerError | BadReplyError) -> Record:
    """Make a record of the file of failures."""
    attempts = error.attempts if isinstance(error, NoAnswerError) else 0
    return {
        "uid": uid,
        "row": row,
        "split": split,
        "reason": error.reason,
        "detail": str(error),
        "attempts": attempts,
    }


def write_report(report: RunReport, args: RunArguments) -> None:
    """Print the report, and write it beside the output."""
    write_whole(args.path("report.json"), json.dumps(report.to_dict(), indent=2) + "\n")
    print(report.to_text())


def _to_json(value: Any) -> Any:
    if isinstance(value, Counter):
        return dict(sorted(value.items()))
    return dataclasses.asdict(value) if isinstance(value, Usage) else value


def _count_lines(title: str, counts: Counter[str]) -> list[str]:
    words = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
    return [f"{title}: {words}"] if words else []


def _usage_text(usage: Usage, cost: float | None) -> str:
    words = f"{usage.requests} replies, {usage.prompt_tokens} + {usage.completion_tokens} tokens"
    words += f" ({usage.uncounted} replies uncounted)" if usage.uncounted else ""
    return words if cost is None else f"{words}, cost {cost:.4f}"
