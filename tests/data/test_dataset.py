import dataclasses
import functools

from datasets import concatenate_datasets

from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

MESSAGES = ReferenceSegmentation().messages
BARE = AVSample(
    uid="abc_cat_1",
    row=0,
    split="train",
    media_id="abc",
    category="cat",
    reference="The cat {that} purrs.",
    fps=1.0,
    frame_paths=("0.jpg", "1.jpg"),
    audio_path="audio.wav",
    mask_paths=("0.png", "1.png"),
)
NULL = AVSample(
    uid="null_m-abc_null_1",
    row=7,
    split="train",
    media_id="null_m-abc",
    category="null",
    reference="The loudest object.",
    fps=2.5,
    frame_paths=("0.jpg",),
    audio_path="audio.wav",
    mask_paths=(),
    reference_type="loudness",
    chain="Look: I see a cat.",
    seen=("cat",),
    heard=(),
)


def test_samples_come_back_from_their_rows_unchanged() -> None:
    dataset = to_dataset([BARE, NULL], MESSAGES)
    assert [AVSample.from_row(row) for row in dataset] == [BARE, NULL]


def test_a_row_of_an_earlier_data_set_has_the_defaults_of_newer_columns() -> None:
    dataset = to_dataset([BARE, NULL], MESSAGES).remove_columns(["choices", "answer"])
    assert [AVSample.from_row(row) for row in dataset] == [BARE, NULL]


def test_frames_without_annotation_come_back() -> None:
    partly = dataclasses.replace(BARE, mask_paths=("", "1.png"), choices=("a cat", "a dog"), answer="a cat")
    (row,) = to_dataset([partly], MESSAGES)
    assert AVSample.from_row(row) == partly
    assert partly.annotated_frames == (1,)
    assert BARE.annotated_frames is None


def test_nothing_heard_stays_apart_from_not_known() -> None:
    bare, null = (AVSample.from_row(row) for row in to_dataset([BARE, NULL], MESSAGES))
    assert bare.heard is None
    assert null.heard == ()


def test_the_prompt_is_one_text_message_with_the_reference() -> None:
    (row,) = to_dataset([BARE], functools.partial(MESSAGES, instruction="Find {reference}"))
    content = [{"type": "text", "text": "Find The cat {that} purrs."}]
    assert row["prompt"] == [{"role": "user", "content": content}]


def test_columns_have_the_same_types_with_and_without_chains() -> None:
    without, with_chains = to_dataset([BARE], MESSAGES), to_dataset([NULL], MESSAGES)
    assert without.features == with_chains.features
    merged = concatenate_datasets([without, with_chains])
    assert [AVSample.from_row(row) for row in merged] == [BARE, NULL]


def test_a_benchmark_without_rows_is_a_dataset_without_rows() -> None:
    dataset = to_dataset([], MESSAGES)
    assert len(dataset) == 0
    assert "prompt" in dataset.column_names
