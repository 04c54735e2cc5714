"""The types of references, told from their sentences."""

from collections import Counter

import pytest

from aurora_rl.data.ref_avs import MetadataRow
from aurora_rl.data.reference_types import derive_reference_type, reference_type_of
from aurora_rl.data.sample import AVSample
from aurora_rl.synthetic.references import IDEAS


@pytest.mark.parametrize(
    ("sentence", "reference_type"),
    [
        ("The object having white and gray fur.", "look"),
        ("The object being held by the left hand of the man.", "look"),
        ("The dog playing with the baby.", "look"),
        ("The drum.", "look"),
        ("The bass guitar occupied the right side.", "space"),
        ("The COUCH BEHIND the two boys.", "space"),
        ("The third woman from the left.", "space"),
        ("The leopard lying on the ground.", "space"),
        ("The object making the loudest sound.", "audio"),
        ("The object volume is lower over the time.", "audio"),
        ("The object being played by the right hand of the man without a cap.", "audio"),
        ("The instrument that didn't make any sound.", "audio"),
        ("The sounding object on the left of the cello.", "audio + space"),
        ("Played by the man in the middle_the instrument resounded.", "audio + space"),
        ("The object making a sound by being played by the first woman from left.", "audio + space"),
        ("The first object to make a sound.", "audio order"),
        ("The object that making a sound after the piano.", "audio order"),
        ("The entity preceding the baby in emitting sound.", "audio order"),
        ("The first sounding object held by a man on the right.", "audio order"),
        ("The first car appearing in the video.", "look"),
    ],
)
def test_type_is_told_from_the_words(sentence, reference_type):
    assert derive_reference_type(sentence) == reference_type


@pytest.mark.parametrize("idea", IDEAS.values(), ids=IDEAS)
def test_synthetic_sentences_have_the_types_that_their_writer_gave_them(idea):
    told = "look" if idea.reference_type == "name" else idea.reference_type
    for sentence in idea.sentences:
        assert derive_reference_type(sentence.format(category="drum", colour="red")) == told


def test_type_is_derived_only_where_nobody_tells_it(official_rows):
    fur = sample_of(official_rows[0])
    assert (fur.reference, fur.reference_type) == ("The object having white and gray fur.", None)
    assert reference_type_of(fur.reference, fur.category, None) == ("look", True)
    assert reference_type_of(fur.reference, fur.category, "name") == ("name", False)
    assert reference_type_of(fur.reference, "null", None) == ("null", False)


def test_every_type_is_common_in_the_official_test_splits(official_rows):
    rows = [row for row in official_rows if row.split in ("test_s", "test_u", "test_n")]
    types = Counter(reference_type_of(row.reference, row.category, None)[0] for row in rows)
    assert types == {"audio": 2085, "audio + space": 853, "look": 467, "audio order": 323, "space": 216, "null": 1028}


def sample_of(row: MetadataRow) -> AVSample:
    """A row of metadata.csv without its files."""
    return row.to_sample(media_id=row.media_id, fps=1.0, frame_paths=(), audio_path=None, mask_paths=())
