"""Evaluation of a model on a benchmark's splits and under ablations: `recipes/evaluate.py`, `aurora-rl evaluate`.

It writes results.jsonl (a line a row, masks included) and scores.json into `output_dir`, as `records.py` describes
them, and for each ablation results.<ablation>.jsonl and scores.<ablation>.json. Of several data sets (`data`) each has
a folder of its name there, with these files; scores.json beside the folders holds the numbers of all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from aurora_rl import __version__
from aurora_rl.assembly.answering import assemble_predictor, start_engine
from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.benchmarks import check_scorable, find_train_categories, list_test_splits, load_split
from aurora_rl.assembly.calling import CALLED, CALLED_MEANS, CallingArguments, assemble_calling_predictor
from aurora_rl.assembly.data_sets import DataSet, data_sets, main_set
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.ablations import ABLATIONS, Ablation
from aurora_rl.evaluation.presets import find_preset
from aurora_rl.evaluation.records import SCORES_FILE, RowResult, Scores, record_of, result_from_record, write_evaluation
from aurora_rl.evaluation.scoring import score_answer, score_rollout
from aurora_rl.evaluation.tables import common_tables, mark_novelty, score_tables
from aurora_rl.evaluation.taken_away import ablated_tables, beside
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.fingerprint import fingerprint_bytes, fingerprint_files
from aurora_rl.files.journal import ResumeFile
from aurora_rl.files.output_lock import hold_output
from aurora_rl.inference.predictor import Completion, Predictor, unfinished_batches
from aurora_rl.logs import setup_logging
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.read_ahead import encoded_batches
from aurora_rl.tasks.base import load_task

if TYPE_CHECKING:
    from aurora_rl.rollout.engine import AuroraVLLMGeneration

logger = logging.getLogger(__name__)

#: Names that resume files have for arguments, so that files of a former version can be resumed.
RECORDED_AS = {"split": "splits"}
#: Arguments that results depend on where tools are called; files of a former version lack them.
OF_TOOLS = tuple(CallingArguments.__annotations__)


@dataclasses.dataclass
class EvaluationArguments(CallingArguments):
    """The splits to score, the preset, and how completions are generated."""

    output_dir: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder for the results: results.jsonl and scores.json."}
    )
    split: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "Splits that are scored; by default all that begin with 'test'."}
    )
    preset: str = dataclasses.field(
        default="refavs", metadata={"help": "Rules by which masks are scored: refavs, avsbench, aurora or davis."}
    )
    num_samples: int = dataclasses.field(
        default=0, metadata={"help": "Number of completions sampled for a row, beside the greedy one."}
    )
    ablations: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": f"Modalities taken away in further runs: {', '.join(sorted(ABLATIONS))}."},
    )
    append_seg: bool = dataclasses.field(
        default=True, metadata={"help": "Close completions without [SEG] by 'It is [SEG].', so that they have masks."}
    )

    def least(self) -> dict[str, int]:
        """Return the smallest values of the numbers that a script adds."""
        return {**super().least(), "num_samples": 0}

    @property
    def folder(self) -> Path:
        """The folder of the results.

        Raises:
            ValueError: if `output_dir` is not set.
        """
        if not self.output_dir:
            raise ValueError("there is no output_dir: name the folder for the results")
        return Path(self.output_dir)


def evaluate_model(
    model_args: ModelArguments, data_args: DataArguments, args: EvaluationArguments
) -> dict[str, Any] | None:
    """Score the model on the splits, then under each ablation, and write the files; the launched processes share it.

    Every finished row goes to a resume file; a killed run is resumed from it by the same command with the same model
    and data.

    Returns:
        Content of scores.json; None in a process that is not the main one.

    Raises:
        ValueError: if arguments or data are invalid.
        OutputInUseError: if another run writes to the output.
    """
    for preset in (args.preset, *(each.preset for each in data_sets(data_args) if each.preset)):
        find_preset(preset)
    if unknown := sorted(set(args.ablations) - set(ABLATIONS)):
        raise ValueError(f"unknown ablations {unknown}: choose from {sorted(ABLATIONS)}")
    state = PartialState(cpu=args.use_cpu)
    setup_logging(is_main_process=state.is_main_process)
    with hold_output(args.folder, is_folder=True, is_main_process=state.is_main_process):
        return _evaluate_alone(model_args, data_args, args, state)


def _evaluate_alone(
    model_args: ModelArguments, data_args: DataArguments, args: EvaluationArguments, state: PartialState
) -> dict[str, Any] | None:
    """Do the work of `evaluate_model` while no other run writes to the output."""
    sets = data_sets(data_args)
    rows = {each.name: samples_of(each, args) for each in sets}  # all are listed before a model is loaded
    _check_rows_have(args.ablations, [sample for of_set in rows.values() for sample in of_set])
    loaded = assemble_model(model_args, head=load_task(main_set(sets).args.task).head, is_trainable=False)
    _check_ablations(args.ablations, loaded, sets)
    loaded.model.to(state.device)
    engine = start_engine(args, loaded)
    scores = {}
    with contextlib.ExitStack() as stack:
        resume_files: list[ResumeFile] = []
        for each in sets:
            folder = str(args.folder / each.name) if each.name else args.output_dir
            of_set = dataclasses.replace(args, output_dir=folder, preset=each.preset or args.preset)
            # Removed when all passes are done: the same command resumes a run that was killed in any of them.
            of_passes = {
                name: stack.enter_context(_open_resume_file(name, rows[each.name], model_args, each.args, of_set))
                for name in ("", *_ablations_of(args.ablations, rows[each.name], each.args))
            }
            resume_files += of_passes.values()
            tables = _evaluate_set(rows[each.name], loaded, model_args.model, each.args, of_set, of_passes, engine)
            if state.is_main_process:
                scores[each.name] = tables
        common = common_tables(scores) if state.is_main_process and data_args.data is not None else scores.get("")
        if common is not None and data_args.data is not None:
            write_whole(args.folder / SCORES_FILE, f"{json.dumps(common, indent=2, ensure_ascii=False)}\n")
        state.wait_for_everyone()
        for resume_file in resume_files:
            resume_file.remove()
    return common


def samples_of(of_set: DataSet, args: EvaluationArguments) -> list[AVSample]:
    """List the rows of the splits that are scored: those of the entry, of the run, or all that begin with "test"."""
    splits = of_set.split or args.split or list_test_splits(of_set.args)
    samples = [sample for split in splits for sample in load_split(of_set.args, split)]
    check_scorable(of_set.args, samples)
    return samples


def _check_rows_have(ablations: Sequence[str], samples: Sequence[AVSample]) -> None:
    """Refuse to take away what no row has, and say how many rows an ablation leaves as they are."""
    for name in ablations:
        what, lacking = ABLATIONS[name].what, sum(not ABLATIONS[name].changes(sample) for sample in samples)
        if lacking == len(samples):
            raise ValueError(f"ablations: {name} would repeat the run, as none of the rows has {what}: leave it out")
        if lacking:
            logger.warning("%s: %d of %d rows have no %s, its scores leave them out", name, lacking, len(samples), what)


def _ablations_of(names: Sequence[str], samples: Sequence[AVSample], data_args: DataArguments) -> list[str]:
    """List the ablations that change at least one row of a data set."""
    return [name for name in names if any(_changes(name, sample, data_args) for sample in samples)]


def _changes(name: str, sample: AVSample, data_args: DataArguments) -> bool:
    is_given = not (name == "audio_muted" and data_args.drop_sound)
    return is_given and ABLATIONS[name].changes(sample)


def _check_ablations(names: Sequence[str], loaded: LoadedModel, sets: Sequence[DataSet]) -> None:
    """Refuse to take away what the model is not given: the pass would repeat the first one.

    Frames are given to a model that sees none where its task has a head, which sees them.
    """
    family = loaded.family
    given = {
        "audio_muted": family.hears and not all(each.args.drop_sound for each in sets),
        "frames_blanked": family.sees is not None or any(load_task(each.args.task).head for each in sets),
    }
    for name in names:
        if not given.get(name, True):
            what = "hears nothing" if name == "audio_muted" else "sees nothing, nor does its task's head"
            raise ValueError(f"ablations: {name} would repeat the run, as the model {what}: leave it out")


def _evaluate_set(
    samples: list[AVSample],
    loaded: LoadedModel,
    source: str,
    data_args: DataArguments,
    args: EvaluationArguments,
    resume_files: Mapping[str, ResumeFile],
    engine: AuroraVLLMGeneration | None,
) -> dict[str, Any]:
    """Score the model on the rows of one data set, and write its files.

    Args:
        samples: all rows.
        loaded: the model.
        source: its name, for scores.json.
        data_args: arguments of the data set.
        args: arguments of the scoring, with the data set's folder and preset.
        resume_files: resume file of each pass by the ablation's name, "" for none.
        engine: vLLM, if it samples.

    Returns:
        Content of scores.json; empty in a process that is not the main one.
    """
    train_categories = find_train_categories(data_args)
    passes = {
        name: mark_novelty(
            evaluate(samples, loaded, data_args, args, file, ablation=name, engine=engine), train_categories
        )
        for name, file in resume_files.items()
    }
    if not PartialState().is_main_process:
        return {}
    sampler = "transformers" if engine is None else "vllm"
    of_all: dict[str, Any] = {"source": source, "sampler": sampler, "asked": asked_how(data_args, args)}
    of_calls = {} if args.environment_factory is None else {CALLED: CALLED_MEANS}
    if meanings := {**load_task(data_args.task).meanings, **of_calls}:
        of_all["meanings"] = meanings
    scores = score_tables(passes[""]) | of_all
    for name, rows in list(passes.items())[1:]:
        changed = {sample.key for sample in samples if _changes(name, sample, data_args)}
        tables = ablated_tables(rows, changed) | of_all
        scores.setdefault("ablations", {})[name] = beside(passes[""], rows, changed, tables)
        write_evaluation(args.folder, rows, tables, ablation=name)
    write_evaluation(args.folder, passes[""], scores)
    return scores


def asked_how(data_args: DataArguments, args: EvaluationArguments) -> dict[str, Any]:
    """Return what the model was asked and with which limits: two evaluations that differ here are not comparable."""
    given = ("system_prompt", "fps", "num_frames", "min_pixels", "max_pixels", "use_audio_in_video", "drop_sound")
    return {
        "task": load_task(data_args.task).name,
        "instruction": data_args.asked_instruction(),
        **{name: getattr(data_args, name) for name in given},
        "max_completion_length": args.max_completion_length,
        **({} if args.environment_factory is None else {name: getattr(args, name) for name in OF_TOOLS}),
    }


def _open_resume_file(
    ablation: str,
    samples: Sequence[AVSample],
    model_args: ModelArguments,
    data_args: DataArguments,
    args: EvaluationArguments,
) -> ResumeFile:
    """Open this process's resume file; its identity is everything that the results depend on."""
    state = PartialState()
    name = f"results{f'.{ablation}' if ablation else ''}.partial.{state.process_index}.jsonl"
    weights = Path(model_args.model)
    files = [path for path in weights.iterdir() if path.is_file()] if weights.is_dir() else []
    identity = {
        "version": __version__,
        "model": model_args.to_record(),
        "weights": fingerprint_files((path.name, path.stat()) for path in files),
        # The draw of rows during training changes nothing here, and files from before this argument can be resumed.
        "data": {name: value for name, value in data_args.to_record().items() if name != "eval_samples_seed"},
        "samples": fingerprint_bytes(repr(samples).encode()),
        "arguments": _recorded(args),
        "ablation": ablation,
        "process": [state.process_index, state.num_processes],
    }
    return ResumeFile(args.folder / name, identity)


