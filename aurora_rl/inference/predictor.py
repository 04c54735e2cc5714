"""From samples to completions and masks with a trained model: what evaluation and `AuroraPipeline` both call."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from trl.trainer.utils import pad

from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import collate_frames, distinct_media
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.end_of_turn import end_token_ids, until_end
from aurora_rl.models.grounding import row_mask_logits, shared_media, without_projection
from aurora_rl.models.head_tokens import find_seg
from aurora_rl.models.read_ahead import encoded_batches
from aurora_rl.tasks.prompts import FINAL_SENTENCE

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model answers to one sample.

    Attributes:
        text: the completion as generated, special tokens skipped.
        mask_probs: (F, H, W) float32 probabilities at the frames' own size; None without a `[SEG]`.
    """

    text: str
    mask_probs: torch.Tensor | None


def unfinished_batches(
    rows: Sequence[Row], batch_size: int, *, is_done: Callable[[Row], bool]
) -> Iterator[Sequence[Row]]:
    """The batches in which a row is not done yet, each whole: padding makes a row's numbers depend on its batch.

    Args:
        rows: all rows of a process, in the order of an unbroken run.
        batch_size: rows of a batch.
        is_done: whether an earlier run has finished the row.
    """
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        if not all(map(is_done, batch)):
            yield batch


class SeededSampling(LogitsProcessor):
    """Sampling by greedy decoding of noisy logits: argmax(logits / T + Gumbel noise) draws from softmax(logits / T).

    Every sequence has its own generator, so its draws depend neither on the batch nor on the number of processes.

    Args:
        draws: one name a sequence; equal names draw equal noise.
        temperature: T.
    """

    def __init__(self, draws: Sequence[str], *, temperature: float) -> None:
        seeds = [int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8], "big", signed=True) for draw in draws]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size = scores.size(-1)
        exponential = torch.stack([torch.empty(size).exponential_(generator=g) for g in self.generators])
        return scores.float() / self.temperature - exponential.log().to(scores.device)  # -log Exp(1) is Gumbel(0, 1)


