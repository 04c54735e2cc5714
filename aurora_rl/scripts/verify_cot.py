"""Check chains of thought: repair faults of form, drop wrong chains, and count both.

    python data_prep/verify_cot.py chains.jsonl --output verified.jsonl

    verified.jsonl           records that may be trained on, "verified": true
    verified.dropped.jsonl   the others, each with its line and its reasons
    verified.sample.md       a few records of each kind, for a person to read

It reads chains and records of reflective training from any source. The exit status is 0, also if records are dropped.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.chain_writing.chain_checks import PROBLEMS, TASK, ChainLimits, Problem, find_problems, repair
from aurora_rl.data.chains import CHAIN_KEYS
from aurora_rl.files.atomic import whole_files
from aurora_rl.files.existing import check_file, check_writable_file
from aurora_rl.files.journal import Record, RowKey, row_key, to_lines
from aurora_rl.files.output_lock import hold_output
from aurora_rl.files.plain import check_plain_file, parse_json
from aurora_rl.tasks.prompts import REASONING_STEPS, answer_for

KEPT = "kept"


@dataclasses.dataclass
class Verdict:
    """The result of checking one line of the input.

    Attributes:
        line: number of the line.
        record: record of the line after repairs; None if the line is invalid.
        text: text of the line, unchanged.
        repairs: kinds of repairs.
        problems: reasons to drop the record.
    """

    line: int
    record: Record | None
    text: str
    repairs: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verification:
    """The results of checking a file.

    Attributes:
        verdicts: verdicts, one a line.
    """

    verdicts: Sequence[Verdict]

    @property
    def kept(self) -> list[Verdict]:
        """Records without a problem."""
        return [verdict for verdict in self.verdicts if not verdict.problems]

    @property
    def dropped(self) -> list[Verdict]:
        """Records with a problem, and invalid lines."""
        return [verdict for verdict in self.verdicts if verdict.problems]

    def to_dict(self) -> dict[str, Any]:
        """Count the dropped records by first reason, and by every reason, as a record may have several."""
        first = Counter(verdict.problems[0].reason for verdict in self.dropped)
        every = Counter(reason for verdict in self.dropped for reason in {p.reason for p in verdict.problems})
        repairs = Counter(name for verdict in self.kept for name in verdict.repairs)
        return {
            "records": len(self.verdicts),
            "kept": len(self.kept),
            "dropped": len(self.dropped),
            "dropped_by_first_reason": {reason: first[reason] for reason in PROBLEMS if first[reason]},
            "reasons": {reason: every[reason] for reason in PROBLEMS if every[reason]},
            "repairs": dict(sorted(repairs.items())),
        }

    def to_text(self) -> str:
        """Format the counts for people."""
        counts = self.to_dict()
        lines = [f"{counts['records']} records: {counts['kept']} kept, {counts['dropped']} dropped"]
        lines += [f"  {count:6d}  {reason}: {PROBLEMS[reason]}" for reason, count in counts["reasons"].items()]
        lines += [f"  {count:6d}  repaired: {name}" for name, count in counts["repairs"].items()]
        return "\n".join(lines)

    def sample(self, size: int, *, seed: int) -> str:
        """Write a page (Markdown) with up to `size` records of each reason, and of those that are kept."""
        groups: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in self.verdicts:
            for reason in dict.fromkeys(problem.reason for problem in verdict.problems) or [KEPT]:
                groups[reason].append(verdict)
        pages = []
        for reason in [KEPT, *PROBLEMS]:
            chosen = random.Random(f"{seed} {reason}").sample(groups[reason], min(size, len(groups[reason])))
            if chosen:
                meaning = f": {PROBLEMS[reason]}" if reason in PROBLEMS else ""
                pages.append(f"# {reason}{meaning} ({len(chosen)} of {len(groups[reason])})\n")
                pages += [_page(verdict) for verdict in sorted(chosen, key=lambda verdict: verdict.line)]
        return "\n".join(pages)


def verify_file(path: Path, limits: ChainLimits) -> Verification:
    """Check every line of a file.

    Raises:
        OSError: if the file cannot be read.
        NotPlainFileError: if it is a pipe or a device.
    """
    check_plain_file(path)
    verdicts: list[Verdict] = []
    seen: set[RowKey] = set()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            verdicts.append(_judge_line(number, line, seen, limits))
    return Verification(verdicts)


def verify_record(record: Record, limits: ChainLimits) -> tuple[Record, tuple[str, ...], tuple[Problem, ...]]:
    """Return the repaired record, the kinds of repairs, and the problems that are left."""
    steps = dict(record["steps"])
    repairs: list[str] = []
    for step in REASONING_STEPS:
        if isinstance(steps.get(step), str):
            steps[step], needed = repair(step, steps[step])
            repairs += needed
    problems = find_problems(steps, record["answer"], record["category"], limits)
    if "wrong" in record:
        problems += _wrong_text_problems(record["wrong"])
    repaired = {**record, "steps": steps}
    if not problems:
        repaired["verified"] = True
        if record["answer"] != answer_for(record["category"]):
            repaired["answer"] = answer_for(record["category"])
            repairs.append("answer")
    return repaired, tuple(repairs), tuple(problems)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, check the file, and write kept and dropped records."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("chains", type=Path, help="JSONL file with chains of thought")
    parser.add_argument("--output", type=Path, required=True, help="JSONL file for the records that are kept")
    for field in dataclasses.fields(ChainLimits):
        kind: dict[str, Any] = {"action": "store_true"} if field.default is False else {"type": type(field.default)}
        parser.add_argument(f"--{field.name}", default=field.default, help=field.metadata["help"], **kind)
    parser.add_argument(
        "--sample_size", type=int, default=5, help="number of records of each reason that are shown to be read"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of those records")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON instead of text")
    args = parser.parse_args(argv)
    try:
        check_file(args.chains, name="the file")
        check_writable_file(args.output, name="--output")
        if args.output.exists() and args.output.samefile(args.chains):
            raise ValueError(f"--output is the input {args.chains}: name another file")
        limits = ChainLimits(max_step_chars=args.max_step_chars, allow_unnamed=args.allow_unnamed)
        verification = verify_file(args.chains, limits)
        with hold_output(args.output, is_folder=False):
            write(verification, args.output, sample_size=args.sample_size, seed=args.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(json.dumps(verification.to_dict(), indent=2) if args.json else verification.to_text())


def write(verification: Verification, out: Path, *, sample_size: int, seed: int) -> None:
    """Write the three files, all or none."""
    kept = [verdict.record for verdict in verification.kept if verdict.record is not None]
    page = verification.sample(sample_size, seed=seed)
    with whole_files(out, out.with_suffix(".dropped.jsonl"), out.with_suffix(".sample.md")) as (to_keep, dropped, read):
        to_keep.write(to_lines(kept))
        dropped.write(to_lines(_dropped_record(verdict) for verdict in verification.dropped))
        read.write(page.encode(errors="backslashreplace"))


def _judge_line(number: int, line: bytes, seen: set[RowKey], limits: ChainLimits) -> Verdict:
    """Check a line; `seen` holds the rows that are kept so far, and gets this one."""
    text = line.decode(errors="backslashreplace")
    try:
        record = parse_json(line)
        key = _check_keys(record)
    except ValueError as error:  # errors of the UTF-8 and JSON decoders as well
        return Verdict(number, None, text, problems=(Problem("unreadable", str(error)),))
    if key in seen:
        return Verdict(number, record, text, problems=(Problem("duplicate", f"uid {key[0]!r}, row {key[1]}"),))
    record, repairs, problems = verify_record(record, limits)
    if not problems:
        seen.add(key)
    return Verdict(number, record, text, repairs, problems)


def _check_keys(record: Any) -> RowKey:
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object")
    for name, kind in CHAIN_KEYS.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{name} is {record.get(name)!r}: expected {kind.__name__}")
    return row_key(record)


def _wrong_text_problems(wrong: object) -> Iterable[Problem]:
    if not isinstance(wrong, str) or not wrong.strip():
        yield Problem("bad_wrong_text", f"it is {wrong!r}")
    elif TASK.answer_token in wrong:
        yield Problem("bad_wrong_text", f"it holds {TASK.answer_token}")


def _dropped_record(verdict: Verdict) -> Record:
    reasons = [{"reason": problem.reason, "detail": problem.detail} for problem in verdict.problems]
    where: Mapping[str, Any] = verdict.record or {"uid": None, "row": None, "text": verdict.text}
    return {**where, "line": verdict.line, "problems": reasons}


def _page(verdict: Verdict) -> str:
    """Format one record for people."""
    problems = [f"> {problem.reason}: {problem.detail}\n" for problem in verdict.problems]
    record = verdict.record
    if record is None:
        return "\n".join([f"## line {verdict.line}\n", *problems, f"    {verdict.text}\n"])
    title = f"## line {verdict.line}: {record['uid']}, row {record['row']}\n"
    wrong = [f"- wrong: {record['wrong']}"] if "wrong" in record else []
    steps = [f"- {step}: {text}" for step, text in record["steps"].items()]
    question = f"{record.get('exp', '')} -> {record['category']}\n"
    return "\n".join([title, *problems, question, *wrong, *steps, f"- answer: {record['answer']}\n"])
