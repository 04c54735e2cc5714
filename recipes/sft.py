"""Stage 1: supervised fine-tuning on gold chains of thought.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py --config recipes/synthetic/sft.yaml
"""

from collections.abc import Callable

from trl import TrlParser

from aurora_rl.assemble import assemble_encoder, assemble_model, load_training_splits, peft_config, resume_point
from aurora_rl.config import DataArguments, ModelArguments
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.footprint import check_footprint
from aurora_rl.logs import log_launch, setup_logging
from aurora_rl.models.batch import SFTCollator
from aurora_rl.prompts import answer_for
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig


def gold_chain(sample: AVSample) -> str:
    """The completion that a sample is trained to give."""
    if sample.chain is None:
        raise ValueError(f"sample {sample.key} has no chain of thought: name a file that holds it with `chains`")
    return sample.chain


def answer_only(sample: AVSample) -> str:
    """The completion where a benchmark has no chains of thought: its answer alone."""
    return answer_for(sample.category)


def completion_for(data_args: DataArguments) -> Callable[[AVSample], str]:
    """Which of the two a run trains on."""
    # Nobody publishes chains for AVSBench and OmniAVS; of Ref-AVSBench, forgetting them is a mistake.
    has_no_chains = data_args.chains is None and data_args.benchmark != "ref_avs"
    return answer_only if has_no_chains else gold_chain


def main(model_args: ModelArguments, data_args: DataArguments, training_args: AuroraSFTConfig) -> None:
    setup_logging(is_main_process=training_args.process_index == 0)
    log_launch(training_args)
    train_samples, eval_samples = load_training_splits(data_args)
    check_footprint(model_args, data_args, training_args, [*train_samples, *eval_samples])
    loaded = assemble_model(model_args)
    encode = assemble_encoder(data_args, loaded, [*train_samples, *eval_samples], device=training_args.device)
    trainer = AuroraSFTTrainer(
        model=loaded.model,
        args=training_args,
        data_collator=SFTCollator(encode, loaded.seg_token_id, completion_for(data_args)),
        train_dataset=to_dataset(train_samples, instruction=data_args.instruction),
        eval_dataset=to_dataset(eval_samples, instruction=data_args.instruction) if eval_samples else None,
        processing_class=loaded.processor,
        peft_config=peft_config(model_args, loaded),
    )
    trainer.train(resume_from_checkpoint=resume_point(training_args.resume_from_checkpoint))
    trainer.save_model(training_args.output_dir)
    trainer.save_state()


if __name__ == "__main__":
    main(*TrlParser((ModelArguments, DataArguments, AuroraSFTConfig)).parse_args_and_config())
