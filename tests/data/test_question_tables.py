import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import list_test_splits, load_split
from aurora_rl.data.files import DatasetError, UnsafePathError
from aurora_rl.data.media import read_media
from aurora_rl.data.question_tables import QUESTION_TABLES, load_question_table
from aurora_rl.data.splits import list_splits

#: A record of each benchmark in its authors' form, its file, and its split.
RECORDS = {
    "avqa_r1": (
        "train/omni_rl_format_train.json",
        {
            "problem_id": 17,
            "problem": "What sounds?",
            "data_type": "image_audio",
            "problem_type": "multiple choice",
            "options": ["A. drum", "B. A. Bell & Co", "C. dog", "D. car"],
            "solution": "<answer>B</answer>",
            "path": {"image": "a.png", "audio": "a.wav"},
        },
    ),
    "avqa": (
        "avqa_train.jsonl",
        {
            "id": 183,
            "question_text": "What happened in the video?",
            "multi_choice": ["motorboat", "bell", "dog", "car"],
            "answer": 1,
            "question_type": "What",
            "audio_path": "a.wav",
        },
    ),
    "mmau": (
        "mmau-test-mini.json",
        {
            "id": "3fe6",
            "audio_id": "./a.wav",
            "question": "Who?",
            "choices": ["Man", "Woman", "Man"],
            "answer": "Man",
            "task": "speech",
            "category": ["Reasoning", "Perception"],
            "difficulty": "medium",
        },
    ),
    "mmar": (
        "MMAR-meta.jsonl",
        {
            "id": "q",
            "audio_path": "./a.wav",
            "question": "Where",
            "choices": ["x", "y"],
            "answer": "y",
            "modality": "music",
        },
    ),
    "mmsu": (
        "mmsu.jsonl",
        {
            **{"id": "s", "audio_path": "a.wav", "question": "Tone?", "choice_a": "up", "choice_b": "down"},
            **{"choice_c": "", "choice_d": None, "answer_gt": "down", "category": "Perception"},
        },
    ),
}


