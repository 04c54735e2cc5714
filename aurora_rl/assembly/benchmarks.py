"""The samples of a run: this module reads the benchmark, its splits and its chains of thought."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.data_sets import data_sets, main_set, only_set
from aurora_rl.assembly.own_loader import is_own_loader, load_by_name, takes_option
from aurora_rl.data import hf_dataset, ref_avs
from aurora_rl.data.avsbench import load_avsbench_avss, load_avsbench_ms3, load_avsbench_s4
from aurora_rl.data.chains import ChainFile, add_reflections
from aurora_rl.data.clip_sources import is_table
from aurora_rl.data.clip_tables import load_table, read_table_categories
from aurora_rl.data.clips import load_clips, without_unlabelled
from aurora_rl.data.curriculum import by_pass_rates, read_pass_rates
from aurora_rl.data.draw import draw_over_clips
from aurora_rl.data.files import DatasetError
from aurora_rl.data.hf_dataset import load_hf_dataset
from aurora_rl.data.manifest import read_categories as read_clip_categories
from aurora_rl.data.omni_avs import load_omni_avs
from aurora_rl.data.question_tables import QUESTION_TABLES, load_question_table
from aurora_rl.data.questions import load_questions
from aurora_rl.data.ref_avs import find_test_splits, load_ref_avs
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.data.splits import list_splits
from aurora_rl.tasks.base import Task, load_task

logger = logging.getLogger(__name__)


def load_split(args: DataArguments, split: str) -> list[AVSample]:
    """Load the samples of one split, with their chains of thought if the arguments name a file of them.

    Raises:
        ValueError: if the benchmark is unknown, the `mask_cache` or `media_cache` that it needs is not set, or the
            task has no chains of thought.
    """
    args = only_set(args)
    task = load_task(args.task)
    chains = None if args.chains is None else task.chain_file(folder_of(args.data_root) / args.chains)
    samples = _loader(args.benchmark)(args, split, chains)
    if args.reflections is not None:
        samples = add_reflections(samples, task.chain_file(args.reflections))
    if args.skip_unlabelled and task.head is not None:
        samples = without_unlabelled(samples)
    if args.use_audio_in_video:
        samples = [dataclasses.replace(sample, use_audio_in_video=True) for sample in samples]
    return samples


def folder_of(data_root: str | Path) -> Path:
    """Return the folder that paths are relative to: `data_root`, or the folder of the file that it names."""
    root = Path(data_root)
    return root.parent if root.is_file() else root


def _loader(benchmark: str) -> Callable[[DataArguments, str, ChainFile | None], list[AVSample]]:
    if is_own_loader(benchmark):
        return _load_own
    if benchmark not in LOADERS:
        raise ValueError(
            f"unknown benchmark {benchmark!r}: choose from {', '.join(LOADERS)}, or write 'path/to/mine.py:load' for a "
            "loader of your own"
        )
    return LOADERS[benchmark]


def _load_own(args: DataArguments, split: str, chains: ChainFile | None) -> list[AVSample]:
    if chains is not None and not takes_option(args.benchmark, "chains"):
        raise ValueError(
            f"the loader {args.benchmark} takes no `chains`: drop {chains.path}, or let it fill AVSample.chain by "
            "data.chains.add_chains"
        )
    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    return load_by_name(args.benchmark, args.data_root, split, options | {"chains": chains})


def _load_omni_avs(
    args: DataArguments, split: str, chains: ChainFile | None, *, all_types: bool = False
) -> list[AVSample]:
    if args.mask_cache is None:
        raise ValueError("OmniAVS keeps its masks as run lengths: set `mask_cache` to a folder for them as PNG files")
    return load_omni_avs(
        args.data_root,
        split,
        mask_cache=args.mask_cache,
        num_frames=args.num_frames,
        chains=chains,
        all_types=all_types,
    )


def _load_questions(args: DataArguments, split: str, chains: ChainFile | None) -> list[AVSample]:
    if chains is not None:
        raise ValueError(f"the rows of questions hold their reasoning: drop `chains` ({chains.path})")
    return load_questions(args.data_root, split, fps=args.fps, num_frames=args.num_frames)


def _load_question_table(args: DataArguments, split: str, chains: ChainFile | None) -> list[AVSample]:
    return load_question_table(args.benchmark, args.data_root, split, chains=chains)


def _load_hf_dataset(args: DataArguments, split: str, chains: ChainFile | None) -> list[AVSample]:
    if args.media_cache is None:
        raise ValueError("hf_dataset keeps its media inside tables: set `media_cache` to a folder to unpack them into")
    if chains is not None:
        raise ValueError(f"the rows of hf_dataset hold their chains of thought: drop `chains` ({chains.path})")
    return load_hf_dataset(args.data_root, split, media_cache=args.media_cache)


def _load_clips(args: DataArguments, split: str, chains: ChainFile | None) -> list[AVSample]:
    load = functools.partial(load_table, media_cache=args.media_cache) if is_table(args.data_root) else load_clips
    return load(
        args.data_root,
        split,
        fps=args.fps,
        num_frames=args.num_frames,
        columns=args.columns,
        mask_cache=args.mask_cache,
        frame_cache=args.frame_cache,
        chains=chains,
    )


LOADERS: dict[str, Callable[[DataArguments, str, ChainFile | None], list[AVSample]]] = {
    "ref_avs": lambda args, split, chains: load_ref_avs(
        args.data_root, split, fps=args.fps, num_frames=args.num_frames, chains=chains
    ),
    "avsbench_s4": lambda args, split, chains: load_avsbench_s4(args.data_root, split, chains=chains),
    "avsbench_ms3": lambda args, split, chains: load_avsbench_ms3(args.data_root, split, chains=chains),
    "avsbench_avss": lambda args, split, chains: load_avsbench_avss(args.data_root, split, chains=chains),
    "omni_avs": _load_omni_avs,
    "omni_avs_all": functools.partial(_load_omni_avs, all_types=True),
    "hf_dataset": _load_hf_dataset,
    "questions": _load_questions,
    "clips": _load_clips,
    **dict.fromkeys(QUESTION_TABLES, _load_question_table),
}


def list_test_splits(args: DataArguments) -> list[str]:
    """List the splits that are scored by default: all whose name begins with "test".

    Raises:
        DatasetError: if there are none.
    """
    if args.benchmark == "clips":
        return _test_splits(set(list_splits("clips", args.data_root, args.columns)), args.data_root)
    if args.benchmark in QUESTION_TABLES:
        return _test_splits(set(list_splits(args.benchmark, args.data_root)), args.data_root)
    # The other benchmarks have one; if a data set has other splits, its loader's error names them.
    return find_test_splits(args.data_root) if args.benchmark == "ref_avs" else ["test"]


def _test_splits(splits: set[str], root: str) -> list[str]:
    found = sorted(split for split in splits if split.startswith("test"))
    if not found:
        raise DatasetError(
            f"{root} has no split that begins with test: name one or more of {sorted(splits)} by `split`"
        )
    return found


def find_train_categories(args: DataArguments) -> set[str]:
    """Find the categories of the training split, which distinguish new from seen ones; no media are read.

    The set is empty if the benchmark has no unseen split, or no training split beside it.
    """
    if args.benchmark not in CATEGORY_READERS and args.benchmark != "clips":
        return set()
    try:
        if args.benchmark == "clips":
            read = read_table_categories if is_table(args.data_root) else read_clip_categories
            return read(args.data_root, args.train_split, args.columns) - {NULL_CATEGORY}
        return CATEGORY_READERS[args.benchmark](args.data_root, args.train_split) - {NULL_CATEGORY}
    except DatasetError as error:
        logger.info("new and seen categories are not told apart: %s", error)
        return set()


CATEGORY_READERS: dict[str, Callable[[str, str], set[str]]] = {
    "ref_avs": ref_avs.read_categories,
    "hf_dataset": hf_dataset.read_categories,
}


def load_training_splits(args: DataArguments) -> tuple[list[AVSample], list[AVSample]]:
    """Load the samples to train on, and those to evaluate on during training; none if the arguments name no split.

    Of several data sets the rows follow one another, and each knows its set's name.

    Raises:
        ValueError: if `load_split` or `draw_over_clips` refuses the arguments, or `check_truth` or `check_same_media` a
            row.
    """
    sets = data_sets(args)
    main_set(sets)  # refuses tasks that do not go together
    train_samples, eval_samples = [], []
    for each in sets:
        to_train, to_evaluate = _training_splits_of(each.args)
        train_samples += [dataclasses.replace(sample, dataset=each.name) for sample in to_train]
        eval_samples += [dataclasses.replace(sample, dataset=each.name) for sample in to_evaluate]
    check_same_media(eval_samples)  # a batch may hold rows of two sets; those to train on are mixed by kind
    return train_samples, eval_samples


def _training_splits_of(args: DataArguments) -> tuple[list[AVSample], list[AVSample]]:
    """Load the samples of one data set, as `load_training_splits` does."""
    train_samples = in_curriculum(args, load_split(args, args.train_split))
    eval_samples = load_split(args, args.eval_split) if args.eval_split else []
    # The best checkpoint is chosen on these samples.
    eval_samples = draw_over_clips(eval_samples, args.max_eval_samples, seed=args.eval_samples_seed)
    check_truth(load_task(args.task), [*train_samples, *eval_samples])
    check_same_media(train_samples)
    return train_samples, eval_samples


def in_curriculum(args: DataArguments, samples: list[AVSample]) -> list[AVSample]:
    """Return the rows that the pass rates leave, in the order of the curriculum; all of them without pass rates.

    Raises:
        ValueError: if there is a curriculum without pass rates, or as `by_pass_rates` does.
    """
    if args.pass_rates is None:
        if args.curriculum is not None:
            raise ValueError(
                f"curriculum {args.curriculum!r} needs `pass_rates`: count them by data_prep/pass_rates.py"
            )
        return samples
    kept = by_pass_rates(
        samples,
        read_pass_rates(args.pass_rates),
        order=args.curriculum,
        bands=args.curriculum_bands,
        above=args.pass_rate_above,
        below=args.pass_rate_below,
        seed=args.curriculum_seed,
    )
    logger.info("%d of %d rows are left by their pass rates", len(kept), len(samples))
    return kept


def check_order_is_kept(args: DataArguments, *, is_shuffled: bool) -> None:
    """Check that a run which shuffles its rows is not given a curriculum.

    Raises:
        ValueError: if the order would be lost.
    """
    for each in data_sets(args):
        if is_shuffled and each.args.curriculum is not None:
            raise ValueError(
                f"curriculum {each.args.curriculum!r} orders the rows, and this run shuffles them: train by GRPO with "
                "`shuffle_dataset: false`, or leave `curriculum` out"
            )


def check_truth(task: Task, samples: Iterable[AVSample]) -> None:
    """Check that each row has the truth that the task is trained on: masks for one with a head, words for others.

    Raises:
        DatasetError: naming the first row without masks.
        ValueError: naming the first row without the words.
    """
    for sample in samples:
        task.check_truth(sample)
        if task.head is not None and not sample.has_gt_masks:
            raise DatasetError(
                f"{_place(sample)} has no masks, but the task {task.name!r} is trained on them: add its masks, drop "
                "the row or all such rows by `skip_unlabelled: true`, or choose a task that is answered in words"
            )


def check_scorable(args: DataArguments, samples: Iterable[AVSample]) -> None:
    """Check that rows have the words, and own clips the masks, that are scored; other benchmarks' masks as far as any.

    Raises:
        DatasetError: naming the first row without masks.
        ValueError: naming the first row without the words.
    """
    task = load_task(args.task)
    scores_masks = args.benchmark == "clips" and task.head is not None
    for sample in samples:
        task.check_truth(sample)
        if scores_masks and not sample.has_gt_masks:
            raise DatasetError(
                f"{_place(sample)} has no masks to score against: add them, leave such rows out by `skip_unlabelled: "
                "true`, or predict their masks by `aurora-rl segment`"
            )


def check_same_media(samples: Sequence[AVSample]) -> None:
    """Check that either all rows have frames or none has: a batch holds one kind, on all processes at once.

    Raises:
        DatasetError: naming the first row of the other kind.
    """
    other = next((sample for sample in samples if bool(sample.num_frames) != bool(samples[0].num_frames)), None)
    if other is not None:
        has = "frames" if other.num_frames else "no frames"
        raise DatasetError(
            f"{_place(other)} has {has}, unlike the rows before it: train on rows with frames and on rows of sound "
            "alone as two data sets, which one run may mix by `data`"
        )


def _place(sample: AVSample) -> str:
    return f"clip {sample.uid!r} (row {sample.row}{', ' * bool(sample.origin)}{sample.origin})"
