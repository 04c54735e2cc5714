"""Greedy decoding by transformers and by vLLM: where tokens differ and by which margin, and the time of a sync.

    python benchmarks/vllm_parity.py --config recipes/synthetic/evaluate.yaml --clips 64
    python benchmarks/vllm_parity.py --family qwen3_vl

The YAML file is one of `recipes/evaluate.py`, with the model and the data. `--output out.json` writes every clip.
A family is measured with a tiny model of random weights, before and after LoRA is merged and sent; `--json` prints
what a row of docs/models.md takes of it as the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig, PreTrainedModel

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.options import OptionParser
from aurora_rl.data.sample import AVSample
from aurora_rl.files.plain import read_text_file
from aurora_rl.logs import setup_logging
from aurora_rl.models.end_of_turn import end_token_ids
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import EncodedPrompt, MLLMFamily, load_family
from aurora_rl.models.mllm.contract import SECOND, Subject
from aurora_rl.models.mllm.interleaving import InterleavingMixin
from aurora_rl.models.mllm.tool_calls import ToolTurns
from aurora_rl.rollout.engine import AuroraVLLMGeneration
from aurora_rl.rollout.plugin import register_with

SYNCS = 5
#: What a process has of vLLM and torch.distributed in its environment.
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VLLM_CPU_OMP_THREADS_BIND")
#: Tokens that a tiny model says.
NUM_TOKENS = 24
#: Sizes of a tiny model, whose heads are then of a size that vLLM's CPU kernels have.
SIZES = {"hidden_size": 128}
#: Families whose linear attention vLLM's CPU kernels compute in bfloat16 alone.
ROUNDED = ("qwen3_5", "qwen3_5_moe")
#: Columns of docs/models.md.
BEFORE, AFTER = "vLLM before a sync", "vLLM after a sync"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Comparison of one clip's two completions.

    Attributes:
        num_tokens: number of tokens of the completion by transformers, end of turn included.
        num_same: number of tokens before the first difference; `num_tokens` if there is none.
        margin: log-probability that transformers gives to its own token minus that of vLLM's token, at the first
            difference; None if there is none.
        max_difference: largest difference of log-probabilities on vLLM's tokens, up to the first different token.
    """

    num_tokens: int
    num_same: int
    margin: float | None
    max_difference: float

    @property
    def is_same(self) -> bool:
        """True if all tokens are equal."""
        return self.margin is None


@torch.no_grad()
def greedy(loaded: LoadedModel, row: EncodedPrompt, max_tokens: int) -> list[int]:
    """Decode one prompt by transformers, end of turn included."""
    tokenizer = loaded.processor.tokenizer
    input_ids = torch.tensor([row.prompt_ids], device=loaded.model.device)
    config = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=end_token_ids(tokenizer, loaded.model.generation_config),
        pad_token_id=tokenizer.pad_token_id,
    )
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **_media(loaded, row)}
    return loaded.model.generate(**inputs, generation_config=config)[0, input_ids.size(1) :].tolist()


def compare(
    model: PreTrainedModel, loaded: LoadedModel, row: EncodedPrompt, ours: Sequence[int], vllms: Sequence[int],
    logprobs: Sequence[float],
) -> Agreement:  # fmt: skip
    """Compare two completions of one prompt.

    Args:
        model: policy that both have decoded with.
        loaded: policy with its processor and family.
        row: the prompt.
        ours: token ids by transformers.
        vllms: token ids by vLLM.
        logprobs: vLLM's log-probabilities of its tokens.
    """
    num_same = next(
        (i for i, (a, b) in enumerate(zip(ours, vllms, strict=False)) if a != b), min(len(ours), len(vllms))
    )
    expected = _logprobs(model, loaded, row, list(vllms))  # (L, V)
    own = expected.gather(1, torch.tensor([list(vllms)]).T.to(expected.device))[:, 0].cpu()
    upto = min(num_same + 1, len(vllms))
    difference = (own[:upto] - torch.tensor(list(logprobs)[:upto])).abs().max().item()
    if list(ours) == list(vllms):
        return Agreement(len(ours), len(ours), None, difference)
    at = min(num_same, len(ours) - 1, len(vllms) - 1)
    margin = (expected[at, ours[at]] - expected[at, vllms[at]]).item()
    return Agreement(len(ours), num_same, margin, difference)