class Predictor:
    """Generates completions and decodes their masks.

    Args:
        model: from `models.loading.load_model`.
        encode: turns a sample into tensors.
        seg_token_id: id of `[SEG]`.
        max_completion_length: tokens a completion may have.
        batch_size: sequences generated at once.
        append_seg: whether a completion without `[SEG]` is read as if " It is [SEG]." followed, so that it has masks
            too. Its text stays what was generated.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encode: SampleEncoder,
        seg_token_id: int,
        *,
        max_completion_length: int = 512,
        batch_size: int = 8,
        append_seg: bool = False,
    ) -> None:
        self.model = model.eval()
        self.encode = encode
        self.seg_token_id = seg_token_id
        self.max_completion_length = max_completion_length
        self.batch_size = batch_size
        self.append_seg = append_seg

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a completion."""
        return end_token_ids(self.encode.tokenizer, self.model.generation_config)

    def predict(
        self, samples: Iterable[AVSample], *, num_samples: int | None = None, temperature: float = 1.0, seed: int = 0
    ) -> Generator[tuple[EncodedSample, list[Completion]], None, None]:
        """Yield each sample, encoded, with its completions, in order; arguments as in `complete`."""
        rows = list(samples)
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        with contextlib.closing(encoded_batches(self.encode, batches)) as encoded_ahead:
            for encoded in encoded_ahead:
                completions = self.complete(encoded, num_samples=num_samples, temperature=temperature, seed=seed)
                yield from zip(encoded, completions, strict=True)

    def complete(
        self,
        encoded: Sequence[EncodedSample],
        *,
        num_samples: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Iterator[list[Completion]]:
        """Yield the completions of each encoded sample, in order.

        Args:
            encoded: what to answer.
            num_samples: completions a sample, drawn from the model's distribution; None for one, decoded greedily.
            temperature: of the sampling.
            seed: of the sampling, together with each sample's key, so that batches and processes change no draw.
        """
        copies = num_samples or 1
        per_batch = max(1, self.batch_size // copies)
        for start in range(0, len(encoded), per_batch):
            rows = [item for item in encoded[start : start + per_batch] for _ in range(copies)]
            draws = [f"{seed}/{row.sample.key}/{index % copies}" for index, row in enumerate(rows)]
            noise = None if num_samples is None else SeededSampling(draws, temperature=temperature)
            completions = self._answer(rows, noise)
            for first in range(0, len(rows), copies):
                yield completions[first : first + copies]

    def _answer(self, rows: Sequence[EncodedSample], noise: SeededSampling | None) -> list[Completion]:
        said = self.generate(rows, noise)
        texts = self.encode.tokenizer.batch_decode(said, skip_special_tokens=True)
        masks = self.decode_masks(rows, said)
        return [Completion(text, probs) for text, probs in zip(texts, masks, strict=True)]

    @torch.inference_mode()
    def generate(self, rows: Sequence[EncodedSample], noise: SeededSampling | None = None) -> list[torch.Tensor]:
        """The ids of each row's completion, its end of turn included, see `models.end_of_turn`.

        Args:
            rows: from `encode`; those of one clip share its media, see `collate.distinct_media`.
            noise: draws one sequence a row; None for greedy decoding.
        """
        tokenizer = self.encode.tokenizer
        config = GenerationConfig(
            max_new_tokens=self.max_completion_length,
            eos_token_id=self.end_ids,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
        )
        processors = LogitsProcessorList([] if noise is None else [noise])
        inputs, media_index = self._inputs(rows)
        with shared_media(self.model, media_index):
            sequences = self.model.generate(**inputs, generation_config=config, logits_processor=processors)
        return until_end(sequences[:, inputs["input_ids"].size(1) :], self.end_ids)

    @torch.inference_mode()
    def decode_masks(
        self, rows: Sequence[EncodedSample], completion_ids: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """Masks of finished completions, in a pass of their own: `generate` never yields the last token's state.

        Args:
            rows: as given to `generate`.
            completion_ids: as it returned them.

        Returns:
            (F, H, W) float32 probabilities at the frames' own size for each row, None without a `[SEG]`.
        """
        completion_ids = self._with_seg(completion_ids)
        inputs, media_index = self._inputs(rows)
        prompt_ids, prompt_mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        ids = pad(completion_ids, padding_value=self.encode.tokenizer.pad_token_id, padding_side="right")
        said = pad([torch.ones_like(x) for x in completion_ids], padding_value=0, padding_side="right")
        input_ids, attention_mask = torch.cat([prompt_ids, ids], dim=1), torch.cat([prompt_mask, said], dim=1)
        seg_index, has_seg = find_seg(input_ids, attention_mask, self.seg_token_id, num_completion_tokens=ids.size(1))
        frames = {name: tensor.to(input_ids.device) for name, tensor in collate_frames(rows).items()}
        with shared_media(self.model, media_index), without_projection(self.model.get_output_embeddings()):
            outputs = self.model(
                input_ids=input_ids, attention_mask=attention_mask, **inputs, seg_index=seg_index, **frames
            )
        counts = frames["seg_frame_counts"][frames["seg_clip_index"]]
        logits = row_mask_logits(self.model, outputs.mask_logits, counts, [row.gt_masks for row in rows])
        return [row.sigmoid().cpu() if seg else None for row, seg in zip(logits, has_seg.tolist(), strict=True)]

    def _with_seg(self, completion_ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The completions, those without `[SEG]` closed by the answer's last sentence if `append_seg` asks for it."""
        if not self.append_seg:
            return list(completion_ids)
        tokenizer = self.encode.tokenizer
        closing = torch.tensor(
            tokenizer(f" {FINAL_SENTENCE}", add_special_tokens=False).input_ids, device=self.model.device
        )
        ends = torch.tensor(self.end_ids, device=self.model.device)
        return [
            ids if (ids == self.seg_token_id).any() else torch.cat([ids[~torch.isin(ids, ends)], closing])
            for ids in completion_ids
        ]

    def _inputs(self, rows: Sequence[EncodedSample]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """What the model reads of the prompts, and which distinct clip each row has."""
        features, media_index = distinct_media(rows)
        ids = [torch.tensor(row.prompt.prompt_ids) for row in rows]
        batch = {
            "input_ids": pad(ids, padding_value=self.encode.tokenizer.pad_token_id, padding_side="left"),
            "attention_mask": pad([torch.ones_like(x) for x in ids], padding_value=0, padding_side="left"),
            **self.encode.family.collate_features(features, media_index),
        }
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}, media_index
