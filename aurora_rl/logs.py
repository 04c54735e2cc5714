"""Log lines appear always, progress bars only on a terminal."""

import logging
import sys

import datasets
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)


def setup_logging(*, is_main_process: bool = True) -> None:
    """Log to stderr, and show progress bars on a terminal only.

    Args:
        is_main_process: whether this process logs information, too; other processes log warnings and errors.
    """
    logging.basicConfig(level=logging.INFO if is_main_process else logging.WARNING, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not is_terminal():
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()


def log_launch(accelerator: Accelerator) -> None:
    """Log how the run is distributed: a `use_cpu` too many disables DeepSpeed silently.

    Args:
        accelerator: the trainer's accelerator; FSDP is not known before a trainer is made.
    """
    words = [f"distributed: {accelerator.distributed_type.value}", f"processes: {accelerator.num_processes}"]
    if zero := accelerator.state.deepspeed_plugin:
        words.append(f"ZeRO stage: {zero.zero_stage}")
        devices = {"optimiser": zero.offload_optimizer_device, "parameters": zero.offload_param_device}
        words += [f"{part} on: {device}" for part, device in devices.items() if device not in (None, "none")]
    if fsdp := getattr(accelerator.state, "fsdp_plugin", None):
        words.append(f"FSDP version: {fsdp.fsdp_version}")
    logger.info(", ".join(words))


def is_terminal() -> bool:
    """Tell whether stderr, where progress bars go, is a terminal."""
    return sys.stderr.isatty()