@torch.no_grad()
def _logprobs(model: PreTrainedModel, loaded: LoadedModel, row: EncodedPrompt, ids: list[int]) -> torch.Tensor:
    input_ids = torch.tensor([row.prompt_ids + ids], device=model.device)
    logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **_media(loaded, row)).logits
    return logits[0, len(row.prompt_ids) - 1 : -1].float().log_softmax(-1)


def _media(loaded: LoadedModel, row: EncodedPrompt) -> dict[str, torch.Tensor]:
    media = loaded.family.collate_features([row.features], [0]) if row.features else {}
    return {name: tensor.to(loaded.model.device) for name, tensor in media.items()}


def measure(
    loaded: LoadedModel, rows: Sequence[EncodedPrompt], generation: AuroraVLLMGeneration, *, max_tokens: int
) -> list[Agreement]:
    """Decode every prompt twice; the engine must be greedy and hold the policy's weights."""
    rollouts = generation.generate_rows(rows, seeds=list(range(len(rows))), num_generations=1, profiler=nullcontext())
    assert rollouts.logprobs is not None
    return [
        compare(loaded.model, loaded, row, greedy(loaded, row, max_tokens), ids, logprobs)
        for row, ids, logprobs in zip(rows, rollouts.completion_ids, rollouts.logprobs, strict=True)
    ]


def report(agreements: Sequence[Agreement]) -> str:
    """Return a summary, and a line for each clip whose tokens differ."""
    same = sum(agreement.is_same for agreement in agreements)
    tokens = sum(agreement.num_tokens for agreement in agreements)
    lines = [
        f"{same} of {len(agreements)} clips decode to the same tokens ({tokens} tokens); largest difference of "
        f"log-probabilities {max(agreement.max_difference for agreement in agreements):.2g}"
    ]
    lines += [
        f"  clip {index} differs from token {a.num_same} of {a.num_tokens} on, by a margin of {a.margin:.2g}"
        for index, a in enumerate(agreements)
        if not a.is_same
    ]
    return "\n".join(lines)


def time_of_sync(generation: AuroraVLLMGeneration) -> float:
    """Return the median seconds of sending a step's weights to the engine, which has those of the towers already."""
    seconds = []
    for _ in range(SYNCS):
        start = time.perf_counter()
        generation.sync_weights()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@dataclasses.dataclass(frozen=True)
class FamilyAgreement:
    """Largest difference of a family's log-probabilities between vLLM and transformers, over prompts of all kinds.

    Attributes:
        before: difference with the weights that vLLM was started with.
        stale: difference from a policy that LoRA has changed, before its weights are sent; a control.
        after: difference when LoRA is merged and sent.
        dtype: precision of both.
    """

    before: float
    stale: float
    after: float
    dtype: torch.dtype

    @property
    def cells(self) -> dict[str, str]:
        """What docs/models.md says of it, by column."""
        rounded = "" if self.dtype == torch.float32 else f" in {str(self.dtype).removeprefix('torch.')}"
        return {BEFORE: f"{self.before:.0e}{rounded}", AFTER: f"{self.after:.0e}{rounded}"}


