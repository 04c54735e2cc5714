"""What must hold of every clip, on clips that hypothesis makes up."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aurora_rl import metrics
from aurora_rl.boundary import boundary_f_measure, outlines
from aurora_rl.evaluation.presets import PRESETS
from aurora_rl.evaluation.scoring import score_masks
from tests.direct_evaluation import davis_f, direct_scores, seg2bmap

THRESHOLDS = torch.linspace(0, 1 - 1e-10, 255).numpy()
#: Anything in [0, 1], often a threshold, what lies next to one, or a grey level.
PROBS = st.one_of(
    st.floats(0, 1, width=32),
    st.sampled_from(THRESHOLDS.tolist()),
    st.sampled_from(np.nextafter(THRESHOLDS[1:], np.float32(0)).tolist()),
    st.sampled_from(np.nextafter(THRESHOLDS[:-1], np.float32(1)).tolist()),
    st.sampled_from((np.arange(256) / np.float32(255)).astype(np.float32).tolist()),
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@st.composite
def clips(draw: st.DrawFn, *, logits: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (F, H, W) float32 and truth (F, H, W) bool."""
    shape = draw(SHAPES)
    elements = st.one_of(PROBS, st.floats(-20, 20, width=32)) if logits else PROBS
    scores = draw(arrays.arrays(np.float32, shape, elements=elements, fill=st.nothing()))
    return torch.from_numpy(scores), torch.from_numpy(draw(arrays.arrays(bool, shape)))


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clips' masks (F, H, W) bool; large enough for a tolerance of two pixels now and then."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 150), st.integers(1, 150)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.002, 0.3, 0.97, 1.0]))
    first = cv2.blur(random.random(shape[1:]), (5, 5)) < draw(st.floats(0.3, 0.7))
    frames = [np.stack([first] * shape[0]), random.random(shape) < share]
    if draw(st.booleans()):
        frames[1] = np.roll(frames[0], draw(st.integers(0, 4)), axis=2)
    return torch.from_numpy(frames[0]), torch.from_numpy(frames[1])


def passes(scores: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """(255,) one pass a threshold."""
    frames = [(s, t) for s, t in zip(scores.numpy(), truth.numpy(), strict=True) if t.any()]
    curve = np.zeros((max(len(frames), 1), 255))
    for index, (score, mask) in enumerate(frames):
        for k, threshold in enumerate(THRESHOLDS):
            predicted = score >= threshold
            both = (predicted & mask).sum()
            if both:
                precision, recall = both / predicted.sum(), both / mask.sum()
                curve[index, k] = 1.3 * precision * recall / (0.3 * precision + recall)
    return curve.mean(0)


@given(clips())
def test_f_of_one_histogram_is_f_of_255_passes(clip):
    assert np.allclose(metrics.f_measure_curve(*clip).numpy(), passes(*clip), rtol=0, atol=1e-9)


@given(clips(logits=True))
def test_f_on_logits_is_f_of_255_passes(clip):
    assert np.allclose(metrics.logit_f_measure_curve(*clip).numpy(), passes(*clip), rtol=0, atol=1e-9)


def test_every_float_next_to_a_threshold_is_on_its_right_side():
    scores = np.concatenate([THRESHOLDS + np.spacing(THRESHOLDS) * steps for steps in range(-3, 4)])
    assert scores.dtype == np.float32
    scores = scores[(scores >= 0) & (scores <= 1)]
    # Each frame is one pixel of the truth: F is 1 at the thresholds that it passes.
    truth = torch.ones(len(scores), 1, 1, dtype=torch.bool)
    curve = metrics.f_measure_curve(torch.from_numpy(scores)[:, None, None], truth)
    assert np.allclose(curve.numpy(), (scores[:, None] >= THRESHOLDS).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@settings(max_examples=8)
@given(data=st.data())
def test_presets_agree_with_their_definitions(preset, data):
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    truth = random.random(shape) < data.draw(st.sampled_from([0.02, 0.4]))
    truth[0] &= data.draw(st.booleans())  # a frame with nothing to find
    probs = random.random((shape[0], *data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))), dtype=np.float32)
    score = score_masks(torch.from_numpy(probs), truth, preset=preset)
    expected = direct_scores(probs, truth, preset)
    found = {"J": score.J, "F": score.F, "S": score.S}
    # Resizing rounds the last bit of a probability in its own way, which moves a pixel over a threshold now and then.
    same_size = preset in ("aurora", "davis") and probs.shape == truth.shape
    assert found == pytest.approx(expected, abs=1e-6 if same_size else 2e-4)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32))
