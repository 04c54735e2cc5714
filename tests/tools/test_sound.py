"""Tools on sounds whose truth is known."""

from pathlib import Path

import numpy as np
import pytest

from aurora_rl.tools.sound import (
    SOUND_TOOLS,
    EventClassifier,
    beats_per_minute,
    describe,
    fundamental,
    load_tools,
    onset_times,
    voiced_spans,
)

RATE = 16_000


def times(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * RATE)) / RATE


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * times(seconds))).astype(np.float32)


def clicks(starts: list[float], seconds: float) -> np.ndarray:
    sound, noise = np.zeros(int(seconds * RATE), np.float32), np.random.default_rng(0)
    for start in starts:
        sound[int(start * RATE) : int(start * RATE) + 80] = noise.uniform(-0.8, 0.8, 80)
    return sound


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)


def voice_like() -> np.ndarray:
    """Harmonics of 120 Hz from 1.0 to 2.2 s, four syllables a second."""
    sound, at = np.zeros(3 * RATE, np.float32), times(3.0)[RATE : int(2.2 * RATE)]
    harmonics = np.sum([np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 8)], axis=0)
    sound[RATE : int(2.2 * RATE)] = 0.3 * (0.55 - 0.45 * np.cos(2 * np.pi * 4 * (at - 1))) * harmonics
    return sound


@pytest.mark.parametrize("hertz", [110.0, 440.0, 1000.0])
def test_the_pitch_of_a_tone_is_its_frequency(hertz: float) -> None:
    assert fundamental(tone(hertz, 0.2), RATE, (50.0, 2000.0)) == pytest.approx(hertz, rel=0.005)


def test_a_tone_with_overtones_has_the_pitch_of_its_fundamental() -> None:
    sound = 0.2 * tone(220.0, 0.2) + tone(440.0, 0.2) + 0.5 * tone(660.0, 0.2)
    assert fundamental(sound, RATE, (50.0, 2000.0)) == pytest.approx(220.0, rel=0.01)


def test_a_rising_tone_is_followed_window_by_window() -> None:
    chirp = np.sin(2 * np.pi * (200 * times(4.0) + 100 * times(4.0) ** 2)).astype(np.float32)  # 200 to 1,000 Hz
    found = [fundamental(chirp[int(s * RATE) : int((s + 0.05) * RATE)], RATE, (50.0, 2000.0)) for s in (0.5, 1.5, 3.0)]
    assert found == pytest.approx([305.0, 505.0, 805.0], rel=0.03)


def test_noise_and_silence_have_no_pitch_beat_or_voice() -> None:
    for sound in (noise(2.0), np.zeros(2 * RATE, np.float32)):
        assert SOUND_TOOLS["pitch"](sound, RATE) == "No note can be made out."
        assert SOUND_TOOLS["tempo"](sound, RATE) == "There is no steady beat."
        assert SOUND_TOOLS["speech"](sound, RATE) == "Nothing sounds like a voice."
    assert onset_times(noise(2.0), RATE) == pytest.approx([0.0], abs=0.02)  # it begins once
    assert onset_times(np.zeros(RATE, np.float32), RATE) == []


@pytest.mark.parametrize("tempo", [80, 100, 120, 150])
def test_the_tempo_of_clicks_is_theirs(tempo: int) -> None:
    sound = clicks(list(np.arange(0.1, 3.9, 60 / tempo)), 4.0)
    assert beats_per_minute(sound, RATE) == pytest.approx(tempo, abs=0.5)


def test_each_click_begins_once() -> None:
    starts = [0.2, 0.7, 1.0, 1.9]
    assert onset_times(clicks(starts, 2.5), RATE) == pytest.approx(starts, abs=0.04)


def test_loudness_and_silence_are_told_by_windows() -> None:
    sound = np.concatenate([tone(440.0), np.zeros(RATE, np.float32)])  # 0.5 / sqrt(2) is -9 dB
    assert SOUND_TOOLS["loudness"](sound, RATE) == "Loudness: 0.0-1.0 s -9 dB, 1.0-2.0 s silent."
    assert SOUND_TOOLS["silence"](np.zeros(RATE, np.float32), RATE) == "100% of the time is silent."
    assert SOUND_TOOLS["duration"](sound, RATE) == "The sound lasts 2.0 s."


def test_a_voice_is_found_where_it_is_and_a_steady_tone_is_none() -> None:
    ((start, end),) = voiced_spans(voice_like(), RATE)
    assert (start, end) == pytest.approx((1.0, 2.2), abs=0.1)
    assert voiced_spans(tone(220.0), RATE) == []


@pytest.mark.parametrize("count", [0, 1, 20, 400])
def test_a_sound_shorter_than_a_window_is_told_about_in_words(count: int) -> None:
    for rate in (8_000, 44_100):
        for tool in SOUND_TOOLS.values():
            assert "nan" not in tool(tone(440.0)[:count], rate).lower()


def test_what_is_no_waveform_is_refused_by_every_tool() -> None:
    for sound in (np.zeros((2, 100), np.float32), np.array([0.0, np.nan], np.float32)):
        for tool in SOUND_TOOLS.values():
            with pytest.raises(ValueError, match="expected finite numbers"):
                tool(sound, RATE)


def test_tools_are_loaded_by_name_and_described_by_their_docstrings() -> None:
    tools = load_tools(["tempo", "aurora_rl.tools.sound:pitch"])
    assert list(tools) == ["tempo", "pitch"]
    assert describe(tools["tempo"]) == "Tell the tempo in beats a minute"
    for names, said in ((["bpm"], "unknown tool 'bpm'"), (["tempo"] * 2, "each once"), (["events"], "`classifier`")):
        with pytest.raises(ValueError, match=said):
            load_tools(names)


def test_a_classifier_tells_its_labels(tmp_path: Path) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = ASTConfig(**sizes, max_length=64, num_mel_bins=16, id2label={0: "Dog", 1: "Bell"}, label2id={"Dog": 0})
    ASTForAudioClassification(config).save_pretrained(tmp_path)
    ASTFeatureExtractor(num_mel_bins=16, max_length=64).save_pretrained(tmp_path)
    told = EventClassifier(tmp_path, top=1)(tone(440.0)[:500], 44_100)
    assert told.startswith(("A classifier hears: Dog", "A classifier hears: Bell"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        EventClassifier(tmp_path / "nowhere")
