"""Calls of tools inside rollouts: a turn sees its own clip, tools' tokens teach nothing, what goes wrong is told.

The first turn is scripted, since a random model calls nothing; later turns are sampled, or scripted as well.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import FAMILIES
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.rollout.base import Turn
from aurora_rl.rollout.environments import ToolsError
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.health import RolloutHealthCallback
from aurora_rl.trainers.tool_calls import ToolsTrainer, check_options
from tests.conftest import SEGMENTER
from tests.trainers.calling import Peak, call
from tests.trainers.conftest import COMMON, GRPO

Rollout = Callable[..., dict[str, Any]]


class Tools(Peak):
    """A tool that answers, and two that are trouble."""

    def fail(self) -> str:
        """Fail."""
        raise RuntimeError("no [SEG] here")

    def talk(self) -> str:
        """Say more than there is room for."""
        return "very " * 200


class Talkative(Tools):
    def reset(self, **row: Any) -> str:
        return "Listen."


def later_reward(completions: list, **columns: Any) -> list[float]:
    """1 for the second rollout of a group, 0 for the first."""
    return [float(index % 2) for index in range(len(completions))]


def remember(seen: dict[str, Any]) -> Callable[..., list[float]]:
    """A reward that keeps what it is given; masks are made when they are looked at."""

    def reward(completions: list, **columns: Any) -> list[float]:
        seen.update(columns, completions=completions, mask_probs=list(columns["mask_probs"]))
        return later_reward(completions)

    return reward


class CallingTrainer(AuroraGRPOTrainer):
    """Rolls out the next of `turns` for all rows that are asked about; when there is none left, samples."""

    turns: list[list[str]]

    def _generate_single_turn(self, prompt_ids: list, images: list, *args: Any, **kwargs: Any) -> tuple:
        self.asked = prompt_ids, images
        if self.turns:
            end = [self._tokenizer.eos_token_id]
            return [self._tokenizer(text).input_ids + end for text in self.turns.pop(0)], None
        found = super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        self.sampled = [list(ids) for ids in found[0]]  # TRL cuts its own where the completion would be too long
        return found


@pytest.fixture
def loaded(request: pytest.FixtureRequest, tiny_checkpoint: str, tmp_path: Any) -> LoadedModel:
    """The tiny model, or that of the family which a test asks for."""
    family = getattr(request, "param", Qwen2_5OmniFamily)()
    if type(family) is Qwen2_5OmniFamily:
        return load_model(tiny_checkpoint)
    texts = ["Look: I see a drum.\nListen: I hear a bell.\nAnswer: the target is the drum. It is [SEG]."]
    model, processor = family.build_tiny(texts, segmenter=SEGMENTER, sizes={"initializer_range": 0.2})
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    return load_model(str(tmp_path / "checkpoint"))


@pytest.fixture
def encode(data_args: DataArguments, loaded: LoadedModel, train_samples: list[AVSample]) -> SampleEncoder:
    args = dataclasses.replace(data_args, drop_sound=not loaded.family.hears)
    return assemble_encoder(args, loaded, train_samples)


@pytest.fixture
def make_calling(
    loaded: LoadedModel, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Any
) -> Callable[..., CallingTrainer]:
    """A trainer on two rows of two clips, whose rollouts are scripted turn by turn; greedy afterwards."""

    def make(
        *turns: list[str], environment: Any = Tools, rewards: Any = later_reward, **options: Any
    ) -> CallingTrainer:
        samples = [train_samples[0], train_samples[4]]
        options = {"output_dir": str(tmp_path), **COMMON, **GRPO, "top_k": 1, "max_completion_length": 120, **options}
        trainer = CallingTrainer(
            model=loaded.model,
            reward_funcs=rewards,
            args=AuroraGRPOConfig(**options),
            encode=encode,
            train_dataset=to_dataset(samples, ReferenceSegmentation().messages),
            processing_class=loaded.processor,
            environment_factory=environment,
        )
        trainer.turns = list(turns)
        trainer._passes.sharing.is_tried = True
        return trainer

    return make


def second_turn(trainer: CallingTrainer, ids: list[int], row: EncodedSample) -> list[int]:
    return trainer._source().generate([ids], [row], Turn(1)).completion_ids[0]


def with_features(row: EncodedSample, other: EncodedSample) -> EncodedSample:
    return dataclasses.replace(row, prompt=dataclasses.replace(row.prompt, features=other.prompt.features))


#: The families whose prompts show tools.
CALLING = [family for family in FAMILIES if family.tool_format is not None]


@pytest.mark.parametrize("loaded", CALLING, ids=lambda family: family.model_types[0], indirect=True)
def test_a_turn_after_a_call_is_that_of_its_row_alone_and_tools_tokens_teach_nothing(
    make_calling: Callable[..., CallingTrainer], rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_calling(["I know.", call("peak"), "I know.", f"Hm. {call('peak')}"])
    trainer.generation_config.max_new_tokens = 16
    batch = rollout(trainer)
    (ids, rows), together = trainer.asked, trainer.sampled

    # Rows 1 and 3 go on, each on its own clip and with its own answer, as if they were alone.
    assert [row.sample.uid for row in rows] == [trainer.train_dataset[i]["uid"] for i in (0, 1)]
    alone = [second_turn(trainer, *asked) for asked in zip(ids, rows, strict=True)]
    assert together == alone
    other_clips = [with_features(rows[0], rows[1]), with_features(rows[1], rows[0])]
    with_other_clip = [second_turn(trainer, *asked) for asked in zip(ids, other_clips, strict=True)]
    assert with_other_clip != alone  # control: clips that are exchanged would be seen
    told = [environment.told for environment in trainer.environments]
    assert told[0] == told[2] == "" and told[1] != told[3]
    decoded = [trainer._tokenizer.decode(own) for own in ids]
    assert all(f"<tool_response>\n{told[i]}\n</tool_response>" in text for i, text in zip((1, 3), decoded, strict=True))

    # The loss: no gradient at what the tool has said, one at every token of the policy.
    kept, score = [], trainer._get_per_token_logps_and_entropies

    def keep(*args: Any, **kwargs: Any) -> tuple:
        found = score(*args, **kwargs)
        found[0].retain_grad()
        kept.append(found[0])
        return found

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", keep)
    trainer._compute_loss(trainer.model, batch).backward()
    is_said, is_policy = batch["completion_mask"].bool(), batch["tool_mask"].bool()
    gradient = kept[0].grad
    assert (gradient[is_said & ~is_policy] == 0).all() and (is_said & ~is_policy).any(1).tolist() == [0, 1, 0, 1]
    assert (gradient[is_said & is_policy] != 0).all()
    assert batch["num_items_in_batch"] == (is_said & is_policy).sum()


def test_what_goes_wrong_in_a_call_is_told_to_the_model_and_counted(
    make_calling: Callable[..., CallingTrainer], rollout: Rollout
) -> None:
    calls = [call("fail"), call("nothing"), call("talk"), call("peak")]
    seen: dict[str, Any] = {}
    options: dict[str, Any] = {"max_tool_calling_iterations": 1, "max_completion_length": 240}
    trainer = make_calling(calls, ["Oh.", "Oh.", call("peak")], rewards=remember(seen), **options)
    batch = rollout(trainer, train=False)
    answers = [[turn["content"] for turn in rows if turn["role"] == "tool"] for rows in seen["completions"]]
    assert answers[0] == ["{'error': 'no [SEG] here'}"] and "nothing" in answers[1][0]
    assert answers[2] == [] and answers[3] == [trainer.environments[3].told]
    assert [turn["role"] for turn in seen["completions"][3]] == ["assistant", "tool", "assistant"]
    assert [answer.text for answer in seen["answers"]] == ["Oh.", "Oh.", "", ""]
    assert seen["read_clip"][3]() is seen["read_clip"][2]()
    assert [environment.uid for environment in seen["environments"]] == seen["uid"]
    assert not (batch["completion_ids"] == trainer.seg_token_id).any()
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items() if name.startswith("tools/")}
    assert metrics["tools/call_frequency"] == 1.0 and metrics["tools/failure_frequency"] == 0.5
    assert metrics["tools/no_room"] == metrics["tools/out_of_iterations"] == 0.25
    assert metrics["tools/rollouts_with_a_call"] == 1.0 and metrics["tools/unreadable"] == 0.0


#: Calls that can be read, with arguments that a table of one type a column does not hold, and half a surrogate pair.
ODD_ARGUMENTS = [
    "{}",
    '{"a": 1}',
    '{"a": "x", "b": {"c": []}}',
    "[1, 2]",
    '"x"',
    '{"\\ud800": "\\ud800"}',
    "NaN",
    "null",
]


def test_whatever_stands_in_a_call_is_answered_printed_and_stored(
    make_calling: Callable[..., CallingTrainer], rollout: Rollout, tmp_path: Path
) -> None:
    odd_name = call("\\ud800")
    for first in range(0, len(ODD_ARGUMENTS), 4):
        calls = [call("peak").replace("{}", given) for given in ODD_ARGUMENTS[first : first + 4]]
        trainer = make_calling(
            [calls[0], odd_name, *calls[2:]], [calls[1], "Oh.", "Oh.", "Oh."], ["Oh."],
            log_completions=True, max_tool_calling_iterations=2, max_completion_length=400,
        )  # fmt: skip
        rollout(trainer)
        trainer.remove_callback(RolloutHealthCallback)  # which expects a training that has begun
        trainer.log({})
        table = pq.read_table(tmp_path / "completions" / "completions_00000.parquet").to_pylist()
        made = [call["function"] for row in table for turn in row["completion"] for call in turn["tool_calls"] or ()]
        assert [function["name"] for function in made] == ["peak", "peak", "?", "peak", "peak"]
        assert all(isinstance(json.loads(function["arguments"]), dict) for function in made)


def test_masks_come_from_the_last_turn_of_the_model(
    make_calling: Callable[..., CallingTrainer], rollout: Rollout
) -> None:
    """States that sampling has left belong to single turns, so that a pass of its own predicts."""
    gold = "Answer: the target is the drum. It is [SEG]."
    seen: dict[str, Any] = {}
    turns = [gold, call("fail"), gold, call("fail")], ["It is [SEG].", "I see nothing."]
    trainer = make_calling(*turns, rewards=remember(seen))
    batch = rollout(trainer)
    assert [mask is None for mask in seen["mask_probs"]] == [False, False, False, True]
    has_token = [bool((ids == trainer.seg_token_id).any()) for ids in batch["completion_ids"]]
    assert has_token == [True, True, True, False]

    # The next batch, also that of a run that goes on from a checkpoint, begins with environments that are reset.
    before, trainer.turns = list(trainer.environments), [["I know."] * 4]
    for environment in before:
        environment.told = "of the batch before"
    rollout(trainer)
    assert trainer.environments == before and {environment.told for environment in before} == {""}


def test_a_token_inside_a_call_asks_for_no_masks(make_calling: Callable[..., CallingTrainer], rollout: Rollout) -> None:
    """An argument, or a call that is not closed, is said to a tool; what stands before, between and after counts."""
    seen: dict[str, Any] = {}
    gold, asked = "Answer: the target is the drum. It is [SEG].", call("fail").replace("{}", '{"of": "[SEG]"}')
    open_call = '<tool_call>{"name": "[SEG]'
    turns = [asked, f"{gold} {asked}", open_call, f"{open_call}</tool_call> {gold}"], ["I see nothing.", "Nothing."]
    trainer = make_calling(*turns, rewards=remember(seen), mask_loss_on="all", max_completion_length=400)
    batch = rollout(trainer)
    assert (batch["completion_ids"] == trainer.seg_token_id).sum(1).tolist() == [1, 2, 1, 2]
    assert [mask is None for mask in seen["mask_probs"]] == [True, False, True, False]
    assert batch["mask_weights"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_text_of_an_environment_for_the_prompt_is_refused(
    make_calling: Callable[..., CallingTrainer], rollout: Rollout
) -> None:
    with pytest.raises(ToolsError, match=r"Talkative\.reset has returned a text for the prompt"):
        rollout(make_calling(["I know."] * 4, environment=Talkative))


OFF = {"use_vllm": False, "vllm_mode": "colocate", "vllm_tensor_parallel_size": 1}


@pytest.mark.parametrize(
    "environment, family, options, reason",
    [
        ({"a": Peak}, {}, {}, "names several environments"),
        (Peak, {"tool_format": None}, {}, "SimpleNamespace has no tool_format"),
        (Peak, {}, {"use_vllm": True, "vllm_mode": "server"}, "choose vllm_mode colocate"),
        (Peak, {}, {"use_vllm": True, "vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size is 2"),
    ],
)
def test_what_calls_do_not_work_with_is_refused_by_name(
    environment: Any, family: dict, options: dict, reason: str
) -> None:
    encode = SimpleNamespace(family=SimpleNamespace(**{"tool_format": object(), **family}))
    with pytest.raises(ValueError, match=reason):
        check_options(encode, environment, SimpleNamespace(**{**OFF, **options}))


def test_tools_without_an_environment_are_refused() -> None:
    with pytest.raises(ValueError, match="such a tool knows no clip"):
        ToolsTrainer(encode=None, tools=[len])
