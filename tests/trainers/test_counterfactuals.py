"""What a completion owes to the sound or the frames, held against plain forward passes and a model that is deaf."""

import copy
import dataclasses
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aurora_rl.assembly.model import freeze
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.collate import right_pad
from aurora_rl.models.encoding import EncodedPrompt, EncodedSample, PromptOptions, SampleEncoder
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm.qwen3_vl import Qwen3VLFamily
from aurora_rl.models.other_media import HEARING, SIGHT, exchange
from aurora_rl.rewards import load_guarded, names_column
from aurora_rl.trainers.counterfactuals import asked_senses, squashed_gain
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from reward_fns.listening import listening_reward, looking_reward
from tests.trainers.test_tower_outputs import clips_through_towers

MakeGRPO = Callable[..., AuroraGRPOTrainer]
Rollout = Callable[..., dict[str, Any]]


class Gains:
    """A reward that keeps what it is given."""

    def __call__(self, completions: list, *, listening_gain: list, completion_ids: list, **columns: Any) -> list[float]:
        self.gains, self.ids = listening_gain, completion_ids
        return [float(index % 2) for index in range(len(completions))]


class BothGains(Gains):
    def __call__(self, completions: list, *, listening_gain: list, looking_gain: list, **columns: Any) -> list[float]:
        self.seen = looking_gain
        return super().__call__(completions, listening_gain=listening_gain, **columns)


def log_probs(model: nn.Module, encode: SampleEncoder, prompt: EncodedPrompt, ids: list[int]) -> list[float]:
    """By one forward pass over one row, with the stock LM head."""
    batch = right_pad([prompt.prompt_ids], [ids], 0)
    media = encode.family.collate_features([prompt.features], [0])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **media).logits
    start = len(prompt.prompt_ids) - 1
    return logits[0, start:-1].log_softmax(-1)[range(len(ids)), ids].tolist()


def other_prompts(trainer: AuroraGRPOTrainer, samples: list[AVSample], sense: Any) -> list[EncodedPrompt]:
    """Of the first step's batch."""
    rows = [trainer.encode(sample) for sample in samples]
    exchanged = exchange(trainer.encode, rows, sense, random.Random(f"42/0/0/{sense.column}"))
    return [item.row.prompt for item in exchanged]


@pytest.fixture
def two_clips(train_samples: list[AVSample]) -> list[AVSample]:
    return [train_samples[0], train_samples[4]]


