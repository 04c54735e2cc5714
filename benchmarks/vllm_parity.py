"""Greedy decoding by transformers and by vLLM: where tokens differ and by which margin, and the time of a sync.

    python benchmarks/vllm_parity.py --config recipes/synthetic/evaluate.yaml --clips 64

The YAML file is one of `recipes/evaluate.py`, with the model and the data. `--output out.json` writes every clip.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
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
from aurora_rl.models.mllm import EncodedPrompt
from aurora_rl.rollout.engine import AuroraVLLMGeneration

SYNCS = 5


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


def _distinct_clips(samples: list[AVSample], count: int) -> list[AVSample]:
    clips = list({sample.media_id: sample for sample in samples}.values())
    if len(clips) < count:
        raise ValueError(f"{count} clips are asked for, the split has {len(clips)}")
    return clips[:count]


def main() -> None:
    """Read the arguments, measure, print."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of recipes/evaluate.py")
    parser.add_argument("--model", help="folder or hub name of the model (default: the YAML's)")
    parser.add_argument("--data_root", help="folder that holds the benchmark (default: the YAML's)")
    parser.add_argument("--split", default="test_s", help="split whose clips are answered")
    parser.add_argument("--clips", type=int, default=64, help="number of clips that are answered")
    parser.add_argument("--output", type=Path, help="JSON file for what each clip gave")
    args = parser.parse_args()
    setup_logging(is_main_process=True)
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
