"""Score a model on a benchmark's splits, and with modalities taken away.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/evaluate.py --config recipes/synthetic/evaluate.yaml

`aurora-rl evaluate` runs the same in one process; `aurora_rl/model_evaluation.py` says what it leaves behind.
"""

from aurora_rl.config import DataArguments, ModelArguments
from aurora_rl.model_evaluation import EvaluationArguments, evaluate_model
from aurora_rl.recipe_parser import RecipeParser


def main(model_args: ModelArguments, data_args: DataArguments, args: EvaluationArguments) -> None:
    evaluate_model(model_args, data_args, args)


if __name__ == "__main__":
    main(*RecipeParser((ModelArguments, DataArguments, EvaluationArguments)).parse_args_and_config())
