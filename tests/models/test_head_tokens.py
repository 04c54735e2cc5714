import itertools
import json
from collections.abc import Sequence

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import AutoTokenizer

from aurora_rl.models.head_tokens import ensure_head_token, find_last_token, init_seg_embedding, suppress_tokens
from aurora_rl.models.mllm.gemma4.tiny import NUM_RESERVED, train_tokenizer

SEG, PAD = 9, 0


@pytest.fixture
def plain_tokenizer(omni_checkpoint):
    """A tokenizer that does not know `[SEG]` yet."""
    tokenizer = AutoTokenizer.from_pretrained(omni_checkpoint)
    assert "[SEG]" not in tokenizer.get_vocab()
    return tokenizer


# The token


def test_seg_is_one_token_that_survives_decoding(plain_tokenizer):
    seg_token_id = ensure_head_token(plain_tokenizer, 448)
    ids = plain_tokenizer("Answer: the target is the drum. It is [SEG].").input_ids
    assert ids.count(seg_token_id) == 1
    text = plain_tokenizer.decode([*ids, plain_tokenizer.eos_token_id], skip_special_tokens=True)
    assert text == "Answer: the target is the drum. It is [SEG]."


def test_seg_is_added_once(plain_tokenizer):
    size = len(plain_tokenizer)
    first = ensure_head_token(plain_tokenizer, 448)
    assert first == size  # the next free id
    assert ensure_head_token(plain_tokenizer, 448) == first
    assert len(plain_tokenizer) == size + 1


def test_seg_past_the_embedding_matrix_is_an_error(plain_tokenizer):
    size = len(plain_tokenizer)
    with pytest.raises(ValueError, match=f"id {size}, but the embedding matrix has {size} rows"):
        ensure_head_token(plain_tokenizer, size)


def test_special_seg_is_an_error(plain_tokenizer):
    plain_tokenizer.add_tokens([AddedToken("[SEG]", special=True)], special_tokens=True)
    with pytest.raises(ValueError, match="skipped when decoding"):
        ensure_head_token(plain_tokenizer, 448)


def test_seg_embedding_starts_at_the_mean_of_the_real_tokens(loaded):
    model = loaded.model
    embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
    before = embeddings.detach().clone()
    init_seg_embedding(model, 5, num_tokens=3)
    assert torch.allclose(embeddings[5], before[:3].mean(0))
    assert torch.allclose(head[5], head[:3].mean(0))
    others = torch.arange(len(before)) != 5
    assert torch.equal(embeddings[others], before[others])


# Suppressed tokens


def test_suppressed_tokens_have_no_probability():
    head = nn.Linear(4, 6, bias=False)
    suppress_tokens(head, [1, 4])
    probs = head(torch.randn(8, 4) * 100).softmax(-1)
    assert (probs[:, [1, 4]] == 0).all()
    assert probs.isfinite().all()
    assert torch.allclose(probs.sum(-1), torch.ones(8))


def test_suppression_leaves_the_other_logits_alone():
    head = nn.Linear(4, 6, bias=False)
    states = torch.randn(8, 4)
    before = head(states)
    suppress_tokens(head, [1])
    assert torch.equal(head(states)[:, [0, 2, 3, 4, 5]], before[:, [0, 2, 3, 4, 5]])


def test_suppression_is_neither_trained_nor_saved_and_follows_the_weights():
    head = nn.Linear(4, 6, bias=False)
    suppress_tokens(head, [1])
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert list(head.state_dict()) == ["weight"]
    head.to(torch.bfloat16)
    assert head(torch.randn(1, 4, dtype=torch.bfloat16)).softmax(-1)[0, 1] == 0


def test_suppression_may_be_repeated():
    head = nn.Linear(4, 6, bias=False)
    suppress_tokens(head, [1])
    suppress_tokens(head, [2])
    assert (head.bias < 0).nonzero().flatten().tolist() == [2]


