"""Environments: what makes one usable, what their rollouts come to, and the tools that measure a clip."""

from typing import Any

import numpy as np
import pytest

from aurora_rl.data.sample import AVClip
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.named.objects import NamedObjectError
from aurora_rl.rollout.clip_tools import ClipTools
from aurora_rl.rollout.environments import (
    ToolsError,
    answers_of,
    load_environment,
    tool_metrics,
    tool_schemas,
    with_clips,
)

SECOND = 16_000


class WithoutReset:
    def peak(self) -> str:
        """Tell the peak."""
        return ""


class WithoutTools:
    def reset(self, **row: Any) -> None: ...

    def get_reward(self) -> float:
        return 0.0


class WithoutHints(WithoutTools):
    def peak(self, start) -> str:
        """Tell the peak.

        Args:
            start: start of the window
        """
        return ""


class WithoutWords(WithoutTools):
    def peak(self, start: float) -> str:
        """Tell the peak."""
        return ""


@pytest.mark.parametrize(
    "environment, lacks",
    [
        (WithoutReset, "no method `reset"),
        (WithoutTools, "no tool"),
        (WithoutHints, r"WithoutHints\.peak cannot be shown"),
        (WithoutWords, r"WithoutWords\.peak cannot be shown"),
        (3, "is a int"),
    ],
)
def test_an_environment_that_cannot_be_used_tells_what_it_lacks(environment: Any, lacks: str) -> None:
    with pytest.raises(ToolsError, match=lacks):
        load_environment(environment)


def test_an_environment_is_named_like_a_reward() -> None:
    assert load_environment("aurora_rl.rollout.clip_tools:ClipTools") is ClipTools
    assert [tool["function"]["name"] for tool in tool_schemas(ClipTools)] == ["colours", "loudness"]
    with pytest.raises(NamedObjectError, match="ClipTool"):
        load_environment("aurora_rl.rollout.clip_tools:ClipTool")


def test_rollouts_of_one_row_read_its_clip_once_and_when_it_is_asked_for(
    encode: SampleEncoder, train_samples: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [encode(sample) for sample in train_samples[:2]]
    read, load = [], encode.load
    monkeypatch.setattr(encode, "load", lambda sample: read.append(sample.key) or load(sample))
    given = with_clips([{"uid": "a"}, {"uid": "a"}, {"uid": "b"}], [rows[0], rows[0], rows[1]], encode)
    assert read == [] and given[2]["uid"] == "b" and given[2]["sample"] is rows[1].sample
    assert given[0]["read_clip"]() is given[1]["read_clip"]()
    assert read == [rows[0].sample.key]


def test_an_answer_that_is_no_text_is_an_error_that_names_the_tool() -> None:
    assert answers_of([{"name": "peak", "content": "0.2"}]) == ["0.2"]
    with pytest.raises(ToolsError, match=r"'look' has answered with \[1\]"):
        answers_of([{"name": "look", "content": [1]}])


CALLS = {"role": "assistant", "content": "", "tool_calls": [{}]}
TOOL = {"role": "tool", "name": "peak", "content": "<tool_call>"}
SAYS = {"role": "assistant", "content": "It is."}
HALF = {"role": "assistant", "content": "<tool_call>{"}


@pytest.mark.parametrize(
    "completion, true",
    [
        ([SAYS], set()),
        ([CALLS, TOOL, SAYS], {"rollouts_with_a_call"}),
        ([CALLS, TOOL, TOOL, CALLS, TOOL, CALLS], {"rollouts_with_a_call", "out_of_iterations"}),
        ([CALLS, TOOL, CALLS], {"rollouts_with_a_call", "no_room"}),
        ([CALLS, TOOL], {"rollouts_with_a_call", "no_room"}),
        ([HALF], {"unreadable"}),
    ],
)
def test_what_a_rollout_s_calls_came_to(completion: list[dict], true: set[str]) -> None:
    assert {name.removeprefix("tools/") for name, value in tool_metrics(completion, 2) if value} == true


def tools(*, waveform: np.ndarray | None = None) -> ClipTools:
    """A clip of two frames: the second is grey with a red left half, whose top is blue."""
    frames = np.full((2, 8, 8, 3), 128, np.uint8)
    frames[1, :, :4] = (220, 30, 30)
    frames[1, :4, :4] = (20, 60, 230)
    found = ClipTools()
    clip = AVClip(frames, waveform, None)
    found.reset(read_clip=lambda: clip, uid="a")
    return found


def test_loudness_is_told_of_a_window_and_against_the_clip() -> None:
    waveform = np.concatenate([np.zeros(SECOND), np.full(SECOND, 0.1), np.full(2 * SECOND, 0.01)]).astype(np.float32)
    heard = tools(waveform=waveform)
    assert heard.loudness(0, 1) == "Silence."
    assert heard.loudness(1, 2) == "-20 dBFS, 6 dB above the whole clip."
    assert heard.loudness(0, 4) == "-26 dBFS, as loud as the whole clip."
    assert tools().loudness(0, 1) == "The clip has no sound."
    with pytest.raises(ValueError, match=r"lasts 4\.0 s"):
        heard.loudness(9, 10)


def test_colours_are_told_of_a_region_with_its_size() -> None:
    seen = tools()
    assert seen.colours(0, 0, 0, 1, 1) == "grey 100 % of it; the region is 100 % of the frame."
    told = seen.colours(1, 0, 0, 1, 1)
    assert told == "grey 50 % of it, blue 25 % of it, red 25 % of it; the region is 100 % of the frame."
    assert seen.colours(1, 0, 0, 0.5, 0.5) == "blue 100 % of it; the region is 25 % of the frame."
    for region, message in (((7, 0, 0, 1, 1), "from 0 to 1"), ((0, 1, 0, 0, 1), "region is empty")):
        with pytest.raises(ValueError, match=message):
            seen.colours(*region)


@pytest.mark.parametrize(
    "rgb, name",
    [
        ((255, 128, 0), "orange"), ((240, 230, 20), "yellow"), ((20, 200, 40), "green"), ((0, 200, 220), "cyan"),
        ((130, 20, 230), "purple"), ((250, 60, 180), "pink"), ((230, 10, 40), "red"), ((10, 10, 12), "black"),
        ((250, 250, 250), "white"), ((120, 124, 118), "grey"),
    ],
)  # fmt: skip
def test_colours_have_the_names_of_their_hues(rgb: tuple[int, int, int], name: str) -> None:
    painted = ClipTools()
    clip = AVClip(np.full((1, 2, 2, 3), rgb, np.uint8), None, None)
    painted.reset(read_clip=lambda: clip)
    assert painted.colours(0, 0, 0, 1, 1).startswith(f"{name} 100 %")
