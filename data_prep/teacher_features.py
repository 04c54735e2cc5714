"""Compute the distillation's teacher features of a whole split before training, so that several runs can share them.

accelerate launch --config_file accelerate_configs/cpu.yaml data_prep/teacher_features.py \
    --config recipes/synthetic/features.yaml

`recipes/sft.py` does the same by itself where rows are missing from its `teacher_features`. The model and data options
must be those of the runs that read the file: it is bound to the teacher's weights and to how a clip is put to it.
"""

import dataclasses
import logging

from accelerate import PartialState
from trl import TrlParser

from aurora_rl.assemble import load_training_splits, stored_features
from aurora_rl.config import DataArguments, ModelArguments, TargetArguments
from aurora_rl.logs import setup_logging

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class DeviceArguments:
    """Where the teacher runs."""

    use_cpu: bool = dataclasses.field(default=False, metadata={"help": "Stay on the CPU."})


def main(
    model_args: ModelArguments, data_args: DataArguments, target_args: TargetArguments, device_args: DeviceArguments
) -> None:
    """Fill the file with what is missing, the rows shared by the launched processes."""
    state = PartialState(cpu=device_args.use_cpu)
    setup_logging(is_main_process=state.is_main_process)
    if target_args.teacher_features is None:
        raise ValueError("name the file for the features by `teacher_features`, and the teacher by `teacher`")
    train_samples, eval_samples = load_training_splits(data_args)
    samples = [*train_samples, *eval_samples]
    stored_features(target_args, model_args, data_args, samples, device=state.device)
    logger.info("%s holds the features of %d rows", target_args.teacher_features, len(samples))


if __name__ == "__main__":
    main(*TrlParser((ModelArguments, DataArguments, TargetArguments, DeviceArguments)).parse_args_and_config())
