"""What the page answers and refuses, without a browser and without Gradio."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from aurora_rl.data.footage import open_footage
from aurora_rl.inference.pipeline import AuroraPipeline, ClipAnswer, ReferenceAnswer, WindowAnswer
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.report.pages import page_environment
from aurora_rl.serve.examples import SyntheticExamples
from aurora_rl.serve.request import (
    MAX_REFERENCE_LENGTH,
    Limits,
    RequestAnswerer,
    RequestError,
    check_clip,
    error_card,
    read_references,
    read_seconds,
)
from aurora_rl.serve.waveform import envelope

GREY = [np.full((64, 64, 3), 90, np.uint8)] * 8  # two seconds
LIMITS = Limits(max_seconds=3.0, max_mb=1)


@pytest.fixture
def answerer(shown_checkpoint, tmp_path) -> RequestAnswerer:
    folder = tmp_path / "page"
    folder.mkdir()
    return RequestAnswerer(AuroraPipeline(shown_checkpoint, max_completion_length=2, device="cpu"), LIMITS, folder)


def test_references_are_the_lines_that_are_not_empty():
    assert read_references("\n The drum. \r\n\n\tThe dog on the left\n") == ["The drum.", "The dog on the left"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "There is no reference: describe what to find"),
        (" \n\t\n", "There is no reference: describe what to find"),
        ("\n".join("abcdefgh"), "There are 8 references, at most 7 are answered at once"),
        ("x" * (MAX_REFERENCE_LENGTH + 1), "has 301 characters: give at most 300"),
    ],
)
def test_references_that_make_no_sense_are_refused(text, complaint):
    with pytest.raises(RequestError, match=complaint):
        read_references(text)


def test_length_is_that_of_the_longest_track(film):
    assert read_seconds(film(GREY, name="mute.mp4"), enough=60) == pytest.approx(2.0, abs=0.3)
    sound = np.zeros(16_000 * 5, np.float32)
    assert read_seconds(film(GREY, waveform=sound), enough=60) == pytest.approx(5.0, abs=0.3)


def test_length_does_not_count_from_zero(film):
    path = film(GREY, times=[100 + number / 4 for number in range(8)], name="late.mkv")
    assert read_seconds(path, enough=60) == pytest.approx(2.0, abs=0.3)


def test_length_of_a_stream_without_a_header_is_found(film):
    path = film(GREY, name="recorded.webm.mkv", options={"live": "1"})  # as browsers record: no length is noted
    assert read_seconds(path, enough=60) == pytest.approx(2.0, abs=0.3)


def test_a_clip_that_is_too_long_is_refused(film):
    with pytest.raises(RequestError, match=r"^clip.mp4 is longer than 1.5 s: cut it and upload the part.$"):
        check_clip(film(GREY), Limits(max_seconds=1.5))
    check_clip(film(GREY), Limits(max_seconds=2.5))


def test_a_clip_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "large.mp4"
    path.write_bytes(bytes(2_100_000))
    with pytest.raises(RequestError, match=r"^large.mp4 has 2.0 MB: give a clip of at most 1 MB.$"):
        check_clip(path, LIMITS)


@pytest.mark.parametrize("content", [b"", b"no video at all", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"])
def test_what_is_no_video_is_refused_without_naming_a_folder(tmp_path, content):
    path = tmp_path / "holiday.mp4"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"^holiday.mp4 cannot be read as a video: give an MP4") as refused:
        check_clip(path, LIMITS)
    assert str(tmp_path) not in str(refused.value)


def test_a_clip_that_is_gone_is_to_be_uploaded_again(tmp_path):
    with pytest.raises(RequestError, match="no longer there: uploads are removed after an hour. Upload it again"):
        check_clip(tmp_path / "gone.mp4", LIMITS)


def test_no_clip_is_told(answerer):
    with pytest.raises(RequestError, match="There is no clip: upload one"):
        answerer.answer(None, "The drum.")


def test_an_answer_is_a_video_a_waveform_and_chains(answerer, film):
    sound = np.sin(np.arange(32_000) / 5).astype(np.float32) / 2
    shown = answerer.answer(film(GREY, waveform=sound), "The drum.\nThe dog.")
    assert shown.overlay.is_relative_to(answerer.folder)
    overlay = open_footage(shown.overlay)
    pictures = np.stack([picture.pixels for picture in overlay.pictures()])
    assert pictures.shape == (8, 64, 64, 3)
    assert overlay.waveform is not None
    coloured = np.ptp(pictures.astype(int), axis=-1) > 40  # the clip is grey
    assert 0.01 < coloured.mean() < 0.99
    assert re.findall(r"</i>(The \w+\.)</h3>", shown.chains) == ["The drum.", "The dog."]
    assert shown.waveform.count("<i style") == 4  # frames that the model saw
    assert 'data-seconds="2.' in shown.waveform


def test_only_the_last_position_of_a_prompt_is_projected(answerer, film, projected):
    answerer.answer(film(GREY), "The drum.")
    assert projected and set(projected) == {1}


def test_a_clip_without_sound_is_answered_and_says_so(answerer, film):
    shown = answerer.answer(film(GREY), "The drum.")
    assert "no sound; below" in shown.waveform
    assert "Note: there is no sound: answered by the pictures alone." in shown.chains


def test_damage_that_shows_late_is_told_without_naming_a_folder(answerer, film):
    path = film(GREY)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    content[start:end] = bytes(end - start)  # the list of packets is whole, what they hold is not
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"^[CT].*video clip\.mp4.*\.$") as refused:
        answerer.answer(path, "The drum.")
    assert str(path.parent) not in str(refused.value)


def test_sound_without_pictures_is_refused(answerer, tmp_path):
    soundfile.write(tmp_path / "sound.ogg", np.zeros(16_000), 16_000)
    with pytest.raises(RequestError, match=r"^sound\.ogg has no video stream: give a video"):
        answerer.answer(tmp_path / "sound.ogg", "The drum.")


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (OSError(28, "No space left on device", "/srv/page"), "could not write the answer: try again later"),
        (torch.OutOfMemoryError("/srv/page"), "does not fit into memory: cut it"),
    ],
)
def test_problems_of_the_server_are_shown_without_their_details(answerer, film, monkeypatch, error, complaint):
    def fail(**_arguments):
        raise error

    monkeypatch.setattr(answerer, "pipeline", fail)
    with pytest.raises(RequestError, match=complaint) as refused:
        answerer.answer(film(GREY), "The drum.")
    assert "srv" not in str(refused.value)


def test_text_from_outside_reaches_no_markup():
    assert "<b>" not in error_card(RequestError("<b>.mp4 cannot be read"))
    window = WindowAnswer(0.0, 2.0, "<i>Look:</i> [SEG]", {"look": "<script>", "answer": "x"}, "<u>", has_seg=True)
    html = rendered(ReferenceAnswer("<img src=x>", (window,), np.ones((1, 2, 2), np.float32)))
    assert not re.search("<(img|script|u)>?", html)
    assert "&lt;img src=x&gt;" in html
    assert '<span class="seg">[SEG]</span>' in html


def test_steps_are_shown_in_order_window_by_window():
    windows = tuple(
        WindowAnswer(start, start + 2, "text", {"look": f"seen {start:g}", "read": "asked"}, "drum", has_seg=False)
        for start in (0.0, 2.0)
    )
    html = rendered(ReferenceAnswer("The drum.", windows, np.ones((2, 2, 2), np.float32)))
    assert re.findall(r"<b>(\w+)</b><span>([^<]*)", html) == [
        ("Look", "seen 0"),
        ("Read", "asked"),
        ("Look", "seen 2"),
        ("Read", "asked"),
    ]
    assert re.findall("<h4>(.*?)</h4>", html) == ["0 to 2 s", "2 to 4 s"]
    assert "mask on 100.0 % of the picture" in html
    assert html.count("It asks for no mask") == 2


@pytest.mark.parametrize(("category", "shown"), [("null", "no such target"), (None, "no answer"), ("drum", "drum")])
def test_verdict_is_the_category_or_that_there_is_none(category, shown):
    window = WindowAnswer(0.0, 2.0, "text", {}, category, has_seg=True)
    html = rendered(ReferenceAnswer("The drum.", (window,), np.zeros((1, 2, 2), np.float32)))
    assert f"<strong>{shown}</strong>" in html


def rendered(*references: ReferenceAnswer) -> str:
    answer = ClipAnswer(references, (0.0,), footage=open_footage(GREY), seconds={"read": 0.1}, notes=())
    return page_environment("aurora_rl.serve").get_template("answer.html.j2").render(answer=answer, colours=["red"] * 2)


def test_envelope_is_the_peak_of_each_part_against_the_loudest():
    waveform = np.zeros(32_000, np.float32)
    waveform[100], waveform[9_000], waveform[20_000] = 0.25, -0.5, 0.1
    assert envelope(waveform, 2.0, 4).tolist() == pytest.approx([0.5, 1.0, 0.2, 0.0])
    assert envelope(waveform, 4.0, 4).tolist() == pytest.approx([1.0, 0.2, 0.0, 0.0])  # the sound ends at 2 s


def test_envelope_does_not_blow_up_what_is_almost_silent():
    assert envelope(np.full(16_000, 0.002, np.float32), 1.0, 2).tolist() == pytest.approx([0.1, 0.1])
    assert envelope(np.zeros(16_000, np.float32), 1.0, 2).tolist() == [0.0, 0.0]


def test_examples_are_clips_of_the_models_length_with_sound_each_another(tmp_path):
    examples = SyntheticExamples(tmp_path, ClipOptions(fps=2.0, num_frames=6))
    (first, references), (second, _) = examples.write_next(), examples.write_next()
    assert first.is_relative_to(tmp_path)
    footage = open_footage(first)
    assert [picture.time for picture in footage.sampled(2.0)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert footage.waveform is not None and np.abs(footage.waveform).max() > 0.001
    assert len(references) == 2 and all(reference.strip() for reference in references)
    assert first.read_bytes() != second.read_bytes()


def test_a_model_of_single_frames_has_examples_too(tmp_path):
    path, _ = SyntheticExamples(tmp_path, ClipOptions(fps=1.0, num_frames=1)).write_next()
    assert len(list(open_footage(Path(path)).pictures())) == 1
