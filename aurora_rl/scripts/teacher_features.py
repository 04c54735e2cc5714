"""Compute the distillation's teacher features before training, so that several runs can share them.

accelerate launch --config_file accelerate_configs/cpu.yaml data_prep/teacher_features.py \
    --config recipes/synthetic/sft.yaml --teacher outputs/demo/teacher \
    --teacher_features outputs/demo/features.safetensors

The config is that of the runs that will read the file. The file is bound to the teacher's weights and to the options of
clips. `recipes/sft.py` does the same if rows are missing from its `teacher_features`.
"""

import logging

from accelerate import PartialState

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_training_splits
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.assembly.teacher import stored_features
from aurora_rl.files.output_lock import OutputInUseError, hold_output
from aurora_rl.logs import setup_logging
from aurora_rl.trainers.sft_config import AuroraSFTConfig

logger = logging.getLogger(__name__)


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    target_args: TargetArguments,
    training_args: AuroraSFTConfig,
) -> None:
    """Add missing rows to the file; the launched processes share them.

    Raises:
        ValueError: if the arguments name no teacher or no file, or the file belongs to another teacher.
    """
    setup_logging(is_main_process=PartialState().is_main_process)
    if target_args.teacher_features is None:
        raise ValueError("name the file for the features by `teacher_features`, and the teacher by `teacher`")
    train_samples, eval_samples = load_training_splits(data_args)
    samples = [*train_samples, *eval_samples]
    try:
        with hold_output(target_args.teacher_features, is_folder=False, is_main_process=PartialState().is_main_process):
            stored_features(target_args, model_args, data_args, samples, device=training_args.device)
    except OutputInUseError as error:
        raise SystemExit(f"teacher_features: {error}") from None
    logger.info("%s holds the features of %d rows", target_args.teacher_features, len(samples))


def run() -> None:
    """Read the command line and run the script."""
    main(
        *RecipeParser(
            (ModelArguments, DataArguments, TargetArguments, AuroraSFTConfig), description=__doc__
        ).parse_args_and_config()
    )
    PartialState().destroy_process_group()  # one that is left at exit may abort a run that went well
