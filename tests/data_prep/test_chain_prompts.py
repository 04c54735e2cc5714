import base64
import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.chain_writing.chain_checks import ChainLimits
from aurora_rl.chain_writing.chain_prompts import (
    MediaArguments,
    chain_messages,
    chain_record,
    chain_schema,
    read_chain_reply,
)
from aurora_rl.data.sample import AVSample
from aurora_rl.endpoint.errors import BadReplyError


@pytest.fixture
def sample(tmp_path) -> AVSample:
    for index in range(2):
        Image.new("RGB", (200, 100), (0, 120 * index, 0)).save(tmp_path / f"{index}.png")
    soundfile.write(tmp_path / "audio.wav", np.array([[0.5, -0.25], [1.0, 1.0]] * 800), 16_000, subtype="PCM_16")
    return AVSample(
        uid="clip_hair-dryer_1",
        row=7,
        split="train",
        media_id="clip",
        category="hair-dryer",
        reference="The thing {that} hums.",
        fps=2.0,
        frame_paths=(str(tmp_path / "0.png"), str(tmp_path / "1.png")),
        audio_path=str(tmp_path / "audio.wav"),
        mask_paths=(),
    )


def replace(sample: AVSample, **changes: object) -> AVSample:
    return AVSample(**{**vars(sample), **changes})


def user_parts(sample: AVSample, **options: object) -> list[dict]:
    return chain_messages(sample, MediaArguments(**options))[1]["content"]


def test_frames_are_sent_in_order_scaled_down_to_the_longest_side(sample):
    urls = [part["image_url"]["url"] for part in user_parts(sample, max_side=50) if part["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) for url in urls]
    assert [image.size for image in images] == [(50, 25), (50, 25)]
    greens = [np.asarray(image)[..., 1].mean() for image in images]
    assert greens == pytest.approx([0, 120], abs=3)


def test_small_frames_keep_their_size(sample):
    url = next(part["image_url"]["url"] for part in user_parts(sample) if part["type"] == "image_url")
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (200, 100)


def test_sound_is_sent_as_a_mono_wav_of_16_khz(sample):
    (audio,) = (part["input_audio"] for part in user_parts(sample) if part["type"] == "input_audio")
    assert audio["format"] == "wav"
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(audio["data"])))
    assert rate == 16_000 and waveform.shape == (1600,)
    assert waveform[:4] == pytest.approx([0.125, 1.0, 0.125, 1.0], abs=1e-3)  # the mean of the channels


def test_a_clip_without_sound_sends_none_and_says_so(sample):
    parts = user_parts(replace(sample, audio_path=None))
    assert {part["type"] for part in parts} == {"text", "image_url"}
    assert "The clip has no sound." in [part.get("text") for part in parts]


def test_media_can_be_left_out_for_models_that_do_not_hear_or_see(sample):
    assert {part["type"] for part in user_parts(sample, media="frames")} == {"text", "image_url"}
    assert isinstance(user_parts(replace(sample, frame_paths=("gone.png",)), media="none"), str)


def test_the_model_is_told_the_sentence_and_the_truth_and_to_keep_it_to_itself(sample):
    system, user = chain_messages(sample, MediaArguments(media="none"))
    assert (system["role"], user["role"]) == ("system", "user")
    assert "The sentence: The thing {that} hums.\n" in user["content"]
    assert "it refers to the hair-dryer." in user["content"]
    assert "Never say or hint that an answer, a category or a label was given" in system["content"]
    null = chain_messages(replace(sample, category="null"), MediaArguments(media="none"))[1]["content"]
    assert "the sentence refers to nothing in this clip" in null


def test_a_correction_shows_the_attempt_and_asks_not_to_mention_it(sample):
    system, user = chain_messages(sample, MediaArguments(media="none"), wrong="Look: I see a bell.")
    assert "<<<\nLook: I see a bell.\n>>>" in user["content"]
    assert "Do not mention the attempt" in system["content"]


def test_the_schema_bounds_each_step_and_allows_the_categories_alone():
    step = {"type": "string", "minLength": 1, "maxLength": 9}
    assert chain_schema(["drum", "null"], ChainLimits(max_step_chars=9)) == {
        "type": "object",
        "properties": {
            "look": step,
            "listen": step,
            "read": step,
            "answer_category": {"type": "string", "enum": ["drum", "null"]},
        },
        "required": ["look", "listen", "read", "answer_category"],
        "additionalProperties": False,
    }


GOOD = {
    "look": "Look: I see a drum.",
    "listen": "I hear a drum.",
    "read": "It asks for what sounds.",
    "answer_category": "Drum",
}


@pytest.mark.parametrize("form", ["{}", "```json\n{}\n```", "<think>a {{plan}}</think>\n{}", "Here it is: {} Bye."])
def test_a_reply_is_read_also_where_the_model_adds_to_it(form):
    text = form.replace("{}", json.dumps(GOOD)).replace("{{", "{").replace("}}", "}")
    reply = read_chain_reply(text, "drum", ChainLimits())
    assert reply.steps == {
        "look": "I see a drum.",
        "listen": "I hear a drum.",
        "read": "It asks for what sounds.",
    }
    assert reply.repairs == ("label",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "invalid_json"),
        ("I see a drum.", "invalid_json"),
        ('{"look": "I see', "invalid_json"),
        ("[1, 2]", "invalid_json"),
        ("{" * 100_000, "invalid_json"),
        ('{"a":' * 100_000, "invalid_json"),
        (json.dumps(GOOD | {"answer_category": "bell"}), "wrong_category"),
        (json.dumps(GOOD | {"answer_category": None}), "wrong_category"),
        (json.dumps({name: text for name, text in GOOD.items() if name != "listen"}), "missing_step"),
        (json.dumps(GOOD | {"listen": 7}), "missing_step"),
        (json.dumps(GOOD | {"read": "The target is the drum."}), "second_answer"),
    ],
)
def test_a_reply_that_cannot_be_used_has_a_reason(text, reason):
    with pytest.raises(BadReplyError) as error:
        read_chain_reply(text, "drum", ChainLimits())
    assert error.value.reason == reason


def test_the_type_of_a_reference_is_handed_on_where_the_benchmark_tells_it(sample):
    assert "reference_type" not in chain_record(sample, GOOD, generator="strong")
    record = chain_record(replace(sample, reference_type="audio"), GOOD, generator="strong")
    assert record["reference_type"] == "audio"
