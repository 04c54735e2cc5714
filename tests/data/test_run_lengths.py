"""COCO's run lengths, against pycocotools where they are right, refused where they are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aurora_rl.data import run_lengths
from aurora_rl.data.run_lengths import decode_masks, encode_masks

ONE = encode_masks(np.ones((1, 2, 3), dtype=bool))[0]


@given(arrays.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))))
def test_masks_of_pycocotools_are_read_back(masks):
    assert np.array_equal(decode_masks(encode_masks(masks)), masks)


def test_uncompressed_run_lengths_are_read_by_columns():
    mask = run_lengths.decode({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
    assert mask.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({**ONE, "size": [2, 4]}, "size"),
        ({**ONE, "size": [2]}, r"\[height, width\]"),
        ({**ONE, "size": [2, -3]}, r"\[height, width\]"),
        ({**ONE, "size": [2, 3.0]}, r"\[height, width\]"),
        ({**ONE, "size": [100_000, 100_000]}, "more than 134217728 together"),
        ({**ONE, "counts": ""}, "do not add up to 2 x 3"),
        ({**ONE, "counts": "0" * 9}, "do not add up"),
        ({**ONE, "counts": "\x01"}, r"hold '\\x01'"),
        ({**ONE, "counts": "o" * 100}, "run lengths hold"),
        ({**ONE, "counts": [7, -1]}, "do not add up"),
        ({**ONE, "counts": None}, "is no mask"),
        ([], "size None"),
    ],
)
def test_what_is_no_mask_of_its_size_is_refused(rle, words):
    with pytest.raises(ValueError, match=words):
        decode_masks([rle] if rle == [] or rle["size"] != [2, 4] else [ONE, rle])


def test_no_masks_are_refused():
    with pytest.raises(ValueError, match="one a frame"):
        decode_masks([])
