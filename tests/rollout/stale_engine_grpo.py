"""recipes/grpo.py whose engines get no weights after some syncs: `stale_engine_grpo.py <syncs> <recipe's options>`."""

import itertools
import sys

from trl import TrlParser

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, RewardArguments
from aurora_rl.rollout.engine import AuroraVLLMGeneration
from aurora_rl.scripts import grpo
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig


def sync_only(num_syncs: int) -> None:
    """Make the first syncs the last ones; there is one a step."""
    sync, done = AuroraVLLMGeneration.sync_weights, itertools.count()

    def sync_weights(self: AuroraVLLMGeneration) -> None:
        if next(done) < num_syncs:
            sync(self)

    AuroraVLLMGeneration.sync_weights = sync_weights


if __name__ == "__main__":
    sync_only(int(sys.argv[1]))
    parser = TrlParser((ModelArguments, DataArguments, RewardArguments, AuroraGRPOConfig))
    grpo.main(*parser.parse_args_and_config(sys.argv[2:]))
