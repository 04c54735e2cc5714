"""Make a tool table whose frozen reasoner is a model at any OpenAI-compatible endpoint.

    python data_prep/tool_table_by_endpoint.py --data_root data/avqa --benchmark avqa \\
        --task aurora_rl.tasks.multiple_choice:MultipleChoice --output outputs/audio_tools/table/table.jsonl \\
        --model NAME --base_url http://localhost:8000/v1 --temperature 0

The table is that of `tool_table`. Every answer is on disk, in <output>.parts/, before it counts: the same command
resumes a run that was killed or stopped, and asks again what failed. The table is written once all was asked about;
a question that lacks the answer to one of its sets is left out and counted. The exit status is 1 if a run ended early.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.chain_writing.asking import Question
from aurora_rl.data.message_parts import MediaArguments, media_parts
from aurora_rl.data.sample import AVSample
from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.rows import RunArguments, run_rows
from aurora_rl.files.journal import Record, read_rows
from aurora_rl.logs import setup_logging
from aurora_rl.scripts.asked_rows import begin_parts, data_settings
from aurora_rl.scripts.tool_table import TableRows, ToolArguments, check_output, judged
from aurora_rl.tasks.base import Task, load_task
from aurora_rl.tools.sound import load_tools

logger = logging.getLogger(__name__)


def reasoner_messages(
    task: Task, sample: AVSample, data_args: DataArguments, media: MediaArguments
) -> list[dict[str, Any]]:
    """Ask a row's question, with its media, as the run's task asks a model that is trained here."""
    asked = task.messages(sample, instruction=data_args.instruction, system_prompt=data_args.system_prompt)
    text = str(asked[-1]["content"][-1]["text"])
    parts = media_parts(sample, media)
    content: Any = [*parts, {"type": "text", "text": text}] if parts else text
    system = [{"role": "system", "content": data_args.system_prompt}] if data_args.system_prompt else []
    return [*system, {"role": "user", "content": content}]


def reasoner_questions(
    samples: Sequence[AVSample], data_args: DataArguments, media: MediaArguments, *, model: str
) -> list[Question]:
    """Make the question about each row of `TableRows.expand`; a reply that cannot be read is a wrong answer."""
    task = load_task(data_args.task)

    def question(sample: AVSample) -> Question:
        def read(text: str) -> tuple[Record, Sequence[str]]:
            said = judged(task, sample, text)
            return {"uid": sample.uid, "row": sample.row, "split": sample.split, **said, "model": model}, ()

        return Question(
            *(sample.uid, sample.row, sample.split),
            schema=None,
            messages=lambda: reasoner_messages(task, sample, data_args, media),
            read=read,
        )

    return [question(sample) for sample in samples]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, ask, and write the table."""
    setup_logging()
    kinds = (DataArguments, ToolArguments, RunArguments, MediaArguments, EndpointArguments)
    parser = ConfigParser(kinds, description=__doc__)
    try:
        data_args, tools, run_args, media, endpoint_args = parser.parse_args_and_config(argv)
        out = check_output(run_args.output)
        rows = TableRows(load_tools(tools.tools, classifier=tools.classifier))
        samples = rows.expand(load_split(data_args, data_args.train_split)[: run_args.max_rows])
        answers = out.with_name(f"{out.name}.parts") / "answers.jsonl"
        # max_tokens may be raised for replies that were cut off, which are no answers.
        model = {name: getattr(endpoint_args, name) for name in ("model", "temperature", "extra_body")}
        settings = {**model, **dataclasses.asdict(tools), **dataclasses.asdict(media), **data_settings(data_args)}
        begin_parts(answers.parent, settings)
        questions = reasoner_questions(samples, data_args, media, model=str(endpoint_args.model))
        report = run_rows(questions, endpoint_args, dataclasses.replace(run_args, output=str(answers)))
    except ValueError as error:
        parser.error(str(error))
    if report.not_asked:
        logger.error("%d answers were not asked for: no table yet; the same command goes on", report.not_asked)
    else:
        rows.write(out, read_rows(answers))
    return report.exit_status