@pytest.fixture
def process_group():
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_suppression_of_a_head_that_fsdp2_has_sharded_is_gathered_beside_its_weight(process_group):
    head = nn.Linear(4, 6, bias=False)
    suppress_tokens(head, [1])
    states, suppressed = torch.randn(8, 4), head.bias.clone()
    before = head(states)
    fully_shard(head, mesh=init_device_mesh("cpu", (1,)))
    assert isinstance(head.weight, DTensor)
    # What TRL's fused head computes from the two.
    gathered = functional.linear(states, head.weight.full_tensor(), head.bias.full_tensor())
    assert torch.equal(gathered, before)
    assert torch.equal(head.bias.full_tensor(), suppressed)
    assert torch.equal(head(states), before)


def test_head_with_a_trained_bias_is_an_error():
    with pytest.raises(ValueError, match="bias of its own"):
        suppress_tokens(nn.Linear(4, 6), [1])


# Where [SEG] is. Prompt of 3 tokens, left-padded; completion of 5 tokens, right-padded.


def find(*rows: list[int], num_completion_tokens: int = 5) -> tuple[list[int], list[bool]]:
    input_ids = torch.tensor(rows)
    seg_index, has_seg = find_last_token(
        input_ids, (input_ids != PAD).long(), SEG, num_completion_tokens=num_completion_tokens
    )
    assert seg_index.dtype == torch.long
    return seg_index.tolist(), has_seg.tolist()


def test_seg_is_found_in_each_row():
    assert find([1, 1, 1, 2, 3, SEG, 4, PAD], [PAD, 1, 1, SEG, 4, PAD, PAD, PAD]) == ([5, 3], [True, True])


def test_of_two_segs_the_last_counts():
    assert find([1, 1, 1, SEG, 2, SEG, 3, PAD]) == ([5], [True])


def test_seg_in_a_call_is_no_answer():
    """Tokens 7 and 8 open and close calls; the one in the prompt opens none."""

    def in_calls(ids: Sequence[int]) -> list[bool]:
        depths = itertools.accumulate((token == 7) - (token == 8) for token in ids)
        return [depth > 0 or token == 8 for depth, token in zip(depths, ids, strict=True)]

    rows = [[1, 7, 1, SEG, 7, SEG, 8, PAD], [1, 1, 7, 2, 7, SEG, 8, PAD], [1, 1, 1, 7, 8, 7, 8, SEG]]
    input_ids = torch.tensor(rows)
    found = find_last_token(input_ids, (input_ids != PAD).long(), SEG, num_completion_tokens=5, in_calls=in_calls)
    assert [part.tolist() for part in found] == [[3, 6, 7], [True, False, True]]


def test_seg_at_the_last_position_counts():
    assert find([1, 1, 1, 2, 3, 4, 5, SEG]) == ([7], [True])


def test_seg_in_the_prompt_is_no_answer():
    assert find([1, SEG, SEG, 2, 3, 4, PAD, PAD]) == ([5], [False])


def test_seg_in_the_prompt_does_not_hide_the_answers():
    assert find([1, SEG, 1, 2, SEG, 4, PAD, PAD]) == ([4], [True])


def test_truncated_completion_gives_its_last_token():
    assert find([1, 1, 1, 2, 3, 4, 5, 6]) == ([7], [False])


def test_row_without_seg_gives_its_last_real_token():
    assert find([PAD, PAD, 1, 2, 3, PAD, PAD, PAD]) == ([4], [False])


def test_empty_completion_gives_the_last_prompt_token():
    assert find([PAD, 1, 1, PAD, PAD, PAD, PAD, PAD]) == ([2], [False])