def _recorded(args: EvaluationArguments) -> dict[str, Any]:
    """Return the arguments that results depend on; of vLLM's those that change completions."""
    of_tools = OF_TOOLS if args.environment_factory is None else ()
    left_out = {"output_dir", *of_tools, *(name for name in vars(args) if "vllm" in name)}
    own = {RECORDED_AS.get(name, name): value for name, value in vars(args).items() if name not in left_out}
    return own | args.of_vllm


def evaluate(
    samples: list[AVSample],
    loaded: LoadedModel,
    data_args: DataArguments,
    args: EvaluationArguments,
    resume_file: ResumeFile,
    *,
    ablation: str = "",
    engine: AuroraVLLMGeneration | None = None,
) -> list[RowResult]:
    """Score every sample; the launched processes share the work, and the results are returned in order.

    Args:
        samples: all rows.
        loaded: the model.
        data_args: arguments that say how clips are given to it.
        args: arguments of the scoring.
        resume_file: resume file of this process; its rows are not scored again.
        ablation: modality that is removed, a key of `ABLATIONS`; completions are sampled only if it is empty.
        engine: vLLM with the model's weights, which writes the completions; None where the model does.
    """
    state = PartialState()
    change = ABLATIONS[ablation] if ablation else Ablation()
    # Before finished rows are skipped: the processes compute the embeddings of all samples together, and an ablation
    # shuffles the questions of all samples.
    encode = assemble_encoder(
        data_args,
        loaded,
        samples,
        is_trainable=False,
        load=change.load,
        frames_are_changed=change.changes_frames,
        device=state.device,
    )
    if args.environment_factory is None:
        predictor = assemble_predictor(args, loaded, encode, engine, append_seg=args.append_seg)
    else:
        predictor = assemble_calling_predictor(args, loaded, encode, append_seg=args.append_seg)
    results = {result.key: result for result in map(result_from_record, resume_file.records)}
    asked = list(zip(samples, change.change_samples(samples), strict=True))[state.process_index :: state.num_processes]
    num_samples = 0 if ablation else args.num_samples
    hidden = None if state.is_main_process else True
    batches = list(unfinished_batches(asked, args.batch_size, is_done=lambda pair: pair[0].key in results))
    questions = [[question for _, question in batch] for batch in batches]
    with (
        tqdm(desc=ablation or "evaluate", initial=len(results), total=len(asked), disable=hidden) as progress,
        contextlib.closing(encoded_batches(encode, questions)) as encoded_ahead,
    ):
        for batch, encoded in zip(batches, encoded_ahead, strict=True):
            answers = _answers(predictor, encoded, args, num_samples=num_samples)
            for (sample, _), answer in zip(batch, answers, strict=True):
                if sample.key not in results:
                    results[sample.key] = _score(sample, *answer, predictor=predictor, preset=args.preset)
                    resume_file.append(record_of(results[sample.key]))
                    progress.update()
    return sorted(gather_object(list(results.values())), key=lambda result: result.row)


