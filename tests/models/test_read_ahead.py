"""Batches encoded ahead are those encoded in turn; one batch ahead, no thread left, no GPU's work in the thread."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aurora_rl.data.containers import MediaError
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.read_ahead import ReadAhead, encoded_batches


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read ahead")]


def is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def wait_for(ahead: ReadAhead) -> None:
    """Until all that has begun is done."""
    for future in ahead._begun.values():
        future.exception()


@pytest.fixture
def loads(encode: SampleEncoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the rows whose media are loaded."""
    keys: list[str] = []
    load = encode.load

    def counted(sample: AVSample) -> AVClip:
        keys.append(sample.key)
        return load(sample)

    monkeypatch.setattr(encode, "load", counted)
    return keys


def assert_same(item: EncodedSample, expected: EncodedSample) -> None:
    assert item.sample == expected.sample
    assert item.prompt.prompt_ids == expected.prompt.prompt_ids
    assert item.prompt.features.keys() == expected.prompt.features.keys()
    for name, value in expected.prompt.features.items():
        assert torch.equal(item.prompt.features[name], value), name
    assert torch.equal(item.frame_inputs, expected.frame_inputs)
    assert torch.equal(item.gt_masks, expected.gt_masks)


@pytest.mark.parametrize("uses_gpu", [False, True])
def test_batches_are_those_encoded_in_turn(
    encode: SampleEncoder, train_samples: list[AVSample], monkeypatch: pytest.MonkeyPatch, uses_gpu: bool
) -> None:
    monkeypatch.setattr(encode, "uses_gpu", uses_gpu)
    batches = [train_samples[:2], train_samples[2:4], train_samples[4:5]]
    encoded = list(encoded_batches(encode, batches))
    assert [len(batch) for batch in encoded] == [2, 2, 1]
    for item, sample in zip(sum(encoded, []), train_samples[:5], strict=True):
        assert_same(item, encode(sample))
    assert threads() == []


def test_one_batch_is_read_ahead_and_no_more(
    encode: SampleEncoder, train_samples: list[AVSample], loads: list[str]
) -> None:
    batches = [train_samples[start : start + 2] for start in range(0, 6, 2)]
    with contextlib.closing(encoded_batches(encode, iter(batches))) as encoded:
        next(encoded)
        next(encoded)
        assert set(loads) <= {sample.key for sample in train_samples[:6]} and len(loads) <= 6
        next(encoded)
    with ReadAhead(encode) as ahead:
        loads.clear()
        ahead.begin(batches[0])
        wait_for(ahead)
        assert loads == [sample.key for sample in batches[0]]
        ahead.begin(batches[1])
        assert [sample for sample in ahead._begun] == batches[1], "what was not taken is dropped"


def test_an_iterator_that_is_left_early_leaves_no_thread(encode: SampleEncoder, train_samples: list[AVSample]) -> None:
    with contextlib.closing(encoded_batches(encode, [[sample] for sample in train_samples[:4]])) as encoded:
        next(encoded)
        assert len(threads()) == 1
    assert threads() == []


def test_nothing_to_encode_starts_no_thread(encode: SampleEncoder) -> None:
    assert list(encoded_batches(encode, [])) == []
    with ReadAhead(encode) as ahead:
        ahead.begin([])
        assert ahead.take([]) == [] and threads() == []


def test_an_error_waits_for_the_batch_that_has_the_sample(
    encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
) -> None:
    bad = dataclasses.replace(train_samples[2], audio_path=str(tmp_path / "none.wav"))
    encoded = encoded_batches(encode, [train_samples[:2], [bad]])
    assert len(next(encoded)) == 2
    with pytest.raises(MediaError, match=f"{bad.uid}.*none.wav"):
        next(encoded)
    assert threads() == []


@pytest.mark.parametrize(("uses_gpu", "where"), [(False, "ahead"), (True, "in turn")])
def test_an_image_encoder_on_a_gpu_runs_where_the_sample_is_taken(
    encode: SampleEncoder, train_samples: list[AVSample], monkeypatch: pytest.MonkeyPatch, uses_gpu: bool, where: str
) -> None:
    ran: list[str] = []
    frame_inputs: Callable[[AVSample, AVClip], torch.Tensor] = encode.frame_inputs

    def watched(sample: AVSample, clip: AVClip) -> torch.Tensor:
        ran.append("in turn" if is_main() else "ahead")
        return frame_inputs(sample, clip)

    monkeypatch.setattr(encode, "frame_inputs", watched)
    monkeypatch.setattr(encode, "uses_gpu", uses_gpu)
    with ReadAhead(encode) as ahead:
        ahead.begin(train_samples[:1])
        ahead.take(train_samples[:1])
    assert ran == [where]


def test_a_sample_that_differs_from_the_one_begun_is_encoded_itself(
    encode: SampleEncoder, train_samples: list[AVSample]
) -> None:
    asked = dataclasses.replace(train_samples[0], reference=train_samples[1].reference)
    with ReadAhead(encode) as ahead:
        ahead.begin(train_samples[:1])
        [item] = ahead.take([asked])
    assert_same(item, encode(asked))
