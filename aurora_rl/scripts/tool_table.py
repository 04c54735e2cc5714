"""Ask a frozen reasoner about every row with the words of every set of tools: the table that tool choosers learn from.

accelerate launch --config_file accelerate_configs/cpu.yaml data_prep/tool_table.py \
    --config recipes/audio_tools/table_7b.yaml

With n tools a row is asked 2^n times, n <= 5, and the words of the tools follow its question. The reasoner is `model`;
it answers greedily, by the run's task, and what cannot be read is wrong and counted. A killed run is resumed by the
same command (`asked_rows`). The folder of `output` is then a data set (`data.tool_table`):

    {"uid": "train-00017", "row": 17, "tools": [0, 2], "evidence": "tempo: The tempo is 120 beats a minute.\\n...",
     "answer": "B", "readable": true, "right": true}
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.sample import AVSample
from aurora_rl.data.tool_table import ROWS_FILE, TABLE_FILE, TOOLS_FILE, all_sets
from aurora_rl.files.atomic import whole_files
from aurora_rl.files.journal import to_lines
from aurora_rl.inference.predictor import Completion
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.scripts.asked_rows import AskArguments, Asking, ask_rows
from aurora_rl.tasks.base import Task
from aurora_rl.tools.sound import SoundTool, describe, load_tools

logger = logging.getLogger(__name__)

#: A reasoner in Python: of a row and the words of the tools to what it says.
Reasoner = Callable[[AVSample, str], str]


@dataclasses.dataclass
class ToolArguments:
    """The tools whose words the reasoner is given.

    Attributes:
        tools: the tools in the order of their numbers, at most five: keys of `tools.sound.SOUND_TOOLS`, "events", or
            functions of one's own.
        classifier: folder of the audio classifier of "events".
    """

    tools: list[str] = dataclasses.field(
        default_factory=lambda: ["tempo", "pitch", "loudness", "onsets"],
        metadata={"help": "Names of the tools in the order of their numbers, at most five."},
    )
    classifier: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder of an audio classifier, for the tool 'events'."}
    )

    def __post_init__(self) -> None:
        all_sets(len(self.tools))


@dataclasses.dataclass
class ToolTableArguments(ToolArguments, AskArguments):
    """The tools, and how the model is asked with their words."""

    def __post_init__(self) -> None:
        ToolArguments.__post_init__(self)
        AskArguments.__post_init__(self)
        check_output(self.output)
        if self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}: a table holds the one greedy answer, so leave it out")


def check_output(output: str) -> Path:
    """Return the path of a table that is to be written.

    Raises:
        ValueError: if `data.tool_table` would not find it by its name.
    """
    if Path(output).name != TABLE_FILE:
        raise ValueError(f"output is {output!r}: it must end with /{TABLE_FILE}, other files stand beside it")
    return Path(output)


class TableRows:
    """Makes a row for every set of tools, and finds the sets' rows back.

    Args:
        tools: the tools by name.
        load: function that reads a row's clip.
    """

    def __init__(self, tools: Mapping[str, SoundTool], load: Callable[[AVSample], Any] | None = None) -> None:
        self.tools, self.sets = dict(tools), all_sets(len(tools))
        self._load = load or ClipReader()
        self.asked: list[AVSample] = []
        self.evidence: dict[str, list[str]] = {}

    def expand(self, samples: Sequence[AVSample]) -> list[AVSample]:
        """Return 2^n rows a sample, numbered by `row * 2^n + number of the set`, whose questions hold the words."""
        self.asked = list(samples)
        self.evidence = {sample.key: self._measure(sample) for sample in samples}
        return [
            dataclasses.replace(
                sample,
                row=sample.row * len(self.sets) + number,
                reference="\n".join(filter(None, [sample.reference, self.words(sample, number)])),
            )
            for sample in samples
            for number in range(len(self.sets))
        ]

    def words(self, sample: AVSample, number: int) -> str:
        """Return what the tools of a set say of a sample, a line a tool; empty for no tool."""
        return "\n".join(self.evidence[sample.key][tool] for tool in self.sets[number])

    def write(self, out: Path, asked: Sequence[Mapping[str, Any]]) -> None:
        """Write the table of all questions with an answer for each set, all three files or none; log how that went."""
        answered = Counter((record["uid"], record["row"] // len(self.sets)) for record in asked)
        by_key = {
            (sample.uid, sample.row): sample
            for sample in self.asked
            if answered[sample.uid, sample.row] == len(self.sets)
        }
        if lacking := len(self.asked) - len(by_key):
            logger.warning("%d of %d questions lack an answer and are left out", lacking, len(self.asked))
        lines = []
        for record in asked:
            row, number = divmod(record["row"], len(self.sets))
            if (record["uid"], row) not in by_key:
                continue
            words = self.words(by_key[record["uid"], row], number)
            said = {name: record[name] for name in ("answer", "readable", "right")}
            lines.append(
                {"uid": record["uid"], "row": row, "tools": list(self.sets[number]), "evidence": words, **said}
            )
        described = [[name, describe(tool)] for name, tool in self.tools.items()]
        with whole_files(out.with_name(TOOLS_FILE), out.with_name(ROWS_FILE), out) as (tools, rows, table):
            tools.write((json.dumps(described, ensure_ascii=False, indent=2) + "\n").encode())
            rows.write(to_lines(_question(sample, out.parent) for sample in by_key.values()))
            table.write(to_lines(lines))
        right, unread = sum(line["right"] for line in lines), sum(not line["readable"] for line in lines)
        logger.info("%s: %d answers, %d right, %d unreadable (wrong)", out, len(lines), right, unread)

    def _measure(self, sample: AVSample) -> list[str]:
        clip = self._load(sample)
        if clip.waveform is None:
            raise ValueError(f"sample {sample.key} has no sound: tools measure one, so drop the row")
        sound = np.asarray(clip.waveform, dtype=np.float32)
        return [f"{name}: {tool(sound, SAMPLING_RATE)}" for name, tool in self.tools.items()]


def judged(task: Task, sample: AVSample, text: str) -> dict[str, Any]:
    """Return what an answer is worth: as the task reads it, whether it can be read, and whether it is right."""
    answer = task.parse(text)
    readable = task.text_scores(answer, sample).get("readable")
    is_read = answer.value is not None if readable is None else bool(readable)
    return {"answer": answer.value, "readable": is_read, "right": is_read and task.is_right(answer, sample)}


def answer_in_python(
    rows: TableRows, samples: Sequence[AVSample], reasoner: Reasoner, task: Task
) -> list[dict[str, Any]]:
    """Let a function answer in the model's place, and return the records of all rows and sets."""
    asked = rows.expand(samples)
    of_set = [(sample, number) for sample in samples for number in range(len(rows.sets))]
    return [
        {"uid": each.uid, "row": each.row, **judged(task, each, reasoner(sample, rows.words(sample, number)))}
        for each, (sample, number) in zip(asked, of_set, strict=True)
    ]