@contextlib.contextmanager
def started(
    loaded: LoadedModel, *, engine_kwargs: dict[str, Any] | None = None, **options: Any
) -> Iterator[AuroraVLLMGeneration]:
    """Run vLLM in this process, greedy and with room for a tiny model's prompts, and leave no trace of it.

    Args:
        loaded: the policy.
        engine_kwargs: arguments of `vllm.LLM` that differ.
        **options: arguments of `AuroraVLLMGeneration` that differ.
    """
    environment = {name: os.environ.get(name) for name in DISTRIBUTED}
    _load_class(loaded.family)
    tiny = {"max_model_length": 1024, "max_num_seqs": 64, "temperature": 0.0, "max_completion_length": NUM_TOKENS}
    generation = AuroraVLLMGeneration(
        loaded,
        engine_kwargs={"kv_cache_memory_bytes": 64_000_000, **(engine_kwargs or {})},
        accelerator=Accelerator(cpu=True),
        processing_class=loaded.processor,
        mode="colocate",
        **{**tiny, **options},
    )
    try:
        yield generation
    finally:
        from vllm.distributed import cleanup_dist_env_and_memory

        del generation.llm
        cleanup_dist_env_and_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _load_class(family: MLLMFamily) -> None:
    """Register the class of a family's model instead of its name, which vLLM would load in a process of its own."""
    from vllm import ModelRegistry

    register_with(family)
    architecture = family.engine_architecture
    ModelRegistry.register_model(architecture, ModelRegistry.models[architecture].load_model_cls())


def prompts_of_all_kinds(subject: Subject) -> list[EncodedPrompt]:
    """Encode text alone, short and long; frames of several sizes, numbers and rates; sound after and between them.

    Where the family calls tools, the last one goes on with a turn of the policy and a tool's answer.
    """
    family = subject.family
    prompts = [
        subject.encode(frames=0),
        subject.encode("the drum is loud, the bell is near " * 8, frames=0),
        subject.encode(sound=0),
        subject.encode("the bell is near", frames=6, size=(48, 96), sound=0, seed=1, fps=1.0),
        subject.encode(frames=24, size=(32, 32), sound=0, seed=2),  # longer in time than in space
    ]
    if family.hears:
        prompts += [subject.encode(), subject.encode(frames=2, sound=2 * SECOND + 77, seed=3)]  # no whole columns
    if family.sees is None:
        prompts += [subject.encode(sound=31 * SECOND, seed=5)]  # two windows
    if issubclass(family.model_class, InterleavingMixin):
        prompts += [subject.encode(frames=6, sound=3 * SECOND, seed=4, between=True)]
    if family.tool_format is not None:
        turns = ToolTurns(family.tool_format, subject.processor.tokenizer)
        said = turns.call_ids({"name": "loudness", "arguments": {"start_s": 0}})
        prompts += [prompts[-1].extended([*said, *turns.ids(["loud"])])]
    return prompts


def tiny_subject(family: MLLMFamily) -> Subject:
    """Build a family's tiny model, in a precision that vLLM's CPU kernels compute in."""
    subject = Subject.of(family, SIZES)
    subject.model.to(torch.bfloat16 if family.model_types[0] in ROUNDED else torch.float32)
    return subject


def measure_family(family: MLLMFamily) -> FamilyAgreement:
    """Measure a family's tiny model inside vLLM, before and after LoRA is merged and sent."""
    subject = tiny_subject(family)
    loaded = LoadedModel(subject.model, subject.processor, family)
    prompts = prompts_of_all_kinds(subject)
    longest = max(len(prompt.prompt_ids) for prompt in prompts)
    with started(loaded, max_model_length=longest + NUM_TOKENS) as generation:
        generation.sync_weights()
        before = _difference(loaded, subject.model, prompts, generation)
        generation.model = policy = with_random_lora(subject.model, family)
        stale = _difference(loaded, policy, prompts, generation)
        generation.sync_weights()
        return FamilyAgreement(before, stale, _difference(loaded, policy, prompts, generation), loaded.model.dtype)


def with_random_lora(model: PreTrainedModel, family: MLLMFamily) -> PeftModel:
    """Wrap a model by LoRA that changes what it says; towers are frozen."""
    torch.manual_seed(1)
    policy = get_peft_model(model, LoraConfig(r=4, target_modules=family.lora_target_modules))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return policy.eval()


