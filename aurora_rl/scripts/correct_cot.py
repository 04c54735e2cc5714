"""Correct a model's wrong reasoning: the reflective set, from mistakes that `collect_mistakes.py` found.

    python data_prep/correct_cot.py --data_root data/ref_avs --mistakes mistakes.jsonl --output reflective.jsonl \\
        --model NAME --base_url http://localhost:8000/v1
    python data_prep/correct_cot.py --data_root data/synthetic --mistakes mistakes.jsonl --output reflective.jsonl \\
        --gold data/synthetic/chains.jsonl

A stronger model gets the clip, the sentence, the wrong reasoning and the truth, and writes the right reasoning. With
`--gold`, the right reasoning is the row's chain in that file. The wrong reasoning is always the model's text in the
mistakes, without `[SEG]`. The same command resumes a run. The exit status is 1 if a run ended early.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.chain_writing.asking import Question
from aurora_rl.chain_writing.chain_checks import ChainLimits, check_task
from aurora_rl.chain_writing.chain_prompts import (
    chain_messages,
    chain_record,
    chain_schema,
    read_chain_reply,
)
from aurora_rl.data.message_parts import MediaArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.errors import BadReplyError
from aurora_rl.endpoint.rows import (
    RowFailedError,
    RunArguments,
    RunReport,
    failure_record,
    run_rows,
    write_report,
)
from aurora_rl.files.atomic import whole_files
from aurora_rl.files.journal import (
    Journal,
    JournalError,
    Record,
    RowKey,
    records_by_row,
    row_key,
    sort_by_row,
    to_lines,
)
from aurora_rl.files.output_lock import hold_output
from aurora_rl.logs import setup_logging
from aurora_rl.tasks.prompts import render_chain, without_seg

MISTAKE_KEYS = ("split", "category", "exp", "completion", "model")  # keys of text, in addition to uid and row
GOLD = "gold"


@dataclasses.dataclass
class CorrectArguments:
    """The mistakes to correct, and the source of corrections."""

    mistakes: str = dataclasses.field(metadata={"help": "JSONL file of mistakes, as collect_mistakes.py writes it."})
    gold: str | None = dataclasses.field(
        default=None,
        metadata={"help": "JSONL file with chains that are taken as corrections instead of asking an endpoint."},
    )


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A model's wrong answer to a row.

    Attributes:
        sample: the row.
        completion: answer of the model, as generated.
    """

    sample: AVSample
    completion: str

    def wrong_text(self) -> str:
        """The wrong reasoning, the text before the correction.

        Raises:
            RowFailedError: if no text is left without `[SEG]`.
        """
        text = without_seg(self.completion)
        if not text:
            raise RowFailedError("empty_wrong", f"the completion {self.completion!r} holds no reasoning to correct")
        return text


def load_mistakes(path: Path, data_args: DataArguments) -> list[Mistake]:
    """Read the mistakes of a file, each joined to its row by uid and row.

    Raises:
        ValueError: if a record is invalid, repeated, or differs from the benchmark.
    """
    records = records_by_row(path)
    for record in records.values():
        missing = [name for name in MISTAKE_KEYS if not isinstance(record.get(name), str)]
        if missing:
            raise JournalError(
                f"{path}: uid {record['uid']!r}, row {record['row']} lacks {missing}: mistakes are what a model said, "
                "as data_prep/collect_mistakes.py writes them"
            )
    splits = sorted({record["split"] for record in records.values()})
    samples = {(s.uid, s.row): s for split in splits for s in load_split(data_args, split)}
    return [Mistake(_sample_of(record, samples, path), record["completion"]) for record in records.values()]


def correction(mistake: Mistake, steps: Mapping[str, str], *, generator: str) -> Record:
    """Make a record of the reflective set.

    Raises:
        BadReplyError: if the correction is equal to the mistake.
    """
    record = chain_record(mistake.sample, steps, generator=generator) | {"wrong": mistake.wrong_text()}
    if without_seg(render_chain(record["steps"], record["answer"])) == record["wrong"]:
        raise BadReplyError("same_text", "the correction is what the model said: only its masks were wrong")
    return record