def main(model_args: ModelArguments, data_args: DataArguments, args: ToolTableArguments) -> None:
    """Make the table; the launched processes share the rows of a model."""
    rows = TableRows(load_tools(args.tools, classifier=args.classifier))

    def record(task: Task, encoded: EncodedSample, completions: list[Completion], model: str) -> dict[str, Any]:
        sample = encoded.sample
        said = judged(task, sample, completions[0].text)
        return {"uid": sample.uid, "row": sample.row, "split": sample.split, **said, "model": model}

    settings = {"tools": list(args.tools), "classifier": args.classifier}
    ask_rows(model_args, data_args, args, Asking(record, rows.write, settings, name="tool_table", rows=rows.expand))


def _question(sample: AVSample, folder: Path) -> dict[str, Any]:
    names = {"question": sample.reference, "choices": list(sample.choices or ()), "kind": sample.reference_type}
    found = {"answer": sample.answer, "sound": os.path.relpath(sample.audio_path or "", folder)}
    return {"uid": sample.uid, "row": sample.row, "split": sample.split, **names, **found}


def run() -> None:
    """Read the command line and run the script."""
    kinds = (ModelArguments, DataArguments, ToolTableArguments)
    main(*RecipeParser(kinds, description=__doc__).parse_args_and_config())
    PartialState().destroy_process_group()  # one that is left at exit may abort a run that went well
