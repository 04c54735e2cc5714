"""Ask a stage-1 model about every training row and keep its mistakes, the source of reflective training.

accelerate launch --config_file accelerate_configs/cpu.yaml data_prep/collect_mistakes.py \
    --config recipes/synthetic/mistakes.yaml

A row is a mistake if the answer is wrong, no `[SEG]` is written, or the masks' IoU is below `min_iou`. Every answer
is on disk, in <output>.parts/, before the next batch is asked: the same command resumes a killed run, with any number
of processes. At the end the mistakes are written to <output>, sorted by row, for `correct_cot.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.scoring import score_rollout
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.journal import Journal, RowKey, read_rows, row_key, to_lines
from aurora_rl.files.output_lock import OutputInUseError, hold_output
from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.inference.predictor import Completion, Predictor, unfinished_batches
from aurora_rl.logs import setup_logging
from aurora_rl.models.checkpoint_files import fingerprint_checkpoint
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.tasks.base import Task, load_task

logger = logging.getLogger(__name__)

REASONS = ("category", "no_seg", "iou")
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
}


@dataclasses.dataclass
class MistakeArguments:
    """The rows that are asked about, and the rule for mistakes.

    Attributes:
        output: JSONL file of the mistakes.
        max_rows: number of rows of `train_split` to ask about, from the first, for a trial; the rows of a clip are
            consecutive, so these are few clips; None for all.
        min_iou: IoU below which a right answer is a mistake; 0 keeps wrong answers only.
        num_samples: completions drawn a row, of which the first wrong one is kept; 0 for one, decoded greedily.
        temperature: temperature at which completions are drawn.
        max_completion_length: largest number of tokens of a completion.
        batch_size: number of sequences generated at once.
        seed: seed of the drawn completions.
        use_cpu: whether the CPU is used even where there is a GPU.
    """

    output: str = dataclasses.field(metadata={"help": "JSONL file that the mistakes are written to."})
    max_rows: int | None = dataclasses.field(
        default=None, metadata={"help": "Number of rows to ask, from the first of the train split."}
    )
    min_iou: float = dataclasses.field(default=0.5, metadata={"help": "IoU below which an answer is a mistake."})
    num_samples: int = dataclasses.field(
        default=0, metadata={"help": "Number of completions sampled for a row; 0 for one, decoded greedily."}
    )
    temperature: float = dataclasses.field(
        default=1.0, metadata={"help": "Temperature at which completions are sampled."}
    )
    max_completion_length: int = dataclasses.field(
        default=512, metadata={"help": "Largest number of tokens of a completion."}
    )
    batch_size: int = dataclasses.field(default=8, metadata={"help": "Number of sequences generated at once."})
    seed: int = dataclasses.field(default=0, metadata={"help": "Seed of the sampled completions."})
    use_cpu: bool = dataclasses.field(default=False, metadata={"help": "Use the CPU, even where there is a GPU."})


def judge(
    task: Task, encoded: EncodedSample, completion: Completion, *, min_iou: float
) -> tuple[list[str], float | None]:
    """Return why an answer is wrong (some of `REASONS`, none if it is right), and its IoU, if there is one."""
    score = score_rollout(completion.text, completion.mask_probs, encoded.gt_masks, encoded.sample, task=task)
    wrong = {"category": not score.is_right}
    if score.iou is not None:
        wrong |= {"no_seg": completion.mask_probs is None, "iou": score.iou < min_iou}
    return [reason for reason in REASONS if wrong.get(reason)], score.iou


def answer_record(
    task: Task, encoded: EncodedSample, completions: list[Completion], *, min_iou: float, model: str
) -> dict[str, Any]:
    """Make a row's record: of its first wrong completion, or of the first one, without reasons, if all are right."""
    judged = [(completion, *judge(task, encoded, completion, min_iou=min_iou)) for completion in completions]
    completion, reasons, iou = next((entry for entry in judged if entry[1]), judged[0])
    sample = encoded.sample
    return {
        "uid": sample.uid,
        "row": sample.row,
        "split": sample.split,
        "category": sample.category,
        "exp": sample.reference,
        "completion": completion.text,
        "answered": task.parse(completion.text).value,
        "iou": None if iou is None else round(iou, 6),
        "reasons": reasons,
        "model": model,
    }


