"""Masks of every picture from those of some: by a memory as transformers has it, or by the nearest in time."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2VideoModel

from aurora_rl.data.footage import Picture
from aurora_rl.inference import propagation
from aurora_rl.inference.propagation import VIDEO_CLASSES, MemoryMasks, NearestMasks, SampledMasks, _Memory, nearest
from aurora_rl.models.heads.segmenters import build_frame_encoder

#: Types of segmenters that track, with their checkpoints and image sizes.
KINDS = {
    "edgetam": ("edgetam_checkpoint", 64),
    "sam2": ("sam2_checkpoint", 64),
    "sam3_tracker": ("sam3_checkpoint", 56),
}


@pytest.fixture(scope="module")
def segmenter(sam2_checkpoint) -> dict:
    return {"type": "sam2", "image_size": 64, "checkpoint": sam2_checkpoint}


@pytest.fixture(scope="module")
def tracker(segmenter) -> MemoryMasks:
    return MemoryMasks(segmenter)


@pytest.fixture(scope="module", params=sorted(VIDEO_CLASSES))
def any_tracker(request) -> MemoryMasks:
    fixture, image_size = KINDS[request.param]
    checkpoint = request.getfixturevalue(fixture)
    return MemoryMasks({"type": request.param, "image_size": image_size, "checkpoint": checkpoint})


def make_pictures(count: int, *, size: tuple[int, int] = (48, 80), fps: float = 10.0) -> list[Picture]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return [Picture(index / fps, frame) for index, frame in enumerate(pixels)]


def make_masks(num_references: int, num_frames: int, *, size: tuple[int, int] = (48, 80)) -> np.ndarray:
    """Boxes that differ from reference to reference and from frame to frame."""
    masks = np.zeros((num_references, num_frames, *size), dtype=bool)
    for reference in range(num_references):
        for frame in range(num_frames):
            masks[reference, frame, 4 + 8 * reference : 24 + 8 * reference, 10 + 4 * frame : 40 + 4 * frame] = True
    return masks


# The nearest


def test_the_nearest_time_wins_and_of_two_the_earlier():
    times = [0.0, 1.0, 2.0]
    assert [nearest(times, time) for time in (-1.0, 0.0, 0.4, 0.5, 0.6, 1.0, 1.7, 9.0)] == [0, 0, 0, 0, 1, 1, 2, 2]


def test_without_memory_a_picture_has_the_masks_of_the_sampled_frame_nearest_in_time():
    masks = make_masks(2, 2)
    shown = list(NearestMasks().track(iter(make_pictures(10)), SampledMasks([0.0, 0.5], masks)))
    assert [each.index for each in shown] == list(range(10))
    for each in shown:
        assert np.array_equal(each.masks, masks[:, 0 if each.picture.time <= 0.25 else 1])


# By a memory


def stock_logits(
    tracker: MemoryMasks, pictures: list[Picture], given: np.ndarray, at: int, *, reverse: bool = False
) -> torch.Tensor:
    """Low-resolution logits (F, h, w) of transformers' own session over a whole video, one object's mask given."""
    video = torch.cat([tracker.encoder.preprocess(picture.pixels[None]) for picture in pictures])
    size = tracker.model.config.image_size
    session_class = VIDEO_CLASSES[tracker.encoder.kind].session
    session = session_class(video=video, video_height=size, video_width=size, dtype=torch.float32)
    mask = torch.nn.functional.interpolate(torch.from_numpy(given).float()[None, None], (size, size), mode="bilinear")
    session.add_mask_inputs(session.obj_id_to_idx(0), at, mask > 0.5)
    session.obj_with_new_inputs = [0]
    tracker.model(session, frame_idx=at)
    outputs = tracker.model.propagate_in_video_iterator(session, start_frame_idx=at, reverse=reverse)
    return torch.stack([output.pred_masks[0, 0] for output in outputs])


@pytest.mark.parametrize("backward", [False, True])
def test_memory_tracks_as_transformers_does(any_tracker, backward):
    # As many as SAM 2 keeps pointers of: in a shorter video transformers scales the time between them by its length.
    pictures, masks = make_pictures(16), make_masks(1, 1)
    order = range(15, -1, -1) if backward else range(16)
    expected = stock_logits(any_tracker, pictures, masks[0, 0], order[0], reverse=backward)
    memory = _Memory(any_tracker.model, 1, torch.device("cpu"))
    found = []
    for index in order:
        given = torch.from_numpy(masks[:, 0]) if index == order[0] else None
        pixel_values = any_tracker.encoder.preprocess(pictures[index].pixels[None])
        found.append(memory.see(index, pixel_values, given, backward=backward))
    assert expected[1:].std() > 0.01
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-3, atol=1e-3)


def test_what_is_remembered_decides_what_is_tracked(any_tracker):
    pictures = make_pictures(3)
    masks = make_masks(1, 2)
    logits = [stock_logits(any_tracker, pictures, masks[0, frame], 0)[1:] for frame in range(2)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


class CopyingMemory:
    """A memory that cannot follow: it copies the masks of the picture that was seen before, or after."""

    def __init__(self, model: object, num_references: int, device: torch.device) -> None:
        self.masks: dict[int, torch.Tensor] = {}
        self.order: list[str] = []

    def see(self, index, pixel_values, given=None, *, backward=False):
        self.order.append(f"{index} {'given' if given is not None else 'backward' if backward else 'forward'}")
        self.masks[index] = self.masks[index + 1 if backward else index - 1] if given is None else given.float() - 0.5
        return self.masks[index]


@pytest.fixture
def copying(monkeypatch) -> list[CopyingMemory]:
    """The memories of the clips that are tracked, each of which copies."""
    made: list[CopyingMemory] = []
    monkeypatch.setattr(propagation, "_Memory", lambda *args: made.append(CopyingMemory(*args)) or made[-1])
    return made


def moving_square(count: int) -> np.ndarray:
    """Masks (1, F, 48, 80) of a square of 20 x 20 pixels that moves by one pixel a picture."""
    masks = np.zeros((1, count, 48, 80), dtype=bool)
    for index in range(count):
        masks[0, index, 10:30, 5 + index : 25 + index] = True
    return masks


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_each_half_is_tracked_from_the_sampled_frame_that_is_nearer(tracker, copying):
    truth = moving_square(11)
    sampled = SampledMasks([0.0, 1.0], truth[:, [0, 10]])
    both = list(tracker.track(iter(make_pictures(11)), sampled))
    forward = list(tracker.track(iter(make_pictures(11)), sampled, both_ways=False))
    assert [each.index for each in both] == [each.index for each in forward] == list(range(11))
    first, second = copying
    ahead, behind = [f"{n} forward" for n in range(1, 6)], [f"{n} backward" for n in (9, 8, 7, 6)]
    assert first.order == ["0 given", "10 given", *ahead, *behind]
    assert second.order == ["0 given", *(f"{n} forward" for n in range(1, 10)), "10 given"]
    # A copy from d pictures away overlaps by 20 - d of 20 + d columns.
    at = [0, *(20 - d for d in range(1, 11))]
    expected = [at[d] / (20 + d) for d in range(1, 10)]
    found = [iou(each.masks, truth[:, each.index]) for each in forward[1:10]]
    assert found == pytest.approx(expected)
    nearer = [at[d] / (20 + d) for d in (1, 2, 3, 4, 5, 4, 3, 2, 1)]
    assert [iou(each.masks, truth[:, each.index]) for each in both[1:10]] == pytest.approx(nearer)
    assert (np.mean(expected), np.mean(nearer)) == pytest.approx((0.617, 0.762), abs=5e-4)


def test_pictures_before_the_first_sampled_frame_are_tracked_backward_from_it(tracker, copying):
    truth = moving_square(6)
    shown = list(tracker.track(iter(make_pictures(6)), SampledMasks([0.3], truth[:, [3]])))
    assert [each.index for each in shown] == list(range(6))
    assert all(np.array_equal(each.masks, truth[:, 3]) for each in shown)
    [memory] = copying
    assert memory.order == ["3 given", "2 backward", "1 backward", "0 backward", "4 forward", "5 forward"]


def test_what_waits_too_long_is_tracked_without_the_next_sampled_frame(tracker, copying, monkeypatch):
    monkeypatch.setattr(propagation, "MOST_WAITING", 2)
    truth = moving_square(9)
    sampled = SampledMasks([0.3, 0.8], truth[:, [3, 8]])
    held, most = 0, 0

    def reading():
        nonlocal held, most
        for picture in make_pictures(9):
            held, most = held + 1, max(most, held + 1)
            yield picture

    shown = []
    for each in tracker.track(reading(), sampled):
        held -= 1
        shown.append(each)
    assert [each.index for each in shown] == list(range(9))
    assert most <= 2 + 3  # those that wait, the one that comes, its successor, and what is being given out
    [memory] = copying
    # 0 has no memory to be tracked from, 4 and 5 do not wait for 8.
    ahead, behind = ["4 forward", "5 forward"], ["7 backward", "6 backward"]
    assert memory.order == ["3 given", "2 backward", "1 backward", *ahead, "8 given", *behind]
    assert np.array_equal(shown[0].masks, truth[:, 3])


def test_forward_alone_no_picture_waits(tracker, copying):
    truth, read = moving_square(6), []
    pictures = (read.append(n) or picture for n, picture in enumerate(make_pictures(6)))
    for each in tracker.track(pictures, SampledMasks([0.0, 0.5], truth[:, [0, 5]]), both_ways=False):
        assert read[-1] <= each.index + 1  # the end of its time on screen is that of the next one's beginning


def test_the_next_sampled_frame_reaches_back_to_the_pictures_before_it(any_tracker):
    pictures, masks = make_pictures(6), make_masks(1, 4)
    probs = {}
    for both_ways in (True, False):
        for later in (1, 3):
            sampled = SampledMasks([0.0, 0.5], masks[:, [0, later]])
            shown = [each.masks for each in any_tracker.track(iter(pictures), sampled, both_ways=both_ways)]
            probs[both_ways, later] = np.stack(shown)[1:5]
    assert not np.array_equal(probs[True, 1], probs[True, 3])
    assert np.array_equal(probs[False, 1], probs[False, 3])


def test_sampled_frames_keep_the_masks_that_were_given(any_tracker):
    masks = make_masks(2, 3)
    shown = list(any_tracker.track(iter(make_pictures(7)), SampledMasks([0.0, 0.2, 0.4], masks)))
    assert len(shown) == 7
    assert all(each.masks.shape == (2, 48, 80) and each.masks.dtype == bool for each in shown)
    for index, known in ((0, 0), (2, 1), (4, 2)):
        assert np.array_equal(shown[index].masks, masks[:, known])


def test_a_sampled_frame_is_the_picture_on_screen_at_its_time(tracker):
    """Of a variable rate no picture may begin right then."""
    pictures = [Picture(time, each.pixels) for time, each in zip([0.0, 0.3, 0.7, 1.2], make_pictures(4), strict=True)]
    masks = make_masks(1, 3)
    shown = list(tracker.track(iter(pictures), SampledMasks([0.0, 0.5, 1.0], masks)))
    for index in range(3):  # on screen at 0, 0.5 and 1 s
        assert np.array_equal(shown[index].masks, masks[:, index])


def test_several_references_are_tracked_as_each_alone(tracker):
    pictures, masks = make_pictures(4), make_masks(2, 1)
    together = [each.masks for each in tracker.track(iter(pictures), SampledMasks([0.0], masks))]
    for reference in range(2):
        sampled = SampledMasks([0.0], masks[reference : reference + 1])
        alone = [each.masks[0] for each in tracker.track(iter(pictures), sampled)]
        assert np.mean([a != b[reference] for a, b in zip(alone, together, strict=True)]) < 1e-3


def test_a_reference_to_nothing_stays_empty_and_is_not_computed(tracker, monkeypatch):
    masks = make_masks(2, 1)
    masks[1] = False
    followed = []
    see = _Memory.see

    def counting(self, *args, **options):
        followed.append(self.session.get_obj_num())
        return see(self, *args, **options)

    monkeypatch.setattr(_Memory, "see", counting)
    shown = list(tracker.track(iter(make_pictures(3)), SampledMasks([0.0], masks)))
    assert followed == [1, 1, 1]
    assert not any(each.masks[1].any() for each in shown)
    followed.clear()
    assert len(list(tracker.track(iter(make_pictures(3)), SampledMasks([0.0], masks[1:])))) == 3
    assert followed == []


class ReadingModel:
    """Stores an empty entry for each picture, and fails where an entry is gone that SAM 2 would read."""

    def __init__(self, config: object) -> None:
        self.config, self.seen, self.most = config, set(), 0

    def __call__(self, session, *, frame, frame_idx, reverse):
        outputs = session.output_dict_per_obj[0]
        is_given = bool(session.mask_inputs_per_obj[0])
        given, tracked = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
        if not is_given:
            reach = range(1, self.config.max_object_pointers_in_encoder)
            reads = {frame_idx + step * (1 if reverse else -1) for step in reach}
            assert reads & self.seen <= tracked.keys()
            self.seen.add(frame_idx)
        (given if is_given else tracked)[frame_idx] = {}
        session.processed_frames = {frame_idx: frame}
        self.most = max(self.most, len(given) + len(tracked))
        return SimpleNamespace(pred_masks=torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(("both_ways", "most"), [(False, 7 + 1 + 16), (True, 7 + 1 + 3 * 16)])
def test_a_long_clip_takes_no_more_memory_than_a_short_one(tracker, both_ways, most, monkeypatch):
    model = ReadingModel(tracker.model.config)
    see = _Memory.see

    def seeing(self, *args, **options):
        self.model = model
        return see(self, *args, **options)

    monkeypatch.setattr(_Memory, "see", seeing)
    monkeypatch.setattr(tracker.encoder, "preprocess", lambda frames: torch.zeros(1, 3, 64, 64))
    times = [0.2, 0.6, 2.0, 2.4, *(2.5 + n for n in range(9)), 21.5, 31.5]
    sampled = SampledMasks(times, make_masks(1, len(times)))
    shown = list(tracker.track(iter(make_pictures(330)), sampled, both_ways=both_ways))
    assert [each.index for each in shown] == list(range(330))
    assert most - 16 < model.most <= most


def test_forgetting_changes_no_mask(tracker, monkeypatch):
    """What is dropped is what SAM 2 would not have read: it reads every given mask, so few are given here."""
    pictures = make_pictures(22)
    sampled = SampledMasks([0.0], make_masks(1, 1))
    found = [each.masks for each in tracker.track(iter(pictures), sampled)]
    monkeypatch.setattr(_Memory, "_forget", lambda self, index, backward: None)
    kept = [each.masks for each in tracker.track(iter(pictures), sampled)]
    assert np.array_equal(np.stack(found), np.stack(kept))


@pytest.mark.parametrize(("kind", "image_size"), [("sam2", 96), ("sam3_tracker", 84), ("edgetam", 128)])
def test_another_image_size_needs_no_other_weights(kind, image_size, request):
    checkpoint = request.getfixturevalue(KINDS[kind][0])
    tracker = MemoryMasks({"type": kind, "image_size": image_size, "checkpoint": checkpoint})
    assert tracker.model.config.image_size == image_size
    assert len(list(tracker.track(iter(make_pictures(3)), SampledMasks([0.0], make_masks(1, 1))))) == 3


def test_an_image_size_that_edgetams_memory_cannot_have_is_refused(edgetam_checkpoint):
    """Of 4 x 4 windows each has whole cells of 16 pixels; a published one has 16 x 16 windows."""
    encoder = build_frame_encoder({"type": "edgetam", "image_size": 64})
    config = encoder.load_config(edgetam_checkpoint, None, config_class=VIDEO_CLASSES["edgetam"].config)
    config.perceiver_resampler_num_latents_2d = 16
    with pytest.raises(ValueError, match="image_size 160: EdgeTAM's memory needs a multiple of 64"):
        propagation._at_image_size(config, 160, encoder.stride)
    assert propagation._at_image_size(config, 192, encoder.stride).image_size == 192


def test_a_checkpoint_without_a_memory_is_refused(segmenter, sam2_checkpoint, tmp_path):
    shutil.copytree(sam2_checkpoint, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    images_only = {name: weight for name, weight in weights.items() if not name.startswith("memory_")}
    save_file(images_only, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is no whole Sam2VideoModel, it lacks for example memory_"):
        MemoryMasks({**segmenter, "checkpoint": str(tmp_path)})


def test_published_layout_loads_as_an_image_model_and_as_a_video_model(sam2_checkpoint):
    assert isinstance(Sam2VideoModel.from_pretrained(sam2_checkpoint), Sam2VideoModel)