@pytest.mark.parametrize(
    "options", [{}, {"num_iterations": 2, "gradient_accumulation_steps": 1}, {"share_prompts": False}]
)
def test_gains_are_those_of_plain_forward_passes(
    make_grpo: MakeGRPO, rollout: Rollout, loaded: LoadedModel, two_clips: list[AVSample], options: dict
) -> None:
    """Also where TRL has scored the rollouts, and where prompts are not shared."""
    plain, reward = copy.deepcopy(loaded.model).eval(), BothGains()
    trainer = make_grpo(rewards=[reward], samples=two_clips, **options)
    rollout(trainer)
    for sense, gains in ((HEARING, reward.gains), (SIGHT, reward.seen)):
        others = other_prompts(trainer, two_clips, sense)
        for row, (ids, gain) in enumerate(zip(reward.ids, gains, strict=True)):
            own = trainer.encode(two_clips[row // 2]).prompt
            expected = [log_probs(plain, trainer.encode, prompt, ids) for prompt in (own, others[row // 2])]
            assert gain == pytest.approx(squashed_gain(*expected), abs=1e-5)
            assert gain != 0.5


def deafened(model: Any) -> Any:
    """The sound's placeholders hold zeros, whatever the sound."""
    nn.init.zeros_(model.audio_tower.proj.weight)
    nn.init.zeros_(model.audio_tower.proj.bias)
    return model


def test_a_model_that_ignores_the_sound_gains_exactly_nothing(
    make_grpo: MakeGRPO, rollout: Rollout, loaded: LoadedModel, two_clips: list[AVSample]
) -> None:
    reward = BothGains()
    rollout(make_grpo(rewards=[reward], samples=two_clips, model=deafened(loaded.model)))
    assert reward.gains == [0.5] * 4
    assert 0.5 not in reward.seen


@pytest.mark.parametrize(("num_rows", "heard"), [(2, 0), (1, 1)], ids=["another clip", "silence"])
def test_frozen_towers_hear_another_clip_of_the_batch_no_second_time(
    make_grpo: MakeGRPO,
    rollout: Rollout,
    loaded: LoadedModel,
    two_clips: list[AVSample],
    num_rows: int,
    heard: int,
) -> None:
    freeze(loaded.model, ("visual", "audio_tower"))
    reward = Gains()
    trainer = make_grpo(rewards=[reward], samples=two_clips, beta=0.0, per_device_train_batch_size=2 * num_rows)
    with clips_through_towers(trainer.model) as read:
        rollout(trainer, num_rows)
    assert read == {"visual": num_rows, "audio_tower": num_rows + heard}
    assert all(gain != 0.5 for gain in reward.gains)


def test_a_row_without_sound_gains_nothing_and_is_not_asked(
    make_grpo: MakeGRPO, rollout: Rollout, two_clips: list[AVSample]
) -> None:
    mute = dataclasses.replace(two_clips[0], audio_path=None)
    reward = Gains()
    trainer = make_grpo(rewards=[reward], samples=[mute, two_clips[1]])
    rollout(trainer)
    assert reward.gains[:2] == [None, None] and None not in reward.gains[2:]
    logged = trainer._metrics["train"]["listening_gain"]
    assert logged == [pytest.approx(sum(reward.gains[2:]) / 2)]


def test_no_pass_is_run_where_no_reward_asks(make_grpo: MakeGRPO, rollout: Rollout, two_clips: list[AVSample]) -> None:
    trainer = make_grpo(samples=two_clips)
    trainer._passes.log_probs_of = None
    rollout(trainer)


# The other clip


def clip_of(number: int, category: str = "", *, level: float | None = None, **fields: Any) -> EncodedSample:
    """A row whose clip sounds at its own level, and whose prompt is what was made of it."""
    sample = AVSample(f"u{number}", number, "train", f"clip{number}", category, "", 1.0, (), "a.wav", **fields)
    wave = np.full(16, number if level is None else level, np.float32)
    clip = AVClip(np.zeros((0, 4, 4, 3), np.uint8), wave, None)
    return EncodedSample(sample, SimpleNamespace(clip=clip), None, None, 0.0, (4, 4))


def sounds_given(rows: list[EncodedSample], seed: str = "", **of_encoder: Any) -> list[float | None]:
    """Level of the sound that each row is given; 0 for silence, None for none."""
    clips, options = {row.sample.uid: row.prompt.clip for row in rows}, PromptOptions(**of_encoder)
    encode = SimpleNamespace(
        load=lambda sample: clips[sample.uid],
        prompt_of=lambda sample, clip: SimpleNamespace(clip=clip),
        family=SimpleNamespace(hears=True, sees="video"),
        sets={},
        options=options,
        options_of=lambda sample: options,
    )
    exchanged = exchange(encode, rows, HEARING, random.Random(seed))
    return [None if item is None else float(item.row.prompt.clip.waveform[0]) for item in exchanged]


def test_another_category_comes_before_the_own_one() -> None:
    rows = [clip_of(1, "drum"), clip_of(2, "drum"), clip_of(3, "bell")]
    for seed in "abcd":
        given = sounds_given(rows, seed)
        assert given[:2] == [3, 3] and given[2] in (1, 2)
    assert len({tuple(sounds_given(rows, seed)) for seed in "abcd"}) == 2, "chance decides among the rest"
    assert sounds_given(rows, "a") == sounds_given(rows, "a")


def test_a_sound_of_equal_content_or_of_another_data_set_is_no_other_sound() -> None:
    assert sounds_given([clip_of(1), clip_of(2, level=1.0)]) == [0, 0]
    assert sounds_given([clip_of(1, dataset="a"), clip_of(2, dataset="b")]) == [0, 0]


def test_a_sound_that_is_dropped_is_not_exchanged() -> None:
    assert sounds_given([clip_of(1), clip_of(2)], drop_sound=True) == [None, None]


def test_a_reward_that_asks_for_a_sense_that_is_not_there_is_refused_by_name(encode: SampleEncoder) -> None:
    assert asked_senses(encode, [looking_reward, listening_reward]) == (HEARING, SIGHT)
    deaf = SampleEncoder(Qwen3VLFamily(), encode.processor, None)
    assert asked_senses(deaf, [looking_reward]) == (SIGHT,)
    with pytest.raises(ValueError, match="'listening_reward' reads listening_gain, but Qwen3VLFamily has no ears"):
        asked_senses(deaf, [looking_reward, listening_reward])


def test_rewards_ask_through_their_wrappers() -> None:
    guarded = load_guarded(["reward_fns.listening:listening_reward", Gains()], timeout_s=1.0, several_sets=True)
    assert [names_column(func, "listening_gain") for func in guarded] == [True, True]
    assert not any(names_column(func, "looking_gain") for func in guarded)