def correction_questions(
    mistakes: Sequence[Mistake], media: MediaArguments, limits: ChainLimits, *, generator: str
) -> list[Question]:
    """Make the question about each mistake."""
    schema = chain_schema(sorted({mistake.sample.category for mistake in mistakes}), limits)

    def question(mistake: Mistake) -> Question:
        sample = mistake.sample

        def read(text: str) -> tuple[Record, Sequence[str]]:
            reply = read_chain_reply(text, sample.category, limits)
            return correction(mistake, reply.steps, generator=generator), reply.repairs

        def messages() -> list[dict[str, Any]]:
            return chain_messages(sample, media, wrong=mistake.wrong_text())

        return Question(sample.uid, sample.row, sample.split, schema, messages, read)

    return [question(mistake) for mistake in mistakes]


def check_kept(out: Path, mistakes: Sequence[Mistake]) -> None:
    """Check that an output which is resumed holds no corrections of other mistakes, which would stay in it.

    Raises:
        JournalError: if it does; the error names the first of them.
    """
    if not out.exists():
        return
    completions = {(mistake.sample.uid, mistake.sample.row): without_seg(mistake.completion) for mistake in mistakes}
    with Journal(out, check=row_key) as log:
        for record in log.records:
            if completions.get(row_key(record)) != record.get("wrong"):
                raise JournalError(
                    f"{out} corrects another mistake of uid {record['uid']!r}, row {record['row']} than there is now: "
                    "name another file for the corrections of these mistakes"
                )


def correct_by_gold(mistakes: Sequence[Mistake], gold_path: Path, args: RunArguments) -> RunReport:
    """Write the reflective set with the chains of a file as corrections.

    Raises:
        ValueError: if the file of chains belongs to another benchmark, or the output holds an endpoint's corrections.
    """
    out = Path(args.output)
    if out.exists() and any(record.get("generator") != GOLD for record in records_by_row(out).values()):
        raise JournalError(f"{out} holds corrections of a model, which would be lost: name another file")
    gold = records_by_row(gold_path)
    report = RunReport(model=GOLD, rows=len(mistakes), kept=0)
    records, failures = [], []
    for mistake in mistakes:
        sample = mistake.sample
        try:
            chain = gold.get((sample.uid, sample.row))
            if chain is None:
                raise RowFailedError("no_gold", f"{gold_path} has no chain of this row")
            if chain.get("category") != sample.category or not isinstance(chain.get("steps"), dict):
                where = f"{gold_path}: uid {sample.uid!r}, row {sample.row}"
                raise JournalError(f"{where} is no chain of {sample.category!r}")
            record = correction(mistake, chain["steps"], generator=GOLD)
            records.append(record | {"verified": bool(chain.get("verified"))})
        except (RowFailedError, BadReplyError) as error:
            failures.append(failure_record(sample.uid, sample.row, sample.split, error))
            report.failures[error.reason] += 1
    report.answered, report.failed = len(records), len(failures)
    with hold_output(out, is_folder=False), whole_files(out, args.path("failures.jsonl")) as (corrected, failed):
        corrected.write(to_lines(sort_by_row(records)))
        failed.write(to_lines(sort_by_row(failures)))
    write_report(report, args)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, correct, and report."""
    setup_logging()
    kinds = (DataArguments, CorrectArguments, RunArguments, MediaArguments, ChainLimits, EndpointArguments)
    parser = ConfigParser(kinds, description=__doc__)
    try:
        data_args, args, run_args, media, limits, endpoint_args = parser.parse_args_and_config(argv)
        check_task(data_args.task)
        # The config of a stage may name the files that are made here.
        data_args = dataclasses.replace(data_args, chains=None, reflections=None)
        all_mistakes = load_mistakes(Path(args.mistakes), data_args)
        mistakes = all_mistakes[: run_args.max_rows]
        if args.gold is not None:
            report = correct_by_gold(mistakes, Path(args.gold), run_args)
        else:
            check_kept(Path(run_args.output), all_mistakes)
            questions = correction_questions(mistakes, media, limits, generator=str(endpoint_args.model))
            report = run_rows(questions, endpoint_args, run_args)
    except ValueError as error:
        parser.error(str(error))
    return report.exit_status


def _sample_of(record: Record, samples: Mapping[RowKey, AVSample], path: Path) -> AVSample:
    sample = samples.get(row_key(record))
    where = f"{path}: uid {record['uid']!r}, row {record['row']}"
    if sample is None:
        raise JournalError(f"{where} is no row of split {record['split']!r}: collect the mistakes of this benchmark")
    for name, value in (("category", sample.category), ("exp", sample.reference)):
        if record[name] != value:
            raise JournalError(f"{where} has the {name} {record[name]!r}, the benchmark {value!r}: collect them again")
    return sample
