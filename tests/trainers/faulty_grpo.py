"""recipes/grpo.py with something going wrong; test_faults launches `faulty_grpo.py <fault> <recipe's options>`."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import TrlParser

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, RewardArguments
from aurora_rl.scripts import grpo
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from tests.trainers.conftest import ScriptedTrainer, cut, gold, mixed, no_seg
from tests.warm_interpreter import compile_nothing


def letters_reward(completions: list, **columns: Any) -> list[float]:
    """Differs between sampled completions, even of a random model."""
    return [sum(map(ord, completion[0]["content"])) % 7 / 7 for completion in completions]


def raising_reward(completions: list, *, trainer_state: Any, **columns: Any) -> list[float]:
    """Fails in the second step, on rank 1 alone."""
    if trainer_state.global_step == 1 and PartialState().process_index == 1:
        raise ConnectionError("the judge does not answer")
    return letters_reward(completions)


class OddRank(ScriptedTrainer):
    """Rank 1 gets in each step what the other has not; rank 0 has no `[SEG]` in the first."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        step, rank = self.state.global_step, self.accelerator.process_index
        null = [row for row in self.train_dataset if row["category"] == "null"]
        silent = [{**row, "audio_path": None} for row in self.train_dataset]
        kinds: dict[tuple[int, int], tuple[Callable, list]] = {
            (0, 0): (no_seg, inputs),
            (1, 1): (mixed, self._groups(null)),
            (2, 1): (mixed, self._groups([silent[0], self.train_dataset[2]])),
            (3, 1): (mixed, self._groups(silent)),
            (4, 1): (cut, inputs),
        }
        self.script, rows = kinds.get((step, rank), (mixed if rank else gold, inputs))
        return super()._generate_and_score_completions(rows)

    def _groups(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        num_prompts = self.args.per_device_train_batch_size // self.num_generations
        return [row for row in rows[:num_prompts] for _ in range(self.num_generations)]


class RankTerminated(AuroraGRPOTrainer):
    """Rank 1 gets a SIGTERM, and then another, in the second step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            self._wait_for_signal()
        return super().training_step(*args, **kwargs)

    def _wait_for_signal(self) -> None:
        while not self._termination.is_received:
            time.sleep(0.01)


class LauncherTerminated(RankTerminated):
    """The launcher gets a SIGTERM in the fifth step, and passes it on."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            if self.accelerator.process_index == 1:
                os.kill(os.getppid(), signal.SIGTERM)
            self._wait_for_signal()
        return super().training_step(*args, **kwargs)


class StuckInWriting(AuroraGRPOTrainer):
    """Rank 1 does not come to the end of checkpoint-4, and says so in a file."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.state.global_step == 4 and self.accelerator.process_index == 1:
            Path(self.args.output_dir, "is_writing").touch()
            time.sleep(600)


FAULTS = {
    "none": AuroraGRPOTrainer,
    "odd_rank": OddRank,
    "rank_terminated": RankTerminated,
    "launcher_terminated": LauncherTerminated,
    "stuck_in_writing": StuckInWriting,
}

if __name__ == "__main__":
    compile_nothing()
    grpo.AuroraGRPOTrainer = FAULTS[sys.argv[1]]
    parser = TrlParser((ModelArguments, DataArguments, RewardArguments, AuroraGRPOConfig))
    model_args, data_args, reward_args, training_args = parser.parse_args_and_config(sys.argv[2:])
    pids = Path(training_args.output_dir, "pids")
    pids.mkdir(parents=True, exist_ok=True)
    (pids / str(os.getpid())).touch()
    grpo.main(model_args, data_args, reward_args, training_args)