def write(root: Path, name: str, *records: dict) -> Path:
    """Write a benchmark with one clip, and return its root."""
    path = root / RECORDS[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(records) if path.suffix == ".json" else "".join(json.dumps(each) + "\n" for each in records)
    path.write_text(text)
    Image.fromarray(np.full((8, 12, 3), 7, np.uint8)).save(path.parent / "a.png")
    soundfile.write(path.parent / "a.wav", np.full(160, 0.5, np.float32), 16_000)
    return root


def split_of(name: str) -> str:
    return {"mmau": "test-mini", "mmar": "test", "mmsu": "test"}.get(name, "train")


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_becomes_a_question_with_its_media(tmp_path, name):
    root = write(tmp_path, name, RECORDS[name][1])
    (sample,) = load_split(DataArguments(data_root=str(root), benchmark=name), split_of(name))
    frames, waveform = read_media(sample)
    assert len(frames) == sample.num_frames == (name == "avqa_r1") and waveform.shape == (160,)
    assert sample.choices.index(sample.answer) == (0 if name == "mmau" else 1)
    assert sample.extra_columns == RECORDS[name][1]
    assert list_splits(name, root) == [split_of(name)]


def test_texts_of_options_and_questions_are_the_benchmarks(tmp_path):
    (sample,) = load_question_table("avqa_r1", write(tmp_path, "avqa_r1", RECORDS["avqa_r1"][1]), "train")
    assert sample.choices == ("drum", "A. Bell & Co", "dog", "car") and sample.uid == "17"
    (sample,) = load_question_table("avqa", write(tmp_path, "avqa", RECORDS["avqa"][1]), "train")
    assert sample.reference == "What happened in the audio?" and sample.reference_type == "What"
    (sample,) = load_question_table("mmsu", write(tmp_path, "mmsu", RECORDS["mmsu"][1]), "test")
    assert sample.choices == ("up", "down")


def test_the_released_mmau_is_read_whole(tmp_path):
    """1,000 questions of which 27 repeat an option; the sounds are empty files."""
    packed = Path(__file__).with_name("mmau_test_mini.json.xz")
    records = json.loads(lzma.decompress(packed.read_bytes()))
    (tmp_path / "mmau-test-mini.json").write_text(json.dumps(records))
    (tmp_path / "test-mini-audios").mkdir()
    for record in records:
        (tmp_path / record["audio_id"]).touch()
    samples = load_question_table("mmau", tmp_path, "test-mini")
    assert len(samples) == 1_000 and sum(len(set(s.choices)) < len(s.choices) for s in samples) == 27
    letters = [sample.choices.index(sample.answer) for sample in samples]
    assert [letters.count(index) for index in range(4)] == [395, 271, 208, 126]


def test_answers_that_are_kept_back_are_unknown(tmp_path):
    record = {**RECORDS["mmau"][1], "answer": ""}
    root = write(tmp_path, "mmau", record)
    assert load_question_table("mmau", root, "test-mini")[0].answer is None
    assert list_test_splits(DataArguments(data_root=str(root), benchmark="mmau")) == ["test-mini"]


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("avqa_r1", {"problem_type": "OCR"}, "only 'multiple choice'"),
        ("avqa_r1", {"solution": "<answer>E</answer>"}, "the letter of an option"),
        ("avqa_r1", {"solution": "B"}, "the letter of an option"),
        ("avqa_r1", {"solution": None}, "expected string"),
        ("avqa_r1", {"path": {"audio": "a.wav"}}, "'image' is missing"),
        ("avqa_r1", {"path": "a.wav"}, "record 0"),
        ("avqa", {"answer": 4}, "0 to 3"),
        ("avqa", {"answer": "bell"}, "0 to 3"),
        ("avqa", {"question_text": " "}, "question is"),
        ("avqa", {"multi_choice": ["motorboat", 7]}, "expected texts"),
        ("mmau", {"choices": ["Man"]}, "2 to 26"),
        ("mmau", {"choices": "Man"}, "expected a list"),
        ("mmau", {"answer": "Child"}, "none of the options"),
        ("mmau", {"question": "\ud800"}, "surrogates"),
        ("mmau", {"audio_id": "b.wav"}, "b.wav is missing"),
        ("mmar", {"modality": ...}, "'modality' is missing"),
        ("mmsu", {"choice_a": "", "choice_c": "flat"}, "left out comes before"),
        ("mmsu", {"id": None}, "a text or a number"),
    ],
)
def test_a_malformed_record_is_named(tmp_path, name, changes, problem):
    record = {key: value for key, value in {**RECORDS[name][1], **changes}.items() if value is not ...}
    with pytest.raises(DatasetError, match=problem):
        load_question_table(name, write(tmp_path, name, record), split_of(name))


@pytest.mark.parametrize("path", ["../a.wav", "/etc/hostname", "x/../../a.wav", "a\0.wav"])
def test_no_path_leads_out(tmp_path, path):
    root = write(tmp_path / "root", "mmar", {**RECORDS["mmar"][1], "audio_path": path})
    (tmp_path / "a.wav").touch()
    with pytest.raises(UnsafePathError):
        load_question_table("mmar", root, "test")


@pytest.mark.parametrize("name", RECORDS)
def test_no_link_leads_out(tmp_path, name):
    root = write(tmp_path / "root", name, RECORDS[name][1])
    outside = tmp_path / "outside.wav"
    sound = next(root.rglob("a.wav"))
    sound.rename(outside)
    sound.symlink_to(outside)
    with pytest.raises(UnsafePathError, match="a link to"):
        load_question_table(name, root, split_of(name))


def test_an_id_names_one_question(tmp_path):
    with pytest.raises(DatasetError, match="the id 'q' of"):
        load_question_table("mmar", write(tmp_path, "mmar", RECORDS["mmar"][1], RECORDS["mmar"][1]), "test")


@pytest.mark.parametrize("name", QUESTION_TABLES)
def test_another_split_and_another_folder_are_errors(tmp_path, name):
    with pytest.raises(DatasetError, match="root must be the folder of"):
        load_question_table(name, tmp_path / "none", "train")
    root = write(tmp_path, name, RECORDS[name][1])
    with pytest.raises(DatasetError, match=f"expected one of .*{split_of(name)}"):
        load_question_table(name, root, "nosuch")


@pytest.mark.parametrize("text", ["{}", "[1]", "[", "\xff"])
def test_a_file_that_is_no_table_is_named(tmp_path, text):
    write(tmp_path, "mmau", RECORDS["mmau"][1])
    (tmp_path / "mmau-test-mini.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match="mmau-test-mini"):
        load_question_table("mmau", tmp_path, "test-mini")
