"""Cache the frozen image encoder's embeddings of whole splits, before a training needs them.

accelerate launch data_prep/cache_features.py --config recipes/ref_avs/sft_7b.yaml \\
    --split train val test_s test_u test_n

The launched processes share the clips; plain `python` encodes all of them. Only the recipe's keys about the model and
the data are used. The same command resumes a run that was killed.
"""

import dataclasses
import logging
from collections.abc import Sequence

from accelerate import PartialState
from torch.distributed.elastic.multiprocessing.errors import record

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.caches.embedding_shard import EmbeddingCacheError
from aurora_rl.caches.image_embeddings import CLIPS_PER_SHARD, EmbeddingCache
from aurora_rl.data.containers import MediaError
from aurora_rl.data.files import DatasetError
from aurora_rl.data.media import read_clip_frames
from aurora_rl.logs import setup_logging
from aurora_rl.models.heads import head_class
from aurora_rl.models.loading import read_head_configs
from aurora_rl.tasks.base import load_task

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class CacheArguments:
    """The splits to encode, and the checks of the cache."""

    split: list[str] | None = dataclasses.field(
        default=None, metadata={"help": "Splits to encode; by default those that the recipe trains and evaluates on."}
    )
    clips_per_shard: int = dataclasses.field(
        default=CLIPS_PER_SHARD, metadata={"help": "Number of clips in a file, which a killed process loses at most."}
    )
    verify: bool = dataclasses.field(
        default=False, metadata={"help": "Read every byte of the cache and compare hashes; encode nothing."}
    )
    drop_damaged: bool = dataclasses.field(
        default=False, metadata={"help": "Verify, delete the files that are damaged, and encode what is missing."}
    )
    ignore_free_space: bool = dataclasses.field(
        default=False, metadata={"help": "Start even if the clips take more space than the disk has free."}
    )
    use_cpu: bool = dataclasses.field(default=False, metadata={"help": "Use the CPU, even where there is a GPU."})


def cache_features(model_args: ModelArguments, data_args: DataArguments, args: CacheArguments) -> None:
    """Check the cache if the arguments say so, and fill it unless they ask only for the check."""
    state = PartialState(cpu=args.use_cpu)
    setup_logging(is_main_process=state.is_main_process)
    if data_args.embedding_cache is None:
        raise EmbeddingCacheError("there is no folder to fill: set `embedding_cache`")
    head = load_task(data_args.task).head
    if head is None:
        raise EmbeddingCacheError(f"the task {data_args.task} has no head, so it needs no embeddings: drop the cache")
    configs = read_head_configs(
        model_args.model, model_args.segmenter, model_args.heads, family=model_args.family, needs=head
    )
    encoder = head_class(head).frame_encoder(configs[head]).to(state.device)
    cache = EmbeddingCache(data_args.embedding_cache, encoder)
    if args.verify or args.drop_damaged:
        check(cache, state, drop_damaged=args.drop_damaged)
    if args.verify and not args.drop_damaged:
        return
    cache.ensure(
        [sample for split in splits_of(data_args, args) for sample in load_split(data_args, split)],
        read_clip_frames,
        process_index=state.process_index,
        num_processes=state.num_processes,
        clips_per_shard=args.clips_per_shard,
        ignore_free_space=args.ignore_free_space,
    )


def check(cache: EmbeddingCache, state: PartialState, *, drop_damaged: bool) -> None:
    """Check this process's share of the files; delete damaged ones, or raise an error that names them."""
    damaged = cache.find_damaged(process_index=state.process_index, num_processes=state.num_processes)
    if damaged and not drop_damaged:
        names = "\n  ".join(str(path) for path in damaged)
        raise EmbeddingCacheError(
            f"{len(damaged)} file(s) are not what was written; run again with --drop_damaged to encode their clips "
            f"again:\n  {names}"
        )
    state.wait_for_everyone()  # the shares depend on the folder's list, which must not change before
    for path in damaged:
        logger.warning("deleted the damaged %s", path)
        path.unlink()
    state.wait_for_everyone()  # no process may use a file that another one deletes
    logger.info("checked %s: %d damaged file(s) in this process's share", cache.folder, len(damaged))


def splits_of(data_args: DataArguments, args: CacheArguments) -> list[str]:
    """Return the splits of the command line, or those of the recipe."""
    return args.split or [split for split in (data_args.train_split, data_args.eval_split) if split]


@record  # the launcher ends with the error of the process that failed first
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the recipe and the command line, and fill the cache; invalid data ends the program without a traceback."""
    parser = RecipeParser((ModelArguments, DataArguments, CacheArguments), description=__doc__)
    model_args, data_args, args, _, unknown = parser.parse_args_and_config(
        argv, return_remaining_strings=True, separate_remaining_strings=True
    )
    if unknown:  # other keys of the recipe are for training, but an option of the command line is for this program
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    try:
        cache_features(model_args, data_args, args)
    except (DatasetError, EmbeddingCacheError, MediaError) as error:
        raise SystemExit(f"cache_features: {error}") from error


def run() -> None:
    """Read the command line and run the script."""
    main()
    PartialState().destroy_process_group()  # one that is left at exit may abort a run that went well