def test_presets_agree_to_a_millionth_where_nothing_is_resized(preset, seed):
    random, size = np.random.default_rng(seed), {"refavs": 256, "avsbench": 224}.get(preset, 97)
    truth = random.random((2, size, size)) < 0.2
    probs = np.clip(random.normal(0.4 + 0.3 * truth, 0.2), 0, 1).astype(np.float32)
    score = score_masks(torch.from_numpy(probs), truth, preset=preset)
    assert pytest.approx(direct_scores(probs, truth, preset), abs=1e-6) == {"J": score.J, "F": score.F, "S": score.S}


@given(clips(), st.randoms())
def test_scores_depend_on_no_order_of_frames_and_on_no_mirror(clip, random):
    probs, truth = clip
    order = list(range(len(probs)))
    random.shuffle(order)
    for preset in ("aurora", "davis"):  # at the frames' size, so that mirroring is exact
        score = score_masks(probs, truth, preset=preset)
        other = score_masks(probs[order], truth[order], preset=preset)
        assert pytest.approx((score.J, score.F, score.S), abs=1e-12) == (other.J, other.F, other.S)
    mirrored = metrics.f_measure_curve(probs.flip(2), truth.flip(2))
    assert torch.equal(mirrored, metrics.f_measure_curve(probs, truth))


@given(clips())
def test_scores_lie_between_0_and_1(clip):
    for preset in PRESETS:
        score = score_masks(*clip, preset=preset)
        assert all(0 <= value <= 1 for value in (score.J, score.F, score.S, score.S_per_frame))


@given(arrays.arrays(bool, SHAPES))
def test_the_truth_itself_scores_1_where_there_is_something_to_find(truth):
    masks = torch.from_numpy(truth)
    assert score_masks(masks.float(), masks, preset="davis").J == 1.0
    assert score_masks(masks.float(), masks, preset="davis").F == 1.0
    if truth.any():
        assert pytest.approx(1.0) == score_masks(masks.float(), masks, preset="aurora").F
    assert pytest.approx(1.0, abs=1e-6) == score_masks(masks.float(), masks, preset="aurora").J


@given(arrays.arrays(bool, SHAPES))
def test_s_is_0_only_where_nothing_is_marked_and_never_below_its_mean_over_frames(masks):
    score = score_masks(torch.from_numpy(masks).float(), np.zeros_like(masks), preset="aurora")
    assert (score.S == 0) == (not masks.any())
    assert score.S_per_frame <= score.S + 1e-12  # the root is concave


@given(mask_pairs())
def test_boundary_f_is_that_of_dilated_outlines(pair):
    first, second = pair
    expected = [davis_f(a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert boundary_f_measure(first, second).tolist() == pytest.approx(expected, abs=1e-12)
    assert boundary_f_measure(second, first).tolist() == pytest.approx(expected, abs=1e-12)


@given(arrays.arrays(bool, SHAPES))
def test_outlines_are_those_of_seg2bmap(masks):
    expected = np.stack([seg2bmap(mask) for mask in masks])
    assert np.array_equal(outlines(torch.from_numpy(masks)).numpy(), expected)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([256, 224, 97]), st.integers(0, 2**32))
def test_truth_of_any_size_is_resized_as_opencv_does_it(height, width, size, seed):
    random = np.random.default_rng(seed)
    mask = random.random((height, width)) < random.choice([0.01, 0.1, 0.5])
    expected = cv2.resize(mask.astype(np.uint8) * 255, (size, size), interpolation=cv2.INTER_LINEAR) > 0
    assert np.array_equal(metrics.resize_truth(torch.from_numpy(mask)[None], (size, size))[0].numpy(), expected)
