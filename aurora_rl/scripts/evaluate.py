"""Score a model on a benchmark's splits, and under ablations.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/evaluate.py --config recipes/synthetic/evaluate.yaml

`aurora-rl evaluate` does the same in one process; `aurora_rl/evaluation/of_model.py` describes the output.
"""

from accelerate import PartialState

from aurora_rl.assembly.arguments import DataArguments, DryRunArguments, ModelArguments
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.evaluation.of_model import EvaluationArguments, evaluate_model


def main(model_args: ModelArguments, data_args: DataArguments, args: EvaluationArguments) -> None:
    evaluate_model(model_args, data_args, args)


def run() -> None:
    """Read the command line and run the script."""
    kinds = (ModelArguments, DataArguments, EvaluationArguments, DryRunArguments)
    *arguments, dry = RecipeParser(kinds, description=__doc__).parse_args_and_config()
    if dry.dry_run:
        from aurora_rl.scripts.dry_run import try_evaluation  # here, because a run does not need it

        try_evaluation(*arguments)
    else:
        main(*arguments)
    PartialState().destroy_process_group()  # one that is left at exit may abort a run that went well
