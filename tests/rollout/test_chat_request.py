"""What goes to the server is what the prompt holds: the conversation in its order, every pixel and sample unchanged."""

import base64
import io

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.models.mllm.base import EnginePrompt
from aurora_rl.rollout.chat_request import MEDIA_IO_OPTIONS, chat_request

RATE = 16_000
TEXT = {"type": "text", "text": "the barking dog"}


def clip(num_frames: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (num_frames, 30, 46, 3), dtype=np.uint8)
    return frames, rng.uniform(-1, 1, 20_001).astype(np.float32)


def prompt(kinds: list[str], *, interleaved: bool = False, video: bool = True, audio: bool = True) -> EnginePrompt:
    frames, waveform = clip()
    media = {"video": [(frames, {"fps": 2.0})]} if video else {}
    media |= {"audio": [(waveform, RATE)]} if audio else {}
    options = {"do_resize": False, "fps": 2.0} | ({"use_audio_in_video": True} if interleaved else {})
    content = [TEXT if kind == "text" else {"type": kind} for kind in kinds]
    return EnginePrompt([1, 2], [{"role": "user", "content": content}], media, options)


def parts_of(request: dict) -> list[dict]:
    return request["messages"][0]["content"]


def data_of(url: str, head: str) -> list[bytes]:
    assert url.startswith(head)
    return [base64.b64decode(data, validate=True) for data in url.removeprefix(head).split(",")]


def test_frames_go_as_images_and_the_sound_as_floats():
    frames, waveform = clip()
    request = chat_request(prompt(["video", "audio", "text"]))
    video, audio, text = parts_of(request)
    images = [Image.open(io.BytesIO(data)) for data in data_of(video["video_url"]["url"], "data:video/jpeg;base64,")]
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), frames)
    (wav,) = data_of(audio["audio_url"]["url"], "data:audio/wav;base64,")
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    assert rate == RATE and np.array_equal(samples, waveform)
    assert text == TEXT
    assert request["mm_processor_kwargs"] == {"do_resize": False, "fps": 2.0}
    assert request["media_io_kwargs"] == MEDIA_IO_OPTIONS


def test_interleaved_sound_goes_inside_the_video():
    frames, waveform = clip()
    (video, text) = parts_of(chat_request(prompt(["video", "text"], interleaved=True)))
    (file,) = data_of(video["video_url"]["url"], "data:video/x-matroska;base64,")
    with av.open(io.BytesIO(file)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(file)) as container:
        assert container.streams.audio[0].rate == RATE
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.array_equal(np.stack(pictures), frames)
    assert np.array_equal(sound, waveform)
    assert text == TEXT


def test_a_prompt_of_text_has_no_options_of_media():
    assert chat_request(prompt(["text"], video=False, audio=False)) == {
        "messages": [{"role": "user", "content": [TEXT]}]
    }


@pytest.mark.parametrize(
    ("kinds", "given", "message"),
    [
        (["audio", "text"], {}, "too few parts for its video"),
        (["video", "text"], {}, "too few parts for its audio"),
        (["video", "audio"], {"audio": False}, "more audio parts than there are media for"),
        (["video"], {"audio": False, "interleaved": True}, "more video parts than there are media for"),
    ],
)
def test_parts_and_media_that_do_not_match_are_an_error(kinds, given, message):
    with pytest.raises(ValueError, match=message):
        chat_request(prompt(kinds, **given))
