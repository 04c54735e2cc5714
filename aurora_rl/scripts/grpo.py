"""Stage 3: GRPO with mask rewards.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py --config recipes/synthetic/grpo.yaml
"""

from torch.distributed.elastic.multiprocessing.errors import record

from aurora_rl.assembly.arguments import DataArguments, DryRunArguments, ModelArguments, RewardArguments
from aurora_rl.assembly.benchmarks import check_order_is_kept, load_training_splits
from aurora_rl.assembly.data_sets import data_sets, main_set, mixed_sets, reward_sets
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model, peft_config
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.data.dataset import to_dataset
from aurora_rl.footprint import check_footprint
from aurora_rl.logs import log_launch, setup_logging
from aurora_rl.report.run_samples import add_samples
from aurora_rl.rewards import load_reward_func
from aurora_rl.rollout.environments import load_environment
from aurora_rl.tasks.base import load_task
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.resumable import alone_in_output


@record  # the launcher ends with the error of the process that failed first
def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    reward_args: RewardArguments,
    training_args: AuroraGRPOConfig,
) -> None:
    setup_logging(is_main_process=training_args.process_index == 0)
    with alone_in_output(training_args):
        train(model_args, data_args, reward_args, training_args)


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    reward_args: RewardArguments,
    training_args: AuroraGRPOConfig,
) -> None:
    """Assemble the trainer, train, and save the model."""
    reward_funcs = [load_reward_func(spec) for spec in reward_args.reward_funcs]  # before any model is loaded
    if training_args.environment_factory is not None:
        load_environment(training_args.environment_factory)
    sets = data_sets(data_args)
    rewards_of_sets = reward_sets(sets, reward_args.reward_funcs)
    check_order_is_kept(data_args, is_shuffled=training_args.shuffle_dataset)
    train_samples, eval_samples = load_training_splits(data_args)
    usual = main_set(sets).args
    check_footprint(model_args, usual, training_args, [*train_samples, *eval_samples])
    loaded = assemble_model(model_args, head=load_task(usual.task).head)
    encode = assemble_encoder(data_args, loaded, [*train_samples, *eval_samples], device=training_args.device)
    trainer = AuroraGRPOTrainer(
        model=loaded.model,
        reward_funcs=reward_funcs,
        args=training_args,
        encode=encode,
        reward_sets=rewards_of_sets,
        sets=mixed_sets(sets, train_samples),
        train_dataset=to_dataset(train_samples, encode.text_prompt),
        eval_dataset=to_dataset(eval_samples, encode.text_prompt) if eval_samples else None,
        processing_class=loaded.processor,
        peft_config=peft_config(model_args, loaded),
    )
    add_samples(trainer, encode, eval_samples)
    log_launch(trainer.accelerator)
    trainer.run_to_its_end()
    trainer.accelerator.end_training()  # a process group that is still there at exit may abort a run that went well


def run() -> None:
    """Read the command line and run the script."""
    kinds = (ModelArguments, DataArguments, RewardArguments, AuroraGRPOConfig, DryRunArguments)
    *arguments, dry = RecipeParser(kinds, description=__doc__).parse_args_and_config()
    if dry.dry_run:
        from aurora_rl.scripts.dry_run import try_grpo  # here, because a run does not need it

        try_grpo(*arguments)
    else:
        main(*arguments)
