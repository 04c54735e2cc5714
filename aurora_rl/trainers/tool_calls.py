"""Calls of tools inside a rollout, by TRL's own loop: what it renders and hands to tools has the clips of the rows.

_generate_and_score_completions   an environment for each rollout, reset with its row and clip
  _generate                       turns of the policy; between them calls are run, whose answers train nothing
    _get_tool_suffix_ids          the answering turn, in which no text becomes a control token
  _calculate_rewards              what the calls came to, logged
                                  the completions that are printed and stored, whatever stands in their calls
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.mllm.tool_calls import ToolTurns
from aurora_rl.rollout.calls import tool_format_of
from aurora_rl.rollout.environments import (
    ToolsError,
    answers_of,
    as_logged,
    load_environment,
    tool_metrics,
    tool_schemas,
    with_clips,
)
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig


class ToolsTrainer(GRPOTrainer):
    """A GRPO trainer whose policy may call the tools of an environment, see `rollout.environments`.

    Args:
        encode: encoder of the rows, whose prompts show the tools from now on.
        environment_factory: what makes an environment, or its name; None for that of the configuration, if it has one.
        tools: refused, since a tool without an environment knows no clip.
        *args: arguments of TRL's trainer.
        **kwargs: named arguments of TRL's trainer.

    Raises:
        ToolsError: if the environment cannot be used.
        ValueError: if tools are given, or calls do not work with the family, vLLM's options or the sharding.
    """

    encode: SampleEncoder
    _batch: Any
    _tool_turns: ToolTurns | None = None

    def __init__(
        self, *args: Any, encode: SampleEncoder, environment_factory: Any = None, tools: Any = None, **kwargs: Any
    ) -> None:
        if tools:
            raise ValueError("tools are given, but such a tool knows no clip: give an environment_factory instead")
        environment_factory = environment_factory or kwargs["args"].environment_factory
        if environment_factory is not None:
            check_options(encode, environment_factory, kwargs["args"])
            environment_factory = load_environment(environment_factory)
            tool_format = tool_format_of(encode.family)
            encode.tools = tool_schemas(environment_factory)
            self._tool_turns = ToolTurns(tool_format, encode.tokenizer)
            kwargs["processing_class"] = tool_format.reading(kwargs["processing_class"])
        kwargs |= {"encode": encode, "environment_factory": environment_factory}
        super().__init__(*args, **kwargs)
        if self.environment_factories is not None:
            self._check_sharding()

    def _check_sharding(self) -> None:
        is_sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        if is_sharded and self.accelerator.num_processes > 1:
            raise ValueError(
                "environment_factory is set, but the weights are spread over the processes, which must then sample "
                "equally many turns, while one calls a tool and another does not: choose DDP or ZeRO-2"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.environment_factories is not None:
            self._asked = [row["prompt"] for row in inputs]
            inputs = with_clips(inputs, self._batch.rows, self.encode)
        output = super()._generate_and_score_completions(inputs)
        if self.environment_factories is not None:
            completions = self._logs["completion"]
            self._logs["completion"] = collections.deque(map(as_logged, completions), completions.maxlen)
        return output

    def _generate(self, prompts: list) -> tuple[Any, ...]:
        """Sample as TRL does; the prompts are encoded already, so an environment cannot add to them."""
        if self.environments and prompts != self._asked:
            raise ToolsError(
                f"{type(self.environments[0]).__name__}.reset has returned a text for the prompt, which is encoded "
                "with its clip before: return None, and let a tool tell it"
            )
        return super()._generate(prompts)

    def _get_tool_suffix_ids(self, tool_messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Write the answering turn as TRL does, but for what its text holds, which never becomes a control token."""
        assert self._tool_turns is not None
        return self._tool_turns.ids(answers_of(tool_messages))

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Any:
        if self.environment_factories is not None:
            for completion in completions:
                for name, value in tool_metrics(completion, self.max_tool_calling_iterations):
                    self._log_metric(name, value)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)


def check_options(encode: SampleEncoder, environment_factory: Any, args: AuroraGRPOConfig) -> None:
    """Refuse what calls of tools do not work with, before anything is built.

    Raises:
        ValueError: naming the option and the remedy.
    """
    if isinstance(environment_factory, Mapping):
        raise ValueError("environment_factory names several environments, but all rows share one: name that one")
    tool_format_of(encode.family)
    if args.use_vllm and args.vllm_mode == "server":
        raise ValueError(
            "environment_factory is set, but vllm_mode is 'server', which would read the tokens of the first turn "
            "anew from their text: choose vllm_mode colocate, or leave use_vllm out"
        )
    if args.use_vllm and args.vllm_tensor_parallel_size > 1:
        raise ValueError(
            f"environment_factory is set, but vllm_tensor_parallel_size is {args.vllm_tensor_parallel_size}: its "
            "processes must sample equally many turns, while one calls a tool and another does not. Set it to 1"
        )