def _answers(
    predictor: Predictor, encoded: Sequence[EncodedSample], args: EvaluationArguments, *, num_samples: int
) -> Iterator[tuple[EncodedSample, Completion, list[Completion]]]:
    """Yield each question of a batch with its greedy and its sampled completions."""
    greedy = predictor.complete(encoded)
    sampled = predictor.complete(encoded, num_samples=num_samples, temperature=args.temperature, seed=args.seed)
    for item, [completion] in zip(encoded, greedy, strict=True):
        yield item, completion, next(sampled) if num_samples else []


def _score(
    sample: AVSample,
    encoded: EncodedSample,
    greedy: Completion,
    sampled: Sequence[Completion],
    *,
    predictor: Predictor,
    preset: str,
) -> RowResult:
    truth, task = encoded.gt_masks, predictor.encode.task

    def head_scores(completion: Completion) -> Scores:
        return predictor.head_scores(encoded, completion)

    rollouts = [
        score_rollout(each.text, each.mask_probs, truth, sample, task=task, head_scores=head_scores(each))
        for each in sampled
    ]
    return score_answer(
        sample,
        greedy.text,
        greedy.mask_probs,
        truth,
        sampled=rollouts,
        preset=preset,
        task=task,
        head_scores=head_scores(greedy),
    )