def _difference(
    loaded: LoadedModel, policy: Any, prompts: Sequence[EncodedPrompt], generation: AuroraVLLMGeneration
) -> float:
    """Return the largest difference of log-probabilities on the tokens that vLLM says, all prompts in one batch."""
    seeds = list(range(len(prompts)))
    rollouts = generation.generate_rows(prompts, seeds=seeds, num_generations=1, profiler=nullcontext())
    assert rollouts.logprobs is not None
    differences = []
    for row, ids, logprobs in zip(prompts, rollouts.completion_ids, rollouts.logprobs, strict=True):
        expected = _logprobs(policy, loaded, row, ids).gather(1, torch.tensor(ids)[:, None])[:, 0]
        differences.append((expected - torch.tensor(logprobs)).abs().max().item())
    return max(differences)


def cells_of_family(name: str) -> dict[str, str]:
    """Return what docs/models.md says of a family inside vLLM, by column; of one that is refused, why."""
    family = load_family(name)
    if family.engine_refusal is not None:
        return dict.fromkeys((BEFORE, AFTER), f"refused: {family.engine_refusal}")
    return measure_family(family).cells


def _distinct_clips(samples: list[AVSample], count: int) -> list[AVSample]:
    clips = list({sample.media_id: sample for sample in samples}.values())
    if len(clips) < count:
        raise ValueError(f"{count} clips are asked for, the split has {len(clips)}")
    return clips[:count]


def main() -> None:
    """Read the arguments, measure, print."""
    parser = OptionParser(description=__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--config", type=Path, help="YAML file of recipes/evaluate.py")
    asked.add_argument("--family", help="model_type of a family, or mine.py:MyFamily, whose tiny model is measured")
    parser.add_argument("--model", help="folder or hub name of the model (default: the YAML's)")
    parser.add_argument("--data_root", help="folder that holds the benchmark (default: the YAML's)")
    parser.add_argument("--split", default="test_s", help="split whose clips are answered")
    parser.add_argument("--clips", type=int, default=64, help="number of clips that are answered")
    parser.add_argument("--output", type=Path, help="JSON file for what each clip gave")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line; with --family")
    args = parser.parse_args()
    setup_logging(is_main_process=True)
    if args.family:
        cells = cells_of_family(args.family)
        print(json.dumps(cells) if args.json else "\n".join(f"{column}: {text}" for column, text in cells.items()))
        return
    measure_checkpoint(args)


def measure_checkpoint(args: argparse.Namespace) -> None:
    """Compare the answers to some clips of a benchmark, and time the sync."""
    config = yaml.safe_load(read_text_file(args.config))
    config |= {key: getattr(args, key) for key in ("model", "data_root") if getattr(args, key)}
    names = {field.name for field in dataclasses.fields(DataArguments)}
    data_args = DataArguments(**{name: value for name, value in config.items() if name in names})
    loaded = load_model(config["model"], is_trainable=False)
    accelerator = Accelerator(cpu=config.get("use_cpu", False))
    loaded.model.to(accelerator.device).eval()
    samples = _distinct_clips(load_split(data_args, args.split), args.clips)
    encode = assemble_encoder(data_args, loaded, samples, device=accelerator.device)
    rows = [encode(sample).prompt for sample in samples]
    max_tokens = config.get("max_completion_length", 512)
    generation = AuroraVLLMGeneration(
        loaded,
        engine_kwargs={"kv_cache_memory_bytes": 256_000_000} if accelerator.device.type == "cpu" else None,
        accelerator=accelerator,
        processing_class=loaded.processor,
        mode="colocate",
        max_model_length=max(len(row.prompt_ids) for row in rows) + max_tokens,
        max_num_seqs=64,
        temperature=0.0,
        max_completion_length=max_tokens,
    )
    generation.sync_weights()
    agreements = measure(loaded, rows, generation, max_tokens=max_tokens)
    print(report(agreements))
    print(f"a sync of the language model's weights: {time_of_sync(generation):.3f} s, the median of {SYNCS}")
    if args.output:
        args.output.write_text(json.dumps([dataclasses.asdict(agreement) for agreement in agreements], indent=1))


if __name__ == "__main__":
    main()
