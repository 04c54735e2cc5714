"""The agents' other order: the segmenter's tracks are the evidence among which reasoners choose."""

import asyncio
import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from aurora_rl.agents.closed_forms import RIGHT, WRONG, ScriptedVoices
from aurora_rl.agents.investigation import (
    FIRST,
    MENDED,
    NULL,
    NULL_BY_CHECK,
    UNCHECKED,
    AgentArguments,
    Findings,
    Segmentation,
)
from aurora_rl.agents.roles import JUDGE, REASON, choosing
from aurora_rl.agents.text_segmenters import OracleSegmenter, load_segmenter, read_clip
from aurora_rl.agents.track_choice import choose_track
from aurora_rl.agents.track_pictures import MAX_TRACKS, describe_tracks, draw_tracks
from aurora_rl.agents.tracks import Instances, link_instances
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample

#: Two tracks, of which the second shows the target.
TRACKS = [Segmentation(WRONG, 0.9), Segmentation(RIGHT, 0.5)]


def saying(*targets: str) -> Callable[..., dict[str, str]]:
    left = list(targets)
    return lambda **said: {"target": left.pop(0) if len(left) > 1 else left[0], "reason": "it hums"}


def choose(
    voices: ScriptedVoices,
    found: Sequence[Segmentation] | Callable[[str], Sequence[Segmentation]] = TRACKS,
    **options: int,
) -> Findings:
    find_tracks = found if callable(found) else lambda phrase: found
    args = AgentArguments(evidence="tracks", **options)
    return asyncio.run(choose_track("the loud one", voices, find_tracks, args))


# ---- rounds


def test_the_track_that_reasoners_agree_on_needs_no_judge():
    voices = ScriptedVoices(reason=saying("2"))
    found = choose(voices)
    assert voices.roles() == ["recognise"] * 3 + ["phrase"] + ["reason"] * 3 + ["check"]
    assert (found.outcome, found.target) == (FIRST, 'track 2 of "drum"') and found.masks is RIGHT
    assert found.to_record()["attempts"] == [
        {"phrase": "drum", "score": 0.5, "verdict": "accept", "reason": "r", "num_tracks": 2, "track": 2}
    ]


def test_a_judge_decides_where_reasoners_do_not_agree():
    voices = ScriptedVoices(reason=saying("1", "2", "nothing"), judge=saying("2"))
    assert choose(voices).masks is RIGHT
    (asked,) = [text for name, text in voices.said if name == "judge"]
    assert all(f"- {vote}: it hums" in asked for vote in ("1", "2", "nothing"))


def test_reasoners_and_checks_see_the_tracks_and_the_check_the_chosen_one():
    seen: list[tuple[str, int, bool]] = []

    def note(reply: dict[str, str]) -> Callable[..., dict[str, str]]:
        return lambda role, tracks, masks=None, **said: seen.append((role.name, len(tracks), masks is RIGHT)) or reply

    reason = note({"target": "2", "reason": "r"})
    voices = ScriptedVoices(reason=reason, check=note({"verdict": "accept", "reason": "r"}))
    choose(voices, agents=1)
    assert seen == [("reason", 2, False), ("check", 2, True)]
    said = dict(voices.said)
    assert "- 2 (sky blue): frames 1 to 1 of 1" in said["reason"] and "Track 2 was taken" in said["check"]


def test_a_rejected_track_is_told_and_another_one_can_be_chosen():
    verdicts = iter(["rephrase", "accept"])
    voices = ScriptedVoices(
        reason=saying("1", "2"), check=lambda **said: {"verdict": next(verdicts), "reason": "silent"}
    )
    found = choose(voices, agents=1)
    assert found.outcome == MENDED and found.masks is RIGHT and found.first_masks is WRONG
    assert '"drum", track 1: silent' in [text for name, text in voices.said if name == "reason"][1]


def test_another_kind_of_thing_is_looked_for_where_no_track_shows_it():
    phrases = iter(["drum", "instrument"])
    voices = ScriptedVoices(phrase=lambda **said: {"phrase": next(phrases)}, reason=saying("another thing", "1"))
    found = choose(voices, lambda phrase: TRACKS[:1] if phrase == "drum" else TRACKS[1:], agents=1)
    assert found.outcome == MENDED and found.masks is RIGHT and found.first_masks is RIGHT
    assert [(tried.phrase, tried.track, tried.verdict) for tried in found.attempts] == [
        ("drum", None, "rephrase"),
        ("instrument", 1, "accept"),
    ]


def test_nothing_is_meant_if_the_reasoners_agree_on_that():
    found = choose(ScriptedVoices(reason=saying("nothing", "nothing", "1")))
    assert (found.outcome, found.target, found.masks) == (NULL, None, None)


def test_two_phrases_without_tracks_are_believed_one_is_not():
    assert choose(ScriptedVoices(), []).outcome == NULL_BY_CHECK
    phrases = iter(["drum", "instrument"])
    voices = ScriptedVoices(phrase=lambda **said: {"phrase": next(phrases)}, reason=saying("2"))
    found = choose(voices, lambda phrase: [] if phrase == "drum" else TRACKS)
    assert found.outcome == MENDED and found.masks is RIGHT
    unchecked = choose(ScriptedVoices(), [], max_checks=0)
    assert (unchecked.outcome, unchecked.masks) == (UNCHECKED, None)


