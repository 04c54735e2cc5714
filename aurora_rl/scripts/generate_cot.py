"""Write chains of thought for a benchmark's rows with a stronger model, at any OpenAI-compatible endpoint.

    python data_prep/generate_cot.py --data_root data/ref_avs --split train --output chains.jsonl \\
        --model NAME --base_url http://localhost:8000/v1

The same command resumes a run that was killed or stopped. The exit status is 1 if a run ended early.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
from aurora_rl.endpoint.rows import RunArguments, run_rows
from aurora_rl.files.journal import Record
from aurora_rl.logs import setup_logging


@dataclasses.dataclass
class GenerateArguments:
    """The rows that get a chain."""

    split: str = dataclasses.field(default="train", metadata={"help": "Split whose rows get a chain of thought."})


def chain_questions(
    samples: Sequence[AVSample], media: MediaArguments, limits: ChainLimits, *, generator: str
) -> list[Question]:
    """Make the question about each row."""
    schema = chain_schema(sorted({sample.category for sample in samples}), limits)

    def question(sample: AVSample) -> Question:
        def read(text: str) -> tuple[Record, Sequence[str]]:
            reply = read_chain_reply(text, sample.category, limits)
            return chain_record(sample, reply.steps, generator=generator), reply.repairs

        return Question(sample.uid, sample.row, sample.split, schema, lambda: chain_messages(sample, media), read)

    return [question(sample) for sample in samples]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, ask, and report."""
    setup_logging()
    kinds = (DataArguments, GenerateArguments, RunArguments, MediaArguments, ChainLimits, EndpointArguments)
    parser = ConfigParser(kinds, description=__doc__)
    try:
        data_args, args, run_args, media, limits, endpoint_args = parser.parse_args_and_config(argv)
        check_task(data_args.task)
        # The config of a stage may name the files that are made here.
        data_args = dataclasses.replace(data_args, chains=None, reflections=None)
        samples = load_split(data_args, args.split)[: run_args.max_rows]
        questions = chain_questions(samples, media, limits, generator=str(endpoint_args.model))
        report = run_rows(questions, endpoint_args, run_args)
    except ValueError as error:
        parser.error(str(error))
    return report.exit_status
