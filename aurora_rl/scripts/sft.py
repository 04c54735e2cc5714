"""Supervised fine-tuning: the teacher (stage 0), chains of thought (stage 1), reflective training (stage 2).

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py --config recipes/synthetic/sft.yaml

The stages are YAML files, which differ in `target`, the text that a row is trained on, and in `teacher`.
"""

from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from aurora_rl.assembly.arguments import DataArguments, DryRunArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.benchmarks import check_order_is_kept, load_training_splits
from aurora_rl.assembly.data_sets import data_sets, main_set, mixed_sets
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model, peft_config
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.assembly.teacher import assemble_targets, assemble_teacher, choose_rows, stored_features
from aurora_rl.caches.teacher_features import FeatureCollator, LiveTeacherCollator
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.footprint import check_footprint
from aurora_rl.logs import log_launch, setup_logging
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.teacher import Teacher
from aurora_rl.report.run_samples import add_samples
from aurora_rl.rollout.calls import Caller
from aurora_rl.tasks.base import load_task
from aurora_rl.trainers.resumable import alone_in_output
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig

Collator = Callable[..., dict[str, Any]]


def with_teacher(
    collate: SFTCollator,
    samples: list[AVSample],
    model_args: ModelArguments,
    data_args: DataArguments,
    target_args: TargetArguments,
    training_args: AuroraSFTConfig,
) -> tuple[Collator, Teacher | None]:
    """Return the collator that adds the teacher's part to a batch, and the teacher if it computes in each step."""
    if target_args.teacher is None or training_args.distill_weight == 0:
        return collate, None
    if target_args.teacher_features is not None:
        features = stored_features(target_args, model_args, data_args, samples, device=training_args.device)
        return FeatureCollator(collate, features), None
    teacher = assemble_teacher(target_args, model_args, data_args)
    return LiveTeacherCollator(collate, teacher), teacher


@record  # the launcher ends with the error of the process that failed first
def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    target_args: TargetArguments,
    training_args: AuroraSFTConfig,
) -> None:
    setup_logging(is_main_process=training_args.process_index == 0)
    with alone_in_output(training_args):
        train(model_args, data_args, target_args, training_args)


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    target_args: TargetArguments,
    training_args: AuroraSFTConfig,
) -> None:
    """Assemble the trainer, train, and save the model."""
    sets = data_sets(data_args)
    target = assemble_targets(target_args, sets)
    check_order_is_kept(data_args, is_shuffled=True)
    train_samples, eval_samples = load_training_splits(data_args)
    train_samples = choose_rows(train_samples, target_args, sets, seed=training_args.seed)
    samples, usual = [*train_samples, *eval_samples], main_set(sets).args
    check_footprint(model_args, usual, training_args, samples, target_args=target_args)
    loaded = assemble_model(model_args, head=load_task(usual.task).head)
    encode = assemble_encoder(data_args, loaded, samples, device=training_args.device)
    reads_towers = model_args.tower_cache is not None
    options: dict[str, Any] = {"names_clips": reads_towers}
    if training_args.environment_factory is not None:
        caller = Caller(encode, training_args.environment_factory)
        caller.check(samples)
        options["earlier_turns"] = caller.taught_turns
    chains = SFTCollator(encode, encode.answer_token_id, target, **options)
    chains.check(samples)
    collate, teacher = with_teacher(chains, samples, model_args, data_args, target_args, training_args)
    trainer = AuroraSFTTrainer(
        model=loaded.model,
        args=training_args,
        data_collator=collate,
        train_dataset=to_dataset(train_samples, encode.text_prompt),
        eval_dataset=to_dataset(eval_samples, encode.text_prompt) if eval_samples else None,
        processing_class=loaded.processor,
        peft_config=peft_config(model_args, loaded),
        teacher=teacher,
        sets=mixed_sets(sets, train_samples),
    )
    add_samples(trainer, encode, eval_samples)
    log_launch(trainer.accelerator)
    trainer.run_to_its_end()
    trainer.accelerator.end_training()  # a process group that is still there at exit may abort a run that went well


def run() -> None:
    """Read the command line and run the script."""
    kinds = (ModelArguments, DataArguments, TargetArguments, AuroraSFTConfig, DryRunArguments)
    *arguments, dry = RecipeParser(kinds, description=__doc__).parse_args_and_config()
    if dry.dry_run:
        from aurora_rl.scripts.dry_run import try_sft  # here, because a run does not need it

        try_sft(*arguments)
    else:
        main(*arguments)