def test_the_last_attempt_offers_no_other_thing_and_stands_unchecked():
    offered: list[bool] = []
    voices = ScriptedVoices(
        reason=lambda role, **said: (
            offered.append("another thing" in role.fields["target"])
            or {"target": "another thing" if offered[-1] else "2", "reason": "r"}
        )
    )
    found = choose(voices, agents=1, max_checks=2)
    assert offered == [True, True, False] and found.outcome == UNCHECKED and found.masks is RIGHT


def test_a_reply_names_a_track_that_there_is():
    role = choosing(REASON, 2, may_be_other=True)
    assert role.schema["properties"]["target"]["enum"] == ["1", "2", "another thing", "nothing"]
    assert role.read('{"reason": "r", "target": 2}')["target"] == "2"
    assert choosing(JUDGE, 2, may_be_other=False).name == "judge"
    for target in ('"3"', "true", "0", '"the drum"'):
        with pytest.raises(ValueError, match="target"):
            role.read(f'{{"reason": "r", "target": {target}}}')


def test_an_unknown_kind_of_evidence_is_refused():
    with pytest.raises(ValueError, match="choose from clip, tracks"):
        AgentArguments(evidence="boxes")


# ---- tracks


def square(left: int, size: int = 4) -> np.ndarray:
    mask = np.zeros((8, 32), bool)
    mask[:size, left : left + size] = True
    return mask


def instances(*found: tuple[int, float]) -> Instances:
    masks = np.stack([square(left) for left, _ in found]) if found else np.zeros((0, 8, 32), bool)
    return Instances(masks, np.array([score for _, score in found]))


def test_things_that_move_and_hide_keep_their_tracks():
    """One moves two columns a frame (IoU 1 / 3), one stays and is hidden in the second frame."""
    frames = [instances((0, 0.9), (20, 0.8)), instances((2, 0.7)), instances((20, 0.95), (4, 0.6))]
    moving, staying = link_instances(frames, most=7)
    assert [np.flatnonzero(mask.any(0))[0] for mask in moving.masks] == [0, 2, 4] and moving.score == 0.9
    assert staying.masks.any(axis=(1, 2)).tolist() == [True, False, True] and staying.score == 0.95


def test_one_instance_found_twice_is_one_and_the_least_certain_tracks_are_dropped():
    frames = [instances((0, 0.9), (0, 0.8), (20, 0.3))]
    assert [track.score for track in link_instances(frames, most=7)] == [0.9, 0.3]
    assert [track.score for track in link_instances(frames, most=1)] == [0.9]
    assert link_instances([instances(), instances()], most=7) == []


def test_tracks_are_drawn_with_their_numbers_and_described():
    frames = np.zeros((2, 64, 96, 3), np.uint8)
    track = np.zeros((2, 64, 96), bool)
    track[1, 16:48, 24:72] = True
    drawn = draw_tracks(frames, [track])
    assert not drawn[0].any() and (drawn[1] > 240).all(-1).any()  # the number is white
    assert not (draw_tracks(frames, [track], numbered=False)[1] > 240).all(-1).any()
    assert Image.fromarray(drawn[1]).size == (96, 64)
    words = "frames 2 to 2 of 2, centre at 50% from the left and 50% from the top, 25% of the picture, score 0.30"
    assert describe_tracks([Segmentation(track, 0.3)]) == f"- 1 (orange): {words}"
    assert describe_tracks([Segmentation(track & False)]) == "- 1 (orange): in no frame"


def test_the_oracles_tracks_are_the_true_things_of_the_clip(train_samples: list[AVSample]):
    """Each distinct thing once, whichever row is asked about; a row whose reference is null has those of the others."""
    segmenter = OracleSegmenter(None, rows=train_samples)
    by_clip: dict[str, list[AVSample]] = {}
    for sample in train_samples:
        by_clip.setdefault(sample.media_id, []).append(sample)
    for rows in by_clip.values():
        truths = [load_clip(row).gt_masks for row in rows]
        for row, truth in zip(rows, truths, strict=True):
            tracks = segmenter.tracks(row, read_clip(row, segmenter), "thing")
            assert not truth.any() or sum(np.array_equal(truth, track.masks) for track in tracks) == 1
            distinct = {truth.tobytes() for truth in truths if truth.any()}
            assert len(tracks) == min(MAX_TRACKS, len(distinct))
    assert max(len(rows) for rows in by_clip.values()) > 1


def test_a_segmenter_without_tracks_is_refused_before_it_is_loaded():
    with pytest.raises(ValueError, match="use sam3, grounded_sam2, oracle, or evidence clip"):
        load_segmenter("aurora", "nowhere", device="cpu", rows=(), needs_tracks=True)
    assert json.dumps(choose(ScriptedVoices(reason=saying("2"))).to_record())
