"""recipes/grpo.py whose server is killed: `deadly_server_grpo.py <process group of the server> <recipe's options>`.

It dies in the third update of weights, of which the others know nothing. Each process then asks the dead server for
completions once more, which shows that none was left behind in a collective, and says both errors.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl import TrlParser

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, RewardArguments
from aurora_rl.rollout.base import Turn
from aurora_rl.rollout.client import AuroraVLLMClient, VLLMServerError
from aurora_rl.scripts import grpo
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig


def kill_in_update(number: int, server: int) -> None:
    """Kill the server when ten tensors of an update have been sent."""
    update, updates = AuroraVLLMClient.update_named_params, itertools.count(1)

    def deadly(tensors: Iterator[Any]) -> Iterator[Any]:
        for index, tensor in enumerate(tensors):
            if index == 10:
                os.killpg(server, signal.SIGKILL)
            yield tensor

    def update_named_params(self: AuroraVLLMClient, metadata: list, tensors: Iterator[Any]) -> None:
        update(self, metadata, deadly(tensors) if next(updates) == number else tensors)

    AuroraVLLMClient.update_named_params = update_named_params


class ServerIsDead(AuroraGRPOTrainer):
    """Leaves its log, which a run that fails does not write, and what every process says."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        except VLLMServerError as error:
            self._say("update", error)
            if self.accelerator.is_main_process:
                Path(self.args.output_dir, "log.json").write_text(json.dumps(self.state.log_history))
        try:
            self._sample()
        except VLLMServerError as error:
            self._say("completions", error)
            raise

    def _sample(self) -> None:
        if self.accelerator.is_main_process:
            self._vllm.engine.vllm_client.backoff_s = 0.1
        self._vllm._synced_step = self.state.global_step  # as if the update had gone well
        rows = self._batch.rows
        turn = Turn(self.num_generations, step=self.state.global_step)
        self._vllm.generate([row.prompt.prompt_ids for row in rows], rows, turn)

    def _say(self, what: str, error: VLLMServerError) -> None:
        name = f"{what}_{self.accelerator.process_index}"
        Path(self.args.output_dir, name).write_text(str(error))


if __name__ == "__main__":
    kill_in_update(3, int(sys.argv[1]))
    grpo.AuroraGRPOTrainer = ServerIsDead
    parser = TrlParser((ModelArguments, DataArguments, RewardArguments, AuroraGRPOConfig))
    grpo.main(*parser.parse_args_and_config(sys.argv[2:]))
