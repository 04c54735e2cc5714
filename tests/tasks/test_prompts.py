import pytest

from aurora_rl.tasks.prompts import without_seg


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Answer: the target is the drum. It is [SEG].", "Answer: the target is the drum."),
        ("Read: x.\nAnswer: there is no such target. It is [SEG].", "Read: x.\nAnswer: there is no such target."),
        ("the target is the drum [SEG].", "the target is the drum."),
        ("It is [SEG]. Look: a drum. it is [SEG]", "Look: a drum."),
        ("a [SEG] b [SEG].\nIt is [SEG] .", "a b."),
        ("[S[SEG]EG]", ""),
        ("It is [SEG].", ""),
        ("It is a drum.", "It is a drum."),
        ("", ""),
    ],
)
def test_nothing_that_asks_for_masks_is_left(text: str, left: str) -> None:
    assert without_seg(text) == left
