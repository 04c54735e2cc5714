"""The box head: what it predicts, what its loss trains, and where it is saved."""

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import lora_config
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.heads import BoxHead, FrameBatch
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.boxes import LOSS_WEIGHTS
from aurora_rl.models.loading import load_model
from aurora_rl.tasks.reference_boxes import ReferenceBoxes
from tests.models.test_half_precision import Owner, deepspeed_cast  # noqa: F401  (a fixture)

D, S = 16, 32
CONFIG: dict[str, Any] = {"type": "dot", "image_size": S, "width": 8}


def two_clips() -> tuple[torch.Tensor, FrameBatch]:
    """Three rows on two clips of 2 and 3 frames; the first and the last row share the first clip."""
    generator = torch.Generator().manual_seed(1)
    states, frames = torch.randn(3, D, generator=generator), torch.randn(5, 3, S, S, generator=generator)
    return states, FrameBatch(frames, torch.tensor([2, 3]), torch.tensor([0, 1, 0]))


@pytest.fixture
def head() -> BoxHead:
    torch.manual_seed(0)
    return BoxHead(D, CONFIG)


def rows_of(head: BoxHead, annotated: Any = None) -> list[Any]:
    states, frames = two_clips()
    return head.rows(run_head(head, states, frames), frames.row_counts, [(20, 40)] * 3, annotated)


def masks(*there: bool) -> torch.Tensor:
    """Masks (F, 20, 40) of the same square, in the frames that have it."""
    truth = torch.zeros(len(there), 20, 40, dtype=torch.bool)
    truth[list(there), 5:10, 10:30] = True
    return truth


def gradient(head: BoxHead, loss: torch.Tensor, part: str) -> float:
    head.zero_grad()
    loss.backward(retain_graph=True)
    found = [p.grad.abs().max().item() for n, p in head.named_parameters() if part in n and p.grad is not None]
    return max(found, default=0.0)


def test_each_row_has_a_box_a_presence_and_a_point_for_each_of_its_frames(head):
    rows = rows_of(head)
    assert [tuple(row.boxes.shape) for row in rows] == [(2, 4), (3, 4), (2, 4)]
    assert [tuple(row.presence_logits.shape) for row in rows] == [(2,), (3,), (2,)]
    for row in rows:
        assert (row.boxes[:, 2:] > row.boxes[:, :2]).all()
        assert ((row.points >= 0) & (row.points <= 1)).all()
        torch.testing.assert_close(row.log_attention.exp().sum((1, 2)), torch.ones(len(row.boxes)))


def test_rows_on_one_clip_are_as_rows_on_copies_of_it(head):
    states, frames = two_clips()
    copies = FrameBatch(torch.cat([frames.frames, frames.frames[:2]]), torch.tensor([2, 3, 2]), torch.tensor([0, 1, 2]))
    shared, alone = run_head(head, states, frames), run_head(head, states, copies)
    for name in shared:
        torch.testing.assert_close(shared[name], alone[name])


def test_frames_without_annotation_are_cut(head):
    whole, cut = rows_of(head)[1], rows_of(head, [None, (0, 2), None])[1]
    assert torch.equal(cut.boxes, whole.boxes[[0, 2]])
    assert torch.equal(cut.log_attention, whole.log_attention[[0, 2]])


def test_empty_frames_train_the_presence_alone(head):
    truths = [masks(False, False), masks(False, False, False), masks(False, False)]
    loss = head.loss(rows_of(head), truths)
    assert {name: part.item() for name, part in loss.parts.items() if name != "box_presence"} == {
        "box_giou": 0.0, "box_l1": 0.0, "box_point": 0.0,
    }  # fmt: skip
    assert gradient(head, loss.total, "distances") == 0.0
    assert gradient(head, loss.total, "presence") > 1e-4
    there = head.loss(rows_of(head), [masks(True, False), *truths[1:]])
    assert gradient(head, there.total, "distances") > 1e-4


def test_loss_is_the_weighted_sum_of_its_parts_and_of_weighted_rows(head):
    truths = [masks(True, True), masks(True, False, True), masks(False, True)]
    rows = rows_of(head)
    loss = head.loss(rows, truths, row_weights=torch.tensor([1.0, 0.0, 1.0]))
    by_hand = sum(LOSS_WEIGHTS[name.removeprefix("box_")] * part for name, part in loss.parts.items())
    assert loss.total.item() == pytest.approx(float(by_hand), rel=1e-6)
    alone = [head.loss([rows[i]], [truths[i]]).total.item() for i in (0, 2)]
    assert loss.total.item() == pytest.approx(sum(alone) / 2, rel=1e-5)
    halves = [head.loss([rows[i]], [truths[i]], normalizer=torch.tensor(2.0)).total.item() for i in (0, 2)]
    assert loss.total.item() == pytest.approx(sum(halves), rel=1e-5)


def test_a_row_without_truth_has_no_loss_and_a_gradient_of_zero(head):
    loss = head.loss(rows_of(head), [None, None, None])
    assert loss.total.item() == 0.0
    assert gradient(head, loss.total, "") == 0.0
    loss.total.backward()
    assert all(p.grad is not None for p in head.distances.parameters())  # as other processes' have


