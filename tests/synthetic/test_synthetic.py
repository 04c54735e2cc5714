import csv
import filecmp
import itertools
import json
import re
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from aurora_rl.data.media import load_clip, loudness_dbfs, read_masks, read_waveform
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.data.sample import NULL_CATEGORY
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark, writer
from aurora_rl.synthetic import scene as scene_module
from aurora_rl.synthetic.clips import make_clip, make_null_clip
from aurora_rl.synthetic.config import SPLITS, TRAINED_CATEGORIES, UNSEEN_CATEGORIES
from aurora_rl.synthetic.looks import LOOKS
from aurora_rl.synthetic.references import (
    IDEAS,
    absent_references,
    gold_chain,
    pick_references,
    references_of,
    unheard_references,
)
from aurora_rl.synthetic.scene import Scene, SceneObject, SoundEvent, draw_scene, render_waveform
from aurora_rl.synthetic.timbres import TIMBRES
from aurora_rl.tasks.completions import normalise_category, parse_completion
from aurora_rl.tasks.prompts import render_chain
from aurora_rl.tasks.reference_segmentation import chain_file

CONFIG = SyntheticConfig(train=24, val=12, test_s=10, test_u=10, test_n=8)
TINY = SyntheticConfig(train=6, val=1, test_s=2, test_u=2, test_n=2, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "synthetic"
    write_synthetic_benchmark(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def metadata(root):
    with (root / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def chains(root):
    return [json.loads(line) for line in (root / "chains.jsonl").read_text().splitlines()]


def media_id(row):
    return row["uid"].rsplit("_", 2)[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- the files


def test_metadata_is_that_of_ref_avsbench(root, metadata):
    assert (root / "metadata.csv").read_bytes().startswith(b"vid,uid,split,fid,exp\r\ntrain-00000_0_2000,")
    assert list(dict.fromkeys(row["split"] for row in metadata)) == list(SPLITS)
    assert Counter(row["split"] for row in metadata if row["split"].startswith("test")) == {
        "test_s": 10,
        "test_u": 10,
        "test_n": 8,
    }
    assert len({row["uid"] for row in metadata}) == len(metadata)


def test_the_folders_hold_what_metadata_names_and_nothing_else(root, metadata):
    expected = {"metadata.csv", "chains.jsonl", "questions.jsonl", "moments.jsonl"}
    for row in metadata:
        expected |= {f"media/{media_id(row)}/frames/{frame}.jpg" for frame in range(4)}
        expected |= {f"media/{media_id(row)}/audio.wav"}
        expected |= {f"gt_mask/{media_id(row)}/fid_{row['fid']}/0000{frame}.png" for frame in range(4)}
    assert set(files(root)) == expected


def test_frames_masks_and_audio_have_the_formats_asked_for(root, metadata):
    clip = root / "media" / media_id(metadata[0])
    frame = Image.open(clip / "frames" / "0.jpg")
    mask = Image.open(root / "gt_mask" / media_id(metadata[0]) / f"fid_{metadata[0]['fid']}" / "00000.png")
    assert (frame.format, frame.mode, frame.size) == ("JPEG", "RGB", (64, 64))
    assert JpegImagePlugin.get_sampling(frame) == 0  # 4:4:4
    assert (mask.mode, mask.size, set(np.unique(mask))) == ("L", (64, 64), {0, 255})
    with wave.open(str(clip / "audio.wav")) as audio:
        assert (audio.getnchannels(), audio.getsampwidth(), audio.getframerate()) == (1, 2, 16_000)
        assert audio.getnframes() == 2 * 16_000


def test_our_loader_reads_every_split(root, metadata):
    for split in SPLITS:
        samples = load_ref_avs(root, split, fps=CONFIG.fps, num_frames=4, chains=chain_file(root / "chains.jsonl"))
        assert [sample.uid for sample in samples] == [row["uid"] for row in metadata if row["split"] == split]
        assert all(sample.chain and sample.reference_type for sample in samples)
    assert load_clip(samples[0]).frames.shape == (4, 64, 64, 3)


def test_ten_frames_of_ten_seconds_at_224_pixels(tmp_path):
    config = SyntheticConfig(train=1, val=0, test_s=0, test_u=1, test_n=1, frames=10, size=224, seconds=10.0)
    write_synthetic_benchmark(tmp_path / "out", config)
    for split in ("train", "test_u", "test_n"):
        for sample in load_ref_avs(tmp_path / "out", split, num_frames=10):
            clip = load_clip(sample)
            assert clip.frames.shape == (10, 224, 224, 3)
            assert clip.waveform.shape == (160_000,)
            assert clip.gt_masks.any((1, 2)).all() == (split != "test_n")


def test_another_sampling_rate_is_written_as_asked(tmp_path):
    config = SyntheticConfig(train=1, val=0, test_s=0, test_u=0, test_n=0, sampling_rate=48_000)
    write_synthetic_benchmark(tmp_path / "out", config)
    with wave.open(str(next(tmp_path.rglob("audio.wav")))) as audio:
        assert (audio.getframerate(), audio.getnframes()) == (48_000, 96_000)


def test_the_bytes_depend_on_the_seed_alone_and_not_on_the_number_of_workers(tmp_path):
    for name, config, num_workers in [("a", TINY, 1), ("b", TINY, 2), ("c", SyntheticConfig(**vars(TINY)), 1)]:
        write_synthetic_benchmark(tmp_path / name, config, num_workers=num_workers)
    other_seed = SyntheticConfig(**{**vars(TINY), "seed": 4})
    write_synthetic_benchmark(tmp_path / "d", other_seed)
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")
    assert files(tmp_path / "a")["metadata.csv"] != files(tmp_path / "d")["metadata.csv"]


def test_a_larger_benchmark_begins_with_the_clips_of_a_smaller_one(tmp_path):
    write_synthetic_benchmark(tmp_path / "small", TINY)
    write_synthetic_benchmark(tmp_path / "large", SyntheticConfig(**{**vars(TINY), "train": 9, "test_s": 3}))
    small, large = files(tmp_path / "small"), files(tmp_path / "large")
    media = [name for name in small if name.startswith(("media", "gt_mask"))]
    assert media and all(small[name] == large[name] for name in media)


# --- writing safely


def test_a_folder_that_holds_something_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "out").mkdir()
    write_synthetic_benchmark(tmp_path / "out", TINY)  # empty: fine
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_synthetic_benchmark(tmp_path / "out", TINY)
    (tmp_path / "out" / "media" / "stale").mkdir()
    write_synthetic_benchmark(tmp_path / "out", TINY, overwrite=True)
    assert not (tmp_path / "out" / "media" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_benchmark_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"metadata\.csv"):
        write_synthetic_benchmark(tmp_path, TINY, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_run_that_fails_leaves_what_was_there_and_no_half_benchmark(tmp_path, monkeypatch):
    write_synthetic_benchmark(tmp_path / "old", TINY)
    before = files(tmp_path)

    def full_disk(path, rows):
        raise OSError("No space left on device")

    monkeypatch.setattr(writer, "_write_chains", full_disk)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            write_synthetic_benchmark(tmp_path / name, TINY, overwrite=True)
    assert files(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    "option", [{"train": -1}, {"frames": 0}, {"size": 16}, {"seconds": 0.5}, {"sampling_rate": 8000}]
)
def test_an_option_out_of_range_is_named(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*at least"):
        SyntheticConfig(**option)


# --- categories


def test_unseen_categories_are_neither_asked_nor_seen_nor_heard_outside_test_u(chains):
    assert len(UNSEEN_CATEGORIES) >= 3 and not set(UNSEEN_CATEGORIES) & set(TRAINED_CATEGORIES)
    for record in chains:
        met = {record["category"], *record["seen"], *record["heard"]} - {NULL_CATEGORY}
        if record["split"] == "test_u":
            assert record["category"] in UNSEEN_CATEGORIES
        else:
            assert met <= set(TRAINED_CATEGORIES)
            assert not re.search("|".join(LOOKS[name].colour for name in UNSEEN_CATEGORIES), record["exp"])


def test_every_category_has_a_colour_of_its_own():
    assert set(LOOKS) == {*TRAINED_CATEGORIES, *UNSEEN_CATEGORIES}
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    distances = [np.linalg.norm(np.subtract(a.rgb, b.rgb)) for a, b in itertools.combinations(LOOKS.values(), 2)]
    assert min(distances) > 60


def test_every_category_has_an_outline_of_its_own():
    v, u = np.mgrid[-1.3:1.3:65j, -1.3:1.3:65j]
    outlines = [look.outline(u, v) for look in LOOKS.values()]
    assert all(outline.mean() > 0.15 for outline in outlines)
    assert all((a & b).sum() / (a | b).sum() < 0.95 for a, b in itertools.combinations(outlines, 2))


def test_a_timbre_is_told_from_the_others_by_its_spectrum():
    def spectrum(category, seed):
        seconds = np.arange(2 * 16_000, dtype=np.float32) / 16_000
        waveform = TIMBRES[category](seconds, np.random.default_rng(seed))
        bands = np.array_split(abs(np.fft.rfft(waveform)) ** 2, np.geomspace(40, 16_000, 30).astype(int))
        power = np.array([band.sum() for band in bands])
        return np.log(power / power.sum() + 1e-3)  # what lies 30 dB below the rest does not count

    known = {category: spectrum(category, 0) for category in TIMBRES}
    assert set(known) == set(LOOKS)
    for category, seed in itertools.product(TIMBRES, (1, 2)):
        again = spectrum(category, seed)
        assert min(known, key=lambda name: np.linalg.norm(known[name] - again)) == category


# --- scenes


@pytest.mark.parametrize("seed", range(20))
def test_objects_are_in_view_in_every_frame_and_masks_never_overlap(seed):
    scene = draw_scene(np.random.default_rng(seed), CONFIG, categories=TRAINED_CATEGORIES)
    assert scene.masks.shape in [(2, 4, 64, 64), (3, 4, 64, 64)]
    assert scene.masks.sum((2, 3)).min() > 12
    assert scene.masks.sum(0).max() == 1
    assert len(set(scene.seen)) == len(scene.seen)
    assert (np.diff([obj.x for obj in scene.objects], axis=0) > 0).all()  # from left to right, in every frame


def visible_shares_of_bells(num_scenes: int) -> list[float]:
    """Visible share of each disc that lies inside the frame, in each frame."""
    shares = []
    for seed in range(num_scenes):
        scene = draw_scene(np.random.default_rng(seed), CONFIG, categories=["bell"] * 6)
        for bell, mask in zip(scene.objects, scene.masks, strict=True):
            inside = (bell.x > bell.radius) & (bell.x < 64 - bell.radius)
            shares += list(mask.sum((1, 2))[inside] / (np.pi * bell.radius**2))
    return shares


def test_objects_occlude_each_other_and_the_hidden_part_is_no_mask():
    shares = visible_shares_of_bells(60)
    assert np.median(shares) == pytest.approx(1, abs=0.03)
    assert 0.2 < np.min(shares) < 0.95


def test_scenes_that_hide_too_much_of_an_object_are_drawn_again(monkeypatch):
    monkeypatch.setattr(scene_module, "MIN_VISIBLE_SHARE", 1.0)
    assert np.min(visible_shares_of_bells(60)) > 0.97  # 0.935 without drawing again
    monkeypatch.setattr(scene_module, "MIN_VISIBLE_PIXELS", 260)
    scenes = [draw_scene(np.random.default_rng(seed), CONFIG, categories=TRAINED_CATEGORIES) for seed in range(5)]
    assert min(scene.masks.sum((2, 3)).min() for scene in scenes) > 260


def test_sounds_are_in_order_of_onset_and_far_apart():
    scenes = [draw_scene(np.random.default_rng(seed), CONFIG, categories=TRAINED_CATEGORIES) for seed in range(80)]
    sounds = [scene.sounds for scene in scenes]
    assert {len(events) for events in sounds} == {0, 1, 2}
    assert all(0 <= event.start < event.end <= 1 for events in sounds for event in events)
    assert all(b.start - a.start >= 0.3 for a, b in (events for events in sounds if len(events) == 2))
    off_screen = [scene for scene in scenes if set(scene.heard) - set(scene.seen)]
    assert off_screen and all(len(scene.heard) == 1 for scene in off_screen)


def test_a_sound_is_audible_while_it_lasts_and_the_room_is_silent_otherwise():
    waveform = render_waveform([SoundEvent("flute", 0.25, 0.75)], np.random.default_rng(0), CONFIG)
    quarters = [loudness_dbfs(part) for part in np.split(waveform, 4)]
    assert [level > -60 for level in quarters] == [False, True, True, False]
    assert min(quarters[1:3]) > -30


def test_a_clip_is_loud_exactly_if_something_is_heard(root, chains):
    for record in chains:
        level = loudness_dbfs(read_waveform(root / "media" / media_id(record) / "audio.wav"))
        assert (level > -60) == bool(record["heard"])


# --- references


def scene_of(*centres: float, heard: tuple[str, ...] = (), radius: float = 5.0) -> Scene:
    """A bell, a drum and a flute (as many as there are centres) at horizontal positions in pixels of 64."""
    columns = np.arange(64) + 0.5
    masks = np.stack([np.tile(abs(columns - x) < radius, (2, 64, 1)) for x in centres])
    objects = [
        SceneObject(name, radius, 0.0, np.zeros(3), np.full(2, x), np.zeros(2))
        for name, x in zip(TRAINED_CATEGORIES, centres, strict=False)
    ]
    sounds = [SoundEvent(name, 0.4 * index, 1.0) for index, name in enumerate(heard)]
    return Scene(tuple(objects), masks, tuple(sounds))


def asked(scene: Scene) -> dict[str, str]:
    """What may be asked for beside names -> the answer."""
    references = references_of(scene, np.random.default_rng(0))
    return {ref.request: ref.category for ref in references if ref.reference_type != "name"}


def test_left_and_right_are_asked_of_objects_in_their_own_half():
    assert asked(scene_of(10, 50)) == {"the object on the left": "bell", "the object on the right": "drum"}
    assert asked(scene_of(8, 26)) == {"the object on the left": "bell"}
    assert asked(scene_of(38, 56)) == {"the object on the right": "drum"}
    assert asked(scene_of(30, 20)) == {}  # the bell is left of the middle, but not of the drum
    assert asked(scene_of(8, 33, 56))["the object in the middle"] == "drum"
    assert "the object in the middle" not in asked(scene_of(8, 20, 56))


def test_the_sounding_object_is_asked_for_only_if_one_sounds_and_is_in_view():
    sounds = "the object that sounds"
    assert asked(scene_of(10, 50, heard=("drum",)))[sounds] == "drum"
    assert sounds not in asked(scene_of(10, 50))
    assert sounds not in asked(scene_of(10, 50, heard=("dog",)))
    assert sounds not in asked(scene_of(10, 50, heard=("drum", "dog")))
    assert sounds not in asked(scene_of(10, 50, heard=("drum", "bell")))


def test_order_and_side_of_sounds_are_asked_only_if_two_in_view_sound():
    both = asked(scene_of(8, 30, 56, heard=("flute", "bell")))
    assert both["the object that sounds first"] == "flute"
    assert both["the object that sounds last"] == "bell"
    assert both["the sounding object on the left"] == "bell"
    assert both["the sounding object on the right"] == "flute"
    one = asked(scene_of(8, 30, 56, heard=("flute",)))
    assert not [request for request in one if "first" in request or "sounding" in request]


def test_the_right_one_of_two_sounding_objects_is_not_asked_for_in_the_left_half():
    requests = asked(scene_of(8, 27, 56, heard=("bell", "drum")))
    assert requests["the sounding object on the left"] == "bell"
    assert "the sounding object on the right" not in requests


def answer_by_hand(exp, clip):
    """The category a sentence refers to, from the clip's masks and its categories seen and heard."""
    words = exp.rstrip(".").lower().split()
    x = [np.nonzero(mask)[2].mean() for mask in clip.masks]
    left_to_right = [name for _, name in sorted(zip(x, clip.seen, strict=True))]
    heard_in_view = [name for name in clip.heard if name in clip.seen]
    by_look = [name for name in clip.seen if {name, LOOKS[name].colour} & set(words)]
    if by_look:
        (name,) = by_look
        return name
    about_sound = {"sound", "sounds", "sounding", "heard"} & set(words)
    pool = [name for name in left_to_right if name in heard_in_view or not about_sound]
    if {"left", "leftmost"} & set(words):
        return pool[0]
    if {"right", "rightmost"} & set(words):
        return pool[-1]
    if "middle" in words:
        return pool[1]
    if {"first", "last"} & set(words):
        return heard_in_view[0 if "first" in words else -1]
    (name,) = heard_in_view
    return name


def test_every_reference_has_the_answer_that_masks_and_sounds_give(root, metadata, chains):
    for row, record in zip(metadata, chains, strict=True):
        if record["category"] == NULL_CATEGORY:
            continue
        split, index = re.fullmatch(r"(\w+)-(\d+)_0_2000", row["vid"]).groups()
        clip = make_clip(CONFIG, split, int(index))
        masks = read_masks(sorted((root / "gt_mask" / row["vid"] / f"fid_{row['fid']}").iterdir()))
        assert answer_by_hand(row["exp"], clip) == record["category"] == clip.seen[int(row["fid"])]
        assert np.array_equal(masks, clip.masks[int(row["fid"])])
        if record["reference_type"] in ("audio + space", "audio order"):
            assert len(record["heard"]) == 2


def test_different_objects_of_a_clip_have_disjoint_masks_on_disk(root):
    several = [folder for folder in (root / "gt_mask").iterdir() if len(list(folder.iterdir())) > 1]
    assert several
    for folder in several:
        tracks = [read_masks(sorted(fid.iterdir())) for fid in folder.iterdir()]
        assert np.sum(tracks, axis=0).max() == 1


def test_train_asks_three_different_things_of_a_clip_and_test_takes_the_types_in_turn(chains):
    of_clip = Counter(media_id(record) for record in chains if record["split"] == "train")
    assert set(of_clip.values()) == {3}
    assert len({(media_id(record), record["exp"]) for record in chains}) == len(chains)
    for split in ("test_s", "test_u"):
        types = Counter(record["reference_type"] for record in chains if record["split"] == split)
        assert types == {"name": 2, "space": 2, "audio": 2, "audio + space": 2, "audio order": 2}


def test_picking_stops_when_there_is_nothing_left_to_ask():
    references = references_of(scene_of(10, 50), np.random.default_rng(0))
    picked = pick_references(references, np.random.default_rng(0), count=100)
    assert len(picked) == len(references) == 6  # two names, two colours, left, right
    assert sorted(map(repr, picked)) == sorted(map(repr, references))


def test_references_are_sentences_in_several_wordings():
    for idea in IDEAS.values():
        assert len(set(idea.sentences)) >= 2
        assert all(re.fullmatch(r"The [a-z{} ]+\.", sentence) for sentence in idea.sentences)


# --- null references


def test_train_and_val_hold_about_fifteen_percent_null_rows(chains):
    for split in ("train", "val"):
        categories = [record["category"] for record in chains if record["split"] == split]
        assert 0.1 < categories.count(NULL_CATEGORY) / len(categories) < 0.2
    assert {record["category"] for record in chains if record["split"] == "test_n"} == {NULL_CATEGORY}


def test_a_null_clip_has_its_own_folders_a_vid_without_prefix_and_black_masks(root, metadata):
    null_rows = [row for row in metadata if row["uid"].startswith("null_")]
    assert {media_id(row)[:7] for row in null_rows} == {"null_m-", "null_c-"}
    assert all(("_null_" in row["uid"]) == row["uid"].startswith("null_") for row in metadata)
    for row in null_rows:
        assert media_id(row) == media_id(row)[:7] + row["vid"]
        assert row["fid"] == "0"
        assert not read_masks(sorted((root / "gt_mask" / media_id(row) / "fid_0").iterdir())).any()


def test_a_null_clip_shows_the_frames_of_the_clip_it_was_made_of(root, metadata):
    for row in metadata:
        if row["uid"].startswith("null_"):
            frames = [root / "media" / name / "frames" / "3.jpg" for name in (media_id(row), row["vid"])]
            audio = [root / "media" / name / "audio.wav" for name in (media_id(row), row["vid"])]
            assert filecmp.cmp(*frames, shallow=False)
            assert not filecmp.cmp(*audio, shallow=False)


def test_null_m_is_silent_and_asks_for_sound(root, chains):
    muted = [record for record in chains if record["uid"].startswith("null_m-")]
    assert muted
    for record in muted:
        assert record["heard"] == [] and re.search("sound|heard", record["exp"])
        assert loudness_dbfs(read_waveform(root / "media" / media_id(record) / "audio.wav")) <= -70


def test_null_c_asks_for_what_is_out_of_view(chains):
    asks_sound = Counter()
    for record in chains:
        if record["uid"].startswith("null_c-"):
            named = {name for name in LOOKS if {name, LOOKS[name].colour} & set(re.findall("[a-z-]+", record["exp"]))}
            asks_sound[not named] += 1
            assert record["heard"]
            assert not (named or set(record["heard"])) & set(record["seen"])
    assert set(asks_sound) == {True, False}


def test_a_category_in_view_is_never_asked_for_as_absent():
    seen = ("dog", "bird", "emergency-car", "piano", "flute", "engine")
    sentences = {ref.sentence for ref in absent_references(seen, np.random.default_rng(0))}
    assert {sentence.split(" in the")[0].rstrip(".") for sentence in sentences} == {
        "The bell",
        "The yellow object",
        "The drum",
        "The red object",
    }


def test_clips_of_test_n_need_no_clip_of_test_s(tmp_path):
    config = SyntheticConfig(train=0, val=0, test_s=0, test_u=0, test_n=2)
    write_synthetic_benchmark(tmp_path / "out", config)
    assert [sample.media_id for sample in load_ref_avs(tmp_path / "out", "test_n", num_frames=4)] == [
        "null_m-test_s-00000_0_2000",
        "null_c-test_s-00001_0_2000",
    ]


# --- chains of thought


def test_a_gold_chain_reads_as_agreed():
    bell = references_of(scene_of(10, 50), np.random.default_rng(0))[0]
    steps, answer = gold_chain(bell, seen=("bell", "drum", "engine"), heard=("flute", "emergency-car"))
    assert render_chain(steps, answer) == (
        "Look: I see a bell, a drum and an engine.\n"
        "Listen: I hear a flute, then an emergency-car.\n"
        "Read: the bell is asked for.\n"
        "Answer: the target is the bell. It is [SEG]."
    )


def test_silence_and_a_null_reference_are_said_in_a_gold_chain():
    clip = make_null_clip(CONFIG, "test_n", 0, turn=0)
    steps, answer = gold_chain(clip.references[0], seen=clip.seen, heard=clip.heard)
    assert steps["listen"] == "I hear nothing."
    assert answer == "there is no such target. It is [SEG]."


def test_every_gold_chain_parses_back(chains, metadata):
    for index, (record, row) in enumerate(zip(chains, metadata, strict=True)):
        assert (record["row"], record["uid"], record["exp"], record["split"]) == (
            index,
            row["uid"],
            row["exp"],
            row["split"],
        )
        assert (record["generator"], record["verified"]) == ("synthetic", True)
        parsed = parse_completion(render_chain(record["steps"], record["answer"]))
        assert parsed.has_all_steps and parsed.ends_with_seg and parsed.num_seg == 1
        assert parsed.category == normalise_category(record["category"])
        assert parsed.seen == tuple(map(normalise_category, record["seen"]))
        assert parsed.heard == tuple(map(normalise_category, record["heard"]))


def test_gold_chains_are_short_and_of_few_words(chains):
    texts = [render_chain(record["steps"], record["answer"]) for record in chains if record["split"] == "train"]
    assert max(len(text.split()) for text in texts) <= 45
    assert len(set(" ".join(texts).split())) <= 80


def test_every_way_to_ask_for_a_sound_is_null_where_nothing_in_view_sounds():
    """Without silent clips that ask for "the sounding object on the left", the place alone would answer it."""
    requests = {reference.request for reference in unheard_references(np.random.default_rng(0))}
    assert requests == {
        "the object that sounds",
        "the object that sounds first",
        "the object that sounds last",
        "the sounding object on the left",
        "the sounding object on the right",
    }