def settings(args: MistakeArguments, model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    """Return the settings that change answers; parts that were written with other settings are refused."""
    names = ("min_iou", "num_samples", "temperature", "seed", "max_completion_length")
    data = {name: value for name, value in data_args.to_record().items() if name not in NEUTRAL}
    model = {"model": fingerprint_checkpoint(model_args.model)[:16], "dtype": model_args.dtype}
    return {**model, **{name: getattr(args, name) for name in names}, **data}


def begin(folder: Path, expected: dict[str, Any]) -> None:
    """Make the folder of the parts, or check that an existing one has the same settings, and repair its files.

    Raises:
        ValueError: if it was begun with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob("*.jsonl"):
        Journal(part).close()  # drops an incomplete last line
    file = folder / "settings.json"
    if not file.exists():
        write_whole(file, json.dumps(expected, indent=2).encode())
    elif (found := parse_json(read_text_file(file))) != expected:
        differing = [name for name in expected if found.get(name) != expected[name]]
        raise ValueError(f"{folder} was begun with other {differing}: delete it, or choose another `out`")


def ask(
    samples: Sequence[AVSample],
    done: Set[RowKey],
    predictor: Predictor,
    log: Journal,
    args: MistakeArguments,
    model: str,
) -> Iterator[None]:
    """Ask the model about unfinished rows, and append each answer to the log before the next one is yielded."""

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
                log.append(
                    answer_record(predictor.encode.task, encoded, completions, min_iou=args.min_iou, model=model)
                )
                yield


def finish(out: Path, folder: Path, samples: list[AVSample]) -> None:
    """Write the mistakes of all parts, and log their number by kind."""
    keys = {(sample.uid, sample.row) for sample in samples}
    answers = {(r["uid"], r["row"]): r for part in sorted(folder.glob("*.jsonl")) for r in read_rows(part)}
    asked = [answers[key] for key in sorted(keys, key=lambda key: key[1])]
    mistakes = [record for record in asked if record["reasons"]]
    write_whole(out, to_lines(mistakes))
    counts = Counter(reason for record in mistakes for reason in record["reasons"])
    reasons = ", ".join(f"{counts[reason]} {reason}" for reason in REASONS)
    logger.info("%s: %d mistakes in %d rows (%s)", out, len(mistakes), len(asked), reasons)


def main(model_args: ModelArguments, data_args: DataArguments, args: MistakeArguments) -> None:
    """Collect mistakes; the launched processes share the rows."""
    state = PartialState(cpu=args.use_cpu)
    setup_logging(is_main_process=state.is_main_process)
    try:
        with hold_output(args.output, is_folder=False, is_main_process=state.is_main_process):
            collect(model_args, data_args, args, state)
    except OutputInUseError as error:
        raise SystemExit(f"collect_mistakes: {error}") from None


def collect(model_args: ModelArguments, data_args: DataArguments, args: MistakeArguments, state: PartialState) -> None:
    """Do the work of `main` while no other run writes to the output."""
    out = Path(args.output)
    folder = out.with_name(f"{out.name}.parts")
    samples = load_split(data_args, data_args.train_split)[: args.max_rows]
    expected = settings(args, model_args, data_args)
    if state.is_main_process:
        begin(folder, expected)
    state.wait_for_everyone()
    done = {(r["uid"], r["row"]) for part in folder.glob("*.jsonl") for r in read_rows(part)}
    state.wait_for_everyone()  # no part is written before all are checked
    share = samples[state.process_index :: state.num_processes]
    loaded = assemble_model(model_args, head=load_task(data_args.task).head, is_trainable=False)
    loaded.model.to(state.device)
    encode = assemble_encoder(data_args, loaded, samples, is_trainable=False, device=state.device)
    predictor = Predictor(
        loaded.model,
        encode,
        max_completion_length=args.max_completion_length,
        batch_size=args.batch_size,
    )
    with Journal(folder / f"{state.process_index:05d}.jsonl", check=row_key) as log:
        asking = ask(share, done, predictor, log, args, expected["model"])
        left = sum((sample.uid, sample.row) not in done for sample in share)
        for _ in tqdm(asking, total=left, disable=not state.is_main_process):
            pass
    state.wait_for_everyone()
    if state.is_main_process:
        finish(out, folder, samples)


def run() -> None:
    """Read the command line and run the script."""
    main(*RecipeParser((ModelArguments, DataArguments, MistakeArguments), description=__doc__).parse_args_and_config())
    PartialState().destroy_process_group()  # one that is left at exit may abort a run that went well