def test_boxes_on_padded_frames_are_shares_of_the_frame_itself(sam_checkpoint):
    """A frame of 64 x 128 fills the upper half of SAM's square."""
    config = BoxHead.complete_config({"type": "sam", "image_size": 128, "checkpoint": sam_checkpoint, "width": 8})
    head = BoxHead(D, config)
    frames = FrameBatch(torch.randn(1, *head.frame_shape), torch.tensor([1]), torch.tensor([0]))
    raw = run_head(head, torch.randn(1, D), frames)
    [tall], [wide] = (head.rows(raw, torch.tensor([1]), [size]) for size in ((128, 128), (64, 128)))
    assert tall.extent == (1.0, 1.0) and wide.extent == (0.5, 1.0)
    torch.testing.assert_close(wide.boxes[:, [0, 2]], tall.boxes[:, [0, 2]])
    torch.testing.assert_close(wide.boxes[:, [1, 3]], 2 * tall.boxes[:, [1, 3]])
    loss = head.loss([wide], [torch.ones(1, 64, 128, dtype=torch.bool)])
    inside = wide.log_attention.exp()[0, :4].sum()  # 8 x 8 places, the upper half is the frame
    assert loss.parts["box_point"].item() == pytest.approx(-inside.log().item(), rel=1e-4)


def test_head_stays_near_float32_after_deepspeeds_cast(head, deepspeed_cast):  # noqa: F811
    half = copy.deepcopy(head)
    deepspeed_cast(Owner(half))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    states, frames = two_clips()
    found, expected = run_head(half, states.bfloat16(), frames), run_head(head, states, frames)
    assert {tensor.dtype for name, tensor in found.items() if name != "prompts"} == {torch.float32}
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0.05, atol=0.02)
    rows = half.rows(found, frames.row_counts, [(20, 40)] * 3)
    half.loss(rows, [masks(True, True), masks(True, False, True), masks(False, True)]).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())


def test_unknown_loss_weight_is_an_error():
    with pytest.raises(ValueError, match=r"loss_weights of the box head has \['iou'\]"):
        BoxHead(D, {**CONFIG, "loss_weights": {"iou": 1.0}})


# In a model


BOXES = {"boxes": {"type": "dot", "image_size": 64, "width": 8}}


@pytest.fixture
def both(tiny_checkpoint: str) -> Any:
    """A model with the checkpoint's mask head and a new box head."""
    return load_model(tiny_checkpoint, heads=BOXES)


def box_batch(loaded: Any, samples: list[Any]) -> dict[str, Any]:
    encoder = loaded.frame_encoder("boxes")
    encode = SampleEncoder(
        loaded.family,
        loaded.processor,
        lambda _, clip: encoder.encode(clip.frames),
        task=ReferenceBoxes(),
    )
    collate = SFTCollator(encode, loaded.head_token_ids["boxes"], encode.task.targets()["answer"])
    batch = collate([sample.to_row() for sample in samples])
    return {name: value for name, value in batch.items() if name not in ("gt_masks", "seg_weights", "labels")}


def test_a_pass_runs_the_head_that_is_named_and_no_other(both, train_samples):
    batch = box_batch(both, train_samples[:2])
    called = []
    for name, head in both.model.heads.items():
        head.register_forward_hook(lambda *_, name=name: called.append(name))
    outputs = both.model(**batch)
    assert called == ["boxes"]
    assert outputs.head_outputs["boxes"].shape == (2 * 4, 4)
    assert outputs.mask_logits is None
    with pytest.raises(ValueError, match="name the one"):
        both.model(**{**batch, "head_name": None})


def test_each_head_has_a_token_of_its_own(both):
    tokenizer = both.processor.tokenizer
    assert both.head_token_ids["masks"] != both.head_token_ids["boxes"] == tokenizer.convert_tokens_to_ids("[BOX]")
    assert tokenizer.decode([both.head_token_ids["boxes"]], skip_special_tokens=True) == "[BOX]"


def test_both_heads_come_back_bit_by_bit(both, train_samples, tmp_path):
    both.model.save_pretrained(tmp_path)
    both.processor.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), dtype=torch.bfloat16)
    assert again.heads == both.heads and list(again.heads) == ["masks", "boxes"]
    assert {p.dtype for head in again.model.heads.values() for p in head.parameters()} == {torch.float32}
    for name, weight in both.model.boxes_head.state_dict().items():
        assert torch.equal(again.model.boxes_head.state_dict()[name], weight), name
    batch = box_batch(both, train_samples[:1])
    expected = both.model.eval()(**batch).head_outputs["boxes"]
    torch.testing.assert_close(load_model(str(tmp_path)).model.eval()(**batch).head_outputs["boxes"], expected)


def test_an_adapter_over_a_plain_model_holds_both_heads(omni_checkpoint, tiny_checkpoint, train_samples, tmp_path):
    segmenter = load_model(tiny_checkpoint).segmenter_config
    new = load_model(omni_checkpoint, segmenter=segmenter, heads=BOXES)
    config = lora_config(ModelArguments(model=omni_checkpoint, use_peft=True), new.family, new.heads)
    model = get_peft_model(new.model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "boxes_head" in name:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    new.processor.save_pretrained(tmp_path)
    batch = box_batch(new, train_samples[:1])
    again = load_model(str(tmp_path))
    assert again.heads == new.heads
    expected = model.eval()(**batch).head_outputs["boxes"]
    torch.testing.assert_close(again.model.eval()(**batch).head_outputs["boxes"], expected)


def test_a_model_without_the_head_says_how_to_give_it(tiny_checkpoint):
    with pytest.raises(ValueError, match="has no head 'boxes' yet: give its config"):
        load_model(tiny_checkpoint, needs="boxes")
    with pytest.raises(ValueError, match="unknown head 'lines'"):
        load_model(tiny_checkpoint, heads={"lines": {}})


def test_weights_of_a_new_head_follow_each_layers_own_rule(both):
    assert both.model.boxes_head.projector[0].weight.std().item() == pytest.approx(0.072, abs=0.006)  # Linear's own
