"""Ask a model about every training row, resumably and by several processes; a script says what is kept of answers.

Every record is on disk, in <output>.parts/, before the next batch is asked: the same command resumes a killed run. At
the end the script makes its output of all records. `collect_mistakes` and `pass_rates` are two such scripts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from aurora_rl.assembly.answering import assemble_predictor, start_engine
from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model
from aurora_rl.assembly.sampling import SamplingArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.files.journal import Journal, RowKey, read_rows, row_key
from aurora_rl.files.output_lock import OutputInUseError, hold_output
from aurora_rl.files.settings import check_settings
from aurora_rl.inference.predictor import Completion, Predictor, unfinished_batches
from aurora_rl.logs import setup_logging
from aurora_rl.models.checkpoint_files import fingerprint_checkpoint
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.tasks.base import Task, load_task

#: Arguments that do not change any answer.
NEUTRAL = {
    "eval_split",
    "max_eval_samples",
    "eval_samples_seed",
    "chains",
    "reflections",
    "mask_cache",
    "media_cache",
    "embedding_cache",
    "pass_rates",
    "pass_rate_above",
    "pass_rate_below",
    "curriculum",
    "curriculum_bands",
    "curriculum_seed",
}

#: Makes the record of a row of the task, its encoded sample, its completions, and the model's fingerprint.
MakeRecord = Callable[[Task, EncodedSample, list[Completion], str], dict[str, Any]]
#: Writes the output of the records of all rows, in the rows' order.
Finish = Callable[[Path, list[dict[str, Any]]], None]


@dataclasses.dataclass
class AskArguments(SamplingArguments):
    """The rows that are asked about, and how answers are generated.

    Attributes:
        output: JSONL file that is written at the end.
        max_rows: number of rows of `train_split` to ask about, from the first, for a trial; the rows of a clip are
            consecutive, so these are few clips; None for all.
        num_samples: completions drawn for a row; 0 for one, decoded greedily.
    """

    output: str = dataclasses.field(metadata={"help": "JSONL file that the results are written to."})
    max_rows: int | None = dataclasses.field(
        default=None, metadata={"help": "Number of rows to ask, from the first of the train split."}
    )
    num_samples: int = dataclasses.field(
        default=0, metadata={"help": "Number of completions sampled for a row; 0 for one, decoded greedily."}
    )

    def least(self) -> dict[str, int]:
        """Return the smallest values of the numbers that a script adds."""
        return {**super().least(), "max_rows": 1, "num_samples": 0}


@dataclasses.dataclass(frozen=True)
class Asking:
    """What a script does with answers.

    Attributes:
        record: function that makes the record of a row's answers.
        finish: function that writes the output.
        settings: the script's own arguments that change records, beside those of `AskArguments`.
        name: name of the script, for errors.
        rows: function that makes the rows that are asked about of those of the split; None to ask about these.
    """

    record: MakeRecord
    finish: Finish
    settings: dict[str, Any]
    name: str
    rows: Callable[[Sequence[AVSample]], list[AVSample]] | None = None


def ask_rows(model_args: ModelArguments, data_args: DataArguments, args: AskArguments, asking: Asking) -> None:
    """Ask about all rows and write the output; the launched processes share the rows.

    Raises:
        SystemExit: if another run writes to the output.
        ValueError: if the parts that are there were written with other settings.
    """
    state = PartialState(cpu=args.use_cpu)
    setup_logging(is_main_process=state.is_main_process)
    try:
        with hold_output(args.output, is_folder=False, is_main_process=state.is_main_process):
            _ask_and_finish(model_args, data_args, args, asking, state)
    except OutputInUseError as error:
        raise SystemExit(f"{asking.name}: {error}") from None


def _settings(
    args: AskArguments, model_args: ModelArguments, data_args: DataArguments, own: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings that change answers; parts that were written with other settings are refused."""
    names = ("num_samples", "temperature", "seed", "max_completion_length")
    model: dict[str, Any] = {"model": fingerprint_checkpoint(model_args.model)[:16], "dtype": model_args.dtype}
    return {**model, **args.of_vllm, **own, **{name: getattr(args, name) for name in names}, **data_settings(data_args)}


def data_settings(data_args: DataArguments) -> dict[str, Any]:
    """Return the arguments of the data that change answers."""
    return {name: value for name, value in data_args.to_record().items() if name not in NEUTRAL}


def begin_parts(folder: Path, expected: dict[str, Any]) -> None:
    """Make the folder of the parts, or check that an existing one has the same settings, and repair its files.

    Raises:
        ValueError: if it was begun with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob("*.jsonl"):
        Journal(part).close()  # drops an incomplete last line
    check_settings(folder / "settings.json", expected, of=folder)


def _ask(
    samples: Sequence[AVSample],
    done: Set[RowKey],
    predictor: Predictor,
    args: AskArguments,
    record: MakeRecord,
    model: str,
) -> Iterator[dict[str, Any]]:
    """Ask the model about unfinished rows, and yield the record of each."""

    def is_done(sample: AVSample) -> bool:
        return (sample.uid, sample.row) in done

    # Whole batches, as many rows as the predictor puts into one.
    rows = [sample for batch in unfinished_batches(samples, args.batch_size, is_done=is_done) for sample in batch]
    answers = predictor.predict(
        rows, num_samples=args.num_samples or None, temperature=args.temperature, seed=args.seed
    )
    with contextlib.closing(answers):
        for encoded, completions in answers:
            if not is_done(encoded.sample):
                yield record(predictor.encode.task, encoded, completions, model)


def _ask_and_finish(
    model_args: ModelArguments, data_args: DataArguments, args: AskArguments, asking: Asking, state: PartialState
) -> None:
    """Do the work of `ask_rows` while no other run writes to the output."""
    out = Path(args.output)
    folder = out.with_name(f"{out.name}.parts")
    samples = load_split(data_args, data_args.train_split)[: args.max_rows]
    samples = samples if asking.rows is None else asking.rows(samples)
    expected = _settings(args, model_args, data_args, asking.settings)
    if state.is_main_process:
        begin_parts(folder, expected)
    state.wait_for_everyone()
    done = {(r["uid"], r["row"]) for part in folder.glob("*.jsonl") for r in read_rows(part)}
    state.wait_for_everyone()  # no part is written before all are checked
    share = samples[state.process_index :: state.num_processes]
    loaded = assemble_model(model_args, head=load_task(data_args.task).head, is_trainable=False)
    loaded.model.to(state.device)
    encode = assemble_encoder(data_args, loaded, samples, is_trainable=False, device=state.device)
    predictor = assemble_predictor(args, loaded, encode, start_engine(args, loaded))
    with Journal(folder / f"{state.process_index:05d}.jsonl", check=row_key) as log:
        left = sum((sample.uid, sample.row) not in done for sample in share)
        records = _ask(share, done, predictor, args, asking.record, expected["model"])
        for record in tqdm(records, total=left, disable=not state.is_main_process):
            log.append(record)  # before the next one is asked for
    state.wait_for_everyone()
    if state.is_main_process:
        keys = {(sample.uid, sample.row) for sample in samples}
        found = {(r["uid"], r["row"]): r for part in sorted(folder.glob("*.jsonl")) for r in read_rows(part)}
        asking.finish(out, [found[key] for key in sorted(keys, key=lambda key: key[1])])
