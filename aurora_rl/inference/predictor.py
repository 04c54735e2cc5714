"""Inference with a trained model, from samples to completions and what the task's head predicts.

Evaluation and `AuroraPipeline` call it. For a task without a head no head runs, and completions are text alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from trl.trainer.utils import pad

from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import collate_frames, distinct_media
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.end_of_turn import end_token_ids, until_end
from aurora_rl.models.grounding import segmentation_model, shared_media, sharing_tower_outputs, without_projection
from aurora_rl.models.head_tokens import find_last_token
from aurora_rl.models.heads import MaskHead
from aurora_rl.models.prefill import prefill_once
from aurora_rl.models.read_ahead import encoded_batches
from aurora_rl.models.tower_outputs import TowerOutputs

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class Completion:
    """Completion of one sample, and what the task's head predicts from it on every frame, annotated or not.

    Attributes:
        text: the completion as generated, special tokens skipped.
        mask_probs: (F, H, W) float32 probabilities at the frames' own size; None without a `[SEG]`, and for a task
            without masks.
        prediction: the row of another head (`Head.rows`), on the model's device; None without the head's token.
        num_calls: number of calls of tools in it, whose text is no part of `text`.
    """

    text: str
    mask_probs: torch.Tensor | None = None
    prediction: Any = None
    num_calls: int = 0


def unfinished_batches(
    rows: Sequence[Row], batch_size: int, *, is_done: Callable[[Row], bool]
) -> Iterator[Sequence[Row]]:
    """Yield the complete batches that hold an unfinished row: by its padding a row's numbers depend on its batch.

    Args:
        rows: all rows of a process, in the order of an unbroken run.
        batch_size: number of rows of a batch.
        is_done: function that says whether an earlier run has finished a row.
    """
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        if not all(map(is_done, batch)):
            yield batch


def _by_media(batch: Sequence[EncodedSample]) -> list[list[int]]:
    """Return the indices of a batch's rows by the kinds of their media, since a batch of the model holds one kind."""
    groups: dict[frozenset[str], list[int]] = {}
    for index, item in enumerate(batch):
        groups.setdefault(frozenset(item.prompt.features), []).append(index)
    return list(groups.values())


class SeededSampling(LogitsProcessor):
    """Sampling by greedy decoding of noisy logits: argmax(logits / T + Gumbel noise) draws from softmax(logits / T).

    Every sequence has its own generator, so its draws depend neither on the batch nor on the number of processes.

    Args:
        draws: name of each sequence; equal names draw equal noise.
        temperature: T, the temperature.
    """

    def __init__(self, draws: Sequence[str], *, temperature: float) -> None:
        self.draws = list(draws)
        seeds = [int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8], "big", signed=True) for draw in draws]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def of_turn(self, turn: int, rows: Sequence[int]) -> SeededSampling:
        """Return the sampling of one turn of some of the sequences, counted from 0; the first turn is this one.

        A turn has draws of its own: where they went on after the last one, they would depend on how long the others of
        the batch had spoken in it.
        """
        names = [self.draws[row] for row in rows]
        return SeededSampling([f"{name}/turn {turn}" if turn else name for name in names], temperature=self.temperature)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size = scores.size(-1)
        exponential = torch.stack([torch.empty(size).exponential_(generator=g) for g in self.generators])
        return scores.float() / self.temperature - exponential.log().to(scores.device)  # -log Exp(1) is Gumbel(0, 1)


