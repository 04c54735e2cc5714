"""Masks of every picture from those of some: by SAM 2's memory as transformers has it, or by the nearest in time."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from aurora_rl.data.footage import Picture
from aurora_rl.inference.propagation import NearestMasks, Sam2Masks, SampledMasks, _Memory, nearest

SIZE = 64


@pytest.fixture
def segmenter(sam2_checkpoint) -> dict:
    return {"type": "sam2", "image_size": SIZE, "checkpoint": sam2_checkpoint}


@pytest.fixture
def tracker(segmenter) -> Sam2Masks:
    return Sam2Masks(segmenter)


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


# SAM 2


def stock_logits(tracker: Sam2Masks, pictures: list[Picture], given: np.ndarray, at: int) -> torch.Tensor:
    """Low-resolution logits (F, h, w) of transformers' own session over a whole video, one object's mask given."""
    video = torch.cat([tracker.encoder.preprocess(picture.pixels[None]) for picture in pictures])
    session = Sam2VideoInferenceSession(video=video, video_height=SIZE, video_width=SIZE, dtype=torch.float32)
    mask = torch.nn.functional.interpolate(torch.from_numpy(given).float()[None, None], (SIZE, SIZE), mode="bilinear")
    session.add_mask_inputs(session.obj_id_to_idx(0), at, mask > 0.5)
    session.obj_with_new_inputs = [0]
    tracker.model(session, frame_idx=at)
    outputs = tracker.model.propagate_in_video_iterator(session, start_frame_idx=at)
    return torch.stack([output.pred_masks[0, 0] for output in outputs])


def test_memory_tracks_as_transformers_does(tracker):
    # As many as SAM 2 keeps pointers of: in a shorter video transformers scales the time between them by its length.
    pictures, masks = make_pictures(16), make_masks(1, 1)
    expected = stock_logits(tracker, pictures, masks[0, 0], 0)
    memory = _Memory(tracker.model, 1, torch.device("cpu"))
    found = []
    for index, picture in enumerate(pictures):
        given = torch.from_numpy(masks[:, 0]) if index == 0 else None
        found.append(memory.see(index, tracker.encoder.preprocess(picture.pixels[None]), given))
    assert expected[1:].std() > 0.01
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-3, atol=1e-3)


def test_what_is_remembered_decides_what_is_tracked(tracker):
    pictures = make_pictures(4)
    masks = make_masks(1, 2)
    logits = [stock_logits(tracker, pictures, masks[0, frame], 0)[1:] for frame in range(2)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_sampled_frames_keep_the_masks_that_were_given(tracker):
    masks = make_masks(2, 3)
    shown = list(tracker.track(iter(make_pictures(7)), SampledMasks([0.0, 0.2, 0.4], masks)))
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

    def counting(self, *args):
        followed.append(self.session.get_obj_num())
        return see(self, *args)

    monkeypatch.setattr(_Memory, "see", counting)
    shown = list(tracker.track(iter(make_pictures(3)), SampledMasks([0.0], masks)))
    assert followed == [1, 1, 1]
    assert not any(each.masks[1].any() for each in shown)
    followed.clear()
    assert len(list(tracker.track(iter(make_pictures(3)), SampledMasks([0.0], masks[1:])))) == 3
    assert followed == []


def test_a_long_clip_takes_no_more_memory_than_a_short_one(tracker):
    pixel_values = tracker.encoder.preprocess(make_pictures(1)[0].pixels[None])
    memory = _Memory(tracker.model, 1, torch.device("cpu"))
    given = torch.from_numpy(make_masks(1, 1)[:, 0])
    held = []
    for index in range(48):
        memory.see(index, pixel_values, given if index % 4 == 0 else None)
        outputs = memory.session.output_dict_per_obj[0]
        frames = [frame for kind in outputs.values() for frame in kind.values()]
        held.append(sum(value.numel() for frame in frames for value in frame.values()))
    assert not memory.session.processed_frames
    assert not memory.session.mask_inputs_per_obj[0]
    assert max(held[28:]) <= max(held[:28])


def test_forgetting_changes_no_mask(tracker, monkeypatch):
    """What is dropped is what SAM 2 would not have read: it reads every given mask, so few are given here."""
    pictures = make_pictures(22)
    sampled = SampledMasks([0.0], make_masks(1, 1))
    found = [each.masks for each in tracker.track(iter(pictures), sampled)]
    monkeypatch.setattr(_Memory, "_forget", lambda self, index: None)
    kept = [each.masks for each in tracker.track(iter(pictures), sampled)]
    assert np.array_equal(np.stack(found), np.stack(kept))


def test_another_image_size_needs_no_other_weights(segmenter):
    tracker = Sam2Masks({**segmenter, "image_size": 96})
    assert tracker.model.config.image_size == 96
    assert len(list(tracker.track(iter(make_pictures(3)), SampledMasks([0.0], make_masks(1, 1))))) == 3


def test_a_checkpoint_without_a_memory_is_refused(segmenter, sam2_checkpoint, tmp_path):
    shutil.copytree(sam2_checkpoint, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    images_only = {name: weight for name, weight in weights.items() if not name.startswith("memory_")}
    save_file(images_only, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is no whole Sam2VideoModel, it lacks for example memory_"):
        Sam2Masks({**segmenter, "checkpoint": str(tmp_path)})


def test_published_layout_loads_as_an_image_model_and_as_a_video_model(sam2_checkpoint):
    assert isinstance(Sam2VideoModel.from_pretrained(sam2_checkpoint), Sam2VideoModel)
