"""A source completes the prompts that it is asked about, also some of a batch, and also in a second turn."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.rollout.base import Turn, continued_prompt
from aurora_rl.rollout.chat_request import chat_request
from aurora_rl.trainers.grounded_rollouts import RolloutBatch
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from tests.trainers.conftest import make_grpo as make_grpo
from tests.trainers.conftest import rollout as rollout

ANSWERED = " the drum is louder than the bell."


@pytest.fixture
def trainer(make_grpo: Callable[..., AuroraGRPOTrainer]) -> AuroraGRPOTrainer:
    """Greedy, by its only choice."""
    return make_grpo(script=None, top_k=1, max_completion_length=12)


@pytest.fixture
def rows(encode: SampleEncoder, train_samples: list[AVSample]) -> list[EncodedSample]:
    """Two completions of a row on each of two clips, with prompts of different lengths."""
    first, second = (encode(sample) for sample in (train_samples[0], train_samples[4]))
    assert first.sample.media_id != second.sample.media_id
    assert len(first.prompt.prompt_ids) != len(second.prompt.prompt_ids)
    return [first, first, second, second]


def decoder_calls(trainer: AuroraGRPOTrainer) -> list[tuple[int, int]]:
    """Rows and tokens of each call of the decoder from now on."""
    found: list[tuple[int, int]] = []

    def keep(_module: Any, _args: Any, kwargs: Any) -> None:
        found.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    trainer.accelerator.unwrap_model(trainer.model).get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    return found


@pytest.fixture
def calls(trainer: AuroraGRPOTrainer) -> list[tuple[int, int]]:
    return decoder_calls(trainer)


def asked(trainer: AuroraGRPOTrainer, ids: list[list[int]], rows: list[EncodedSample]) -> list[list[int]]:
    """Completions, by the seam that TRL takes for the first turn and for those after it."""
    return trainer._generate_single_turn(ids, rows, {}, 1)[0]


def second_turn(trainer: AuroraGRPOTrainer, rows: list[EncodedSample], index: int) -> list[int]:
    prompt_ids = [row.prompt.prompt_ids for row in rows]
    completion_ids = asked(trainer, prompt_ids, rows)
    return [*prompt_ids[index], *completion_ids[index], *trainer._tokenizer(ANSWERED).input_ids]


def test_a_second_turn_of_some_rows_is_that_of_each_row_alone(
    trainer: AuroraGRPOTrainer, rows: list[EncodedSample]
) -> None:
    trainer._batch = RolloutBatch(rows)
    turns = {index: second_turn(trainer, rows, index) for index in (1, 3)}
    together = asked(trainer, list(turns.values()), [rows[index] for index in turns])
    alone = [asked(trainer, [ids], [rows[index]])[0] for index, ids in turns.items()]
    assert together == alone
    assert together[0] != asked(trainer, [rows[1].prompt.prompt_ids], [rows[1]])[0], "it is the first turn again"
    assert trainer.model.media_index is None


def test_a_second_turn_hears_and_sees_the_row_s_own_clip(trainer: AuroraGRPOTrainer, rows: list[EncodedSample]) -> None:
    """The states of a turn differ with the clip, though the tokens of a random model may not."""
    source, ids = trainer._source(), second_turn(trainer, rows, 1)
    source.kept_token_id = source.generate([ids], [rows[1]], Turn(1)).completion_ids[0][0]
    own = source.generate([ids], [rows[1]], Turn(1)).states
    muted = {name: torch.zeros_like(x) if x.is_floating_point() else x for name, x in rows[1].prompt.features.items()}
    other_media = dataclasses.replace(rows[1], prompt=dataclasses.replace(rows[1].prompt, features=muted))
    other = source.generate([ids], [other_media], Turn(1)).states
    assert (own.hidden_states - other.hidden_states).abs().max() > 1e-3


def test_each_distinct_prompt_is_read_once_and_gives_every_row_its_state(
    trainer: AuroraGRPOTrainer, rows: list[EncodedSample], calls: list[tuple[int, int]]
) -> None:
    """Of three prompts, whose rows need not be neighbours; processes with shards of the weights count the calls."""
    source, rows = trainer._source(), [*rows, rows[0]]
    ids = [row.prompt.prompt_ids for row in rows]
    ids[1] = [*ids[1], *trainer._tokenizer(ANSWERED).input_ids]
    source.kept_token_id = source.generate(ids, rows, Turn(1)).completion_ids[0][0]
    calls.clear()
    once, reads_once = source.generate(ids, rows, Turn(1)), calls.copy()
    source.shares_prompts = False
    calls.clear()
    each, width = source.generate(ids, rows, Turn(1)), max(map(len, ids))
    assert calls == [(5, width), *[(5, 1)] * (len(calls) - 1)]
    assert reads_once == [(3, width), *calls[1:]]
    assert once.states is not None and each.states is not None and each.states.has_seg.any()
    torch.testing.assert_close(once.states.hidden_states, each.states.hidden_states, atol=1e-5, rtol=1e-5)
    assert trainer.model.media_index is None


def test_a_cache_that_cannot_repeat_a_prompt_reads_every_row(
    trainer: AuroraGRPOTrainer, rows: list[EncodedSample], calls: list[tuple[int, int]]
) -> None:
    trainer.generation_config.cache_implementation = "static"
    trainer._source().generate([row.prompt.prompt_ids for row in rows], rows, Turn(2))
    assert calls[0][0] == len(rows)


def test_an_evaluation_and_a_switch_decide_how_prompts_are_read(
    make_grpo: Callable[..., AuroraGRPOTrainer], rollout: Callable[..., dict[str, Any]]
) -> None:
    for shares in (True, False):
        trainer = make_grpo(script=None, share_prompts=shares, num_generations=4, mask_loss_on="off")
        read = decoder_calls(trainer)
        rollout(trainer, 2, train=False)
        assert read[0][0] == (2 if shares else 8)


def test_ids_of_another_row_are_an_error_that_names_the_row(
    trainer: AuroraGRPOTrainer, rows: list[EncodedSample]
) -> None:
    with pytest.raises(ValueError, match=rf"sample {rows[0].sample.key}: .* do not begin with"):
        trainer._source().generate([rows[2].prompt.prompt_ids], [rows[0]], Turn(1))


def test_both_ids_of_a_prompt_go_on_with_what_was_said(rows: list[EncodedSample]) -> None:
    prompt = rows[0].prompt
    assert continued_prompt(rows[0], prompt.prompt_ids) is prompt
    continued = continued_prompt(rows[0], [*prompt.prompt_ids, 5, 6])
    assert continued.prompt_ids == [*prompt.prompt_ids, 5, 6]
    assert continued.engine.prompt_ids == [*prompt.engine.prompt_ids, 5, 6]
    assert continued.features is prompt.features and continued.engine.media is prompt.engine.media


def test_a_server_is_not_asked_for_a_second_turn_whose_tokens_it_would_read_anew(rows: list[EncodedSample]) -> None:
    with pytest.raises(ValueError, match=r"2 tokens were said.*vllm_mode colocate"):
        chat_request(rows[0].prompt.extended([5, 6]).engine)


def test_trl_is_shown_rows_only_between_its_own_turns(trainer: AuroraGRPOTrainer, rows: list[EncodedSample]) -> None:
    trainer._batch = RolloutBatch(rows)
    prompts: list[Any] = [[{"role": "user", "content": "?"}] for _ in rows]
    ids, travelling, media = trainer._tokenize_prompts(prompts)
    assert list(travelling) == rows and media == {} and ids == [row.prompt.prompt_ids for row in rows]
    *_, images, tool_images = trainer._generate(prompts)
    assert images is None and tool_images == []