class Predictor:
    """Generates completions and decodes their masks, or whatever else the task's head predicts.

    Args:
        model: the model from `models.loading.load_model`.
        encode: encoder that turns a sample into tensors, and holds the task.
        seg_token_id: id of the head's token; None for that of the task's `answer_token`.
        max_completion_length: upper limit of a completion's tokens.
        batch_size: number of sequences generated at once.
        append_seg: whether the task's `closing`, such as "It is [SEG].", is appended to a completion without the head's
            token, so that it has a prediction too. Its text stays as generated.

    Raises:
        ValueError: if the tokenizer has no token of the task's head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encode: SampleEncoder,
        seg_token_id: int | None = None,
        *,
        max_completion_length: int = 512,
        batch_size: int = 8,
        append_seg: bool = False,
    ) -> None:
        self.model = model.eval()
        self.encode = encode
        self.seg_token_id = encode.answer_token_id if seg_token_id is None else seg_token_id
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
            encoded: encoded samples.
            num_samples: number of completions a sample, drawn from the model's distribution; None for one, decoded
                greedily.
            temperature: temperature of the sampling.
            seed: seed of the sampling. Each draw depends on it and on the sample's key, not on batches or processes.
        """
        copies = num_samples or 1
        per_batch = max(1, self.batch_size // copies)
        outputs = TowerOutputs()
        for start in range(0, len(encoded), per_batch):
            batch = encoded[start : start + per_batch]
            outputs.keep_only(row.prompt.features for row in batch)
            completed: dict[int, list[Completion]] = {}
            for indices in _by_media(batch):
                rows = [batch[index] for index in indices for _ in range(copies)]
                draws = [f"{seed}/{row.sample.key}/{index % copies}" for index, row in enumerate(rows)]
                noise = None if num_samples is None else SeededSampling(draws, temperature=temperature)
                with sharing_tower_outputs([self.model], outputs):
                    completions = self._complete_rows(rows, noise)
                for place, index in enumerate(indices):
                    completed[index] = completions[place * copies : (place + 1) * copies]
            yield from (completed[index] for index in range(len(batch)))

    def _complete_rows(self, rows: Sequence[EncodedSample], noise: SeededSampling | None) -> list[Completion]:
        """Generate a completion for each row, and predict from it; all rows have the same kinds of media."""
        completion_ids = self.generate(rows, noise)
        texts = self.encode.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        predictions = self.predict_rows(rows, completion_ids)
        return [self._completion(*pair) for pair in zip(texts, predictions, strict=True)]

    @torch.inference_mode()
    def generate(self, rows: Sequence[EncodedSample], noise: SeededSampling | None = None) -> list[torch.Tensor]:
        """Generate the ids of each row's completion, with its end of turn (see `models.end_of_turn`).

        Args:
            rows: encoded rows; those of one clip share its media, see `collate.distinct_media`, and those of one prompt
                its pass through the decoder.
            noise: sampling noise, one sequence a row; None for greedy decoding.
        """
        tokenizer = self.encode.tokenizer
        config = GenerationConfig(
            max_new_tokens=self.max_completion_length,
            eos_token_id=self.end_ids,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
        )
        inputs, sharing = self._inputs(rows)
        processors = LogitsProcessorList(self.logits_processors(rows, noise, inputs["input_ids"].size(1)))
        with sharing, prefill_once(self.model):
            sequences = self.model.generate(**inputs, generation_config=config, logits_processor=processors)
        return until_end(sequences[:, inputs["input_ids"].size(1) :], self.end_ids)

    def logits_processors(
        self, rows: Sequence[EncodedSample], noise: SeededSampling | None, prompt_length: int
    ) -> list[LogitsProcessor]:
        """Return what changes the logits of a generation.

        Args:
            rows: its rows.
            noise: sampling noise; None for greedy decoding.
            prompt_length: number of tokens of the prompts, padding included.
        """
        return [] if noise is None else [noise]

    def _completion(self, text: str, prediction: Any) -> Completion:
        if self.encode.task.head != MaskHead.name or prediction is None:
            return Completion(text, prediction=prediction)
        return Completion(text, prediction.sigmoid().cpu())

    def decode_masks(
        self, rows: Sequence[EncodedSample], completion_ids: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """Decode the masks of completions; arguments as in `predict_rows`.

        Returns:
            (F, H, W) float32 probabilities at the frames' own size for each row, None without a `[SEG]` and for a task
            without masks.
        """
        return [self._completion("", prediction).mask_probs for prediction in self.predict_rows(rows, completion_ids)]

    def head_scores(self, row: EncodedSample, completion: Completion) -> dict[str, float | None]:
        """Score what another head than that of masks predicts, by name; a row without truth has no scores."""
        head = self.encode.task.head
        if head is None or head == MaskHead.name or row.gt_masks is None:
            return {}
        predicting = segmentation_model(self.model).head(head)
        return predicting.scores(completion.prediction, row.gt_masks, row.annotated_frames)

    @torch.inference_mode()
    def predict_rows(self, rows: Sequence[EncodedSample], completion_ids: Sequence[torch.Tensor]) -> list[Any]:
        """Run the task's head on completions in a pass of their own: `generate` gives no state of the last token.

        Args:
            rows: rows that were given to `generate`.
            completion_ids: completions that it has returned.

        Returns:
            What `Head.rows` returns for each row, over all of its frames; None without the head's token, and for a task
            without a head, which costs no pass.
        """
        head = self.encode.task.head
        if head is None or self.seg_token_id is None:
            return [None] * len(rows)
        completion_ids = self._with_seg(completion_ids)
        inputs, sharing = self._inputs(rows)
        prompt_ids, prompt_mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        ids = pad(completion_ids, padding_value=self.encode.tokenizer.pad_token_id, padding_side="right")
        said = pad([torch.ones_like(x) for x in completion_ids], padding_value=0, padding_side="right")
        input_ids, attention_mask = torch.cat([prompt_ids, ids], dim=1), torch.cat([prompt_mask, said], dim=1)
        index, has_token = find_last_token(
            input_ids,
            attention_mask,
            self.seg_token_id,
            num_completion_tokens=ids.size(1),
            in_calls=self.encode.in_calls,
        )
        frames = {name: tensor.to(input_ids.device) for name, tensor in collate_frames(rows).items()}
        with sharing, without_projection(self.model.get_output_embeddings()):
            outputs = self.model(
                input_ids=input_ids, attention_mask=attention_mask, **inputs, seg_index=index, head_name=head, **frames
            )
        counts = frames["seg_frame_counts"][frames["seg_clip_index"]]
        predicted = (
            segmentation_model(self.model)
            .head(head)
            .rows(outputs.head_outputs, counts, [row.frame_size for row in rows])
        )
        is_there = [has and row.asks_head for has, row in zip(has_token.tolist(), rows, strict=True)]
        return [row if there else None for row, there in zip(predicted, is_there, strict=True)]

    def _with_seg(self, completion_ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Append the task's closing sentence to completions without the head's token, if `append_seg` is set."""
        closing = self.encode.task.closing
        if not self.append_seg or closing is None or self.seg_token_id is None:
            return list(completion_ids)
        closing_ids = torch.tensor(
            self.encode.tokenizer(f" {closing}", add_special_tokens=False).input_ids, device=self.model.device
        )
        ends = torch.tensor(self.end_ids, device=self.model.device)
        return [
            ids if self._has_answered(ids) else torch.cat([ids[~torch.isin(ids, ends)], closing_ids])
            for ids in completion_ids
        ]

    def _has_answered(self, ids: torch.Tensor) -> bool:
        """Tell whether a completion (L,) has the head's token outside its calls of tools."""
        in_calls = self.encode.in_calls
        inside = [False] * len(ids) if in_calls is None else in_calls(ids.tolist())
        return any(token == self.seg_token_id and not call for token, call in zip(ids.tolist(), inside, strict=True))

    def _inputs(
        self, rows: Sequence[EncodedSample]
    ) -> tuple[dict[str, torch.Tensor], contextlib.AbstractContextManager[None]]:
        """Return the model's inputs of the prompts, and the context in which rows share their clips."""
        features, media_index = distinct_media(rows)
        sharing = shared_media(self.model, media_index, features)
        ids = [torch.tensor(row.prompt.prompt_ids) for row in rows]
        batch = {
            "input_ids": pad(ids, padding_value=self.encode.tokenizer.pad_token_id, padding_side="left"),
            "attention_mask": pad([torch.ones_like(x) for x in ids], padding_value=0, padding_side="left"),
            **self.encode.family.collate_features(features, media_index),
        }
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}, sharing