def test_seg_under_the_attention_mask_does_not_count():
    """After the end of turn, `generate` may leave anything in the other rows' place."""
    input_ids = torch.tensor([[1, 1, 1, 2, SEG, 3, SEG, SEG]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    seg_index, has_seg = find_last_token(input_ids, attention_mask, SEG, num_completion_tokens=5)
    assert (seg_index.item(), has_seg.item()) == (4, True)


# A vocabulary without a free row


@pytest.fixture
def full_tokenizer():
    """A tokenizer like Gemma's: as many tokens as rows, of which some are kept in reserve."""
    return train_tokenizer(["Answer: the target is the drum."], max_vocab_size=400)


def test_a_reserved_token_takes_the_name_and_keeps_its_id(full_tokenizer):
    size, text = len(full_tokenizer), "Answer: the drum <turn|> é"
    before, first = full_tokenizer(text).input_ids, full_tokenizer.convert_tokens_to_ids("<unused0>")
    seg_token_id = ensure_head_token(full_tokenizer, size)
    assert seg_token_id == first and len(full_tokenizer) == size and "<unused0>" not in full_tokenizer.get_vocab()
    ids = full_tokenizer("It is [SEG].").input_ids
    assert ids.count(seg_token_id) == 1
    assert full_tokenizer.decode(ids, skip_special_tokens=True) == "It is [SEG]."
    assert full_tokenizer(text).input_ids == before
    assert ensure_head_token(full_tokenizer, size, "[BOX]") == first + 1  # another head's


def test_the_name_is_saved(full_tokenizer, tmp_path):
    text = "It is [SEG] <unused1> <turn|>."
    ensure_head_token(full_tokenizer, len(full_tokenizer))
    full_tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == full_tokenizer.get_vocab() and "[SEG]" not in again.all_special_tokens
    assert again(text).input_ids == full_tokenizer(text).input_ids
    assert again.decode(again(text).input_ids, skip_special_tokens=True) == "It is [SEG] <unused1> ."
    assert ensure_head_token(again, len(again)) == full_tokenizer.convert_tokens_to_ids("[SEG]")


def test_a_free_row_comes_before_a_reserved_token(full_tokenizer):
    size = len(full_tokenizer)
    assert ensure_head_token(full_tokenizer, size + 1) == size
    assert "<unused0>" in full_tokenizer.get_vocab()


@pytest.mark.parametrize("use", ["template", "medium", "merge"])
def test_a_reserved_token_that_is_in_use_is_left_alone(full_tokenizer, use):
    if use == "template":
        full_tokenizer.chat_template = "<unused0>{{ messages }}"
    elif use == "medium":
        full_tokenizer.add_special_tokens({"additional_special_tokens": ["<unused0>"]})
    else:
        state = json.loads(full_tokenizer.backend_tokenizer.to_str())
        state["model"]["vocab"]["<unused"] = state["model"]["vocab"].pop("<unused7>")
        state["model"]["vocab"]["0>"] = state["model"]["vocab"].pop("<unused6>")
        state["model"]["merges"].append(["<unused", "0>"])
        state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<unused")]
        full_tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    expected = full_tokenizer.convert_tokens_to_ids("<unused1>")
    assert ensure_head_token(full_tokenizer, len(full_tokenizer)) == expected
    assert "<unused0>" in full_tokenizer.get_vocab()


def test_a_reserved_token_that_is_flagged_special_becomes_an_ordinary_one(full_tokenizer):
    full_tokenizer.add_tokens([AddedToken("<unused0>", special=True)], special_tokens=True)
    seg_token_id = ensure_head_token(full_tokenizer, len(full_tokenizer))
    assert full_tokenizer.decode([seg_token_id], skip_special_tokens=True) == "[SEG]"


def test_neither_a_free_row_nor_a_reserved_token_is_an_error(full_tokenizer):
    size = len(full_tokenizer)
    for number in range(NUM_RESERVED):
        ensure_head_token(full_tokenizer, size, f"[HEAD{number}]")
    with pytest.raises(
        ValueError, match=rf"\[SEG\] would get id {size}, .* {size} rows and the vocabulary no reserved"
    ):
        ensure_head_token(full_tokenizer, size)
    assert len(full_tokenizer) == size
