"""How a recipe speaks: log lines always, progress bars on a terminal only."""

import logging
import sys

import datasets
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)


def setup_logging(*, is_main_process: bool = True) -> None:
    """Log to stderr, from the main process alone below warnings, and drop progress bars where nobody watches them.

    Args:
        is_main_process: whether this process may log what is not a warning.
    """
    logging.basicConfig(level=logging.INFO if is_main_process else logging.WARNING, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not is_terminal():
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()


def log_launch(args: TrainingArguments) -> None:
    """Say how the run is spread: a `use_cpu` too many switches DeepSpeed off without a word."""
    state, plugin = args.distributed_state, args.deepspeed_plugin
    stage = "" if plugin is None else f", ZeRO stage: {plugin.zero_stage}"
    logger.info("distributed: %s, processes: %d%s", state.distributed_type.value, state.num_processes, stage)


def is_terminal() -> bool:
    """Whether somebody watches stderr, where progress bars go."""
    return sys.stderr.isatty()
