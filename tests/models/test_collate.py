import dataclasses

import pytest
import torch

from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import SFTCollator, collate_frames, distinct_media, right_pad, with_shared_media
from aurora_rl.models.control_tokens import ControlTokenError
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.tasks.targets import Target, reflection

PAD = 0


def on_other_clips(samples: list[AVSample]) -> list[AVSample]:
    """Two rows on different clips, whose chains differ in length."""
    return [samples[0], samples[2]]


def collate(encode, loaded, samples, completion=lambda sample: sample.chain) -> dict:
    collator = SFTCollator(encode, loaded.seg_token_id, lambda sample: Target(completion(sample)))
    return collator([sample.to_row() for sample in samples])


def asks_for_seg(encode: SampleEncoder) -> SampleEncoder:
    """The encoder with an instruction that names `[SEG]`, as the default one does."""
    options = PromptOptions("{reference} Answer by [SEG].")
    return SampleEncoder(encode.family, encode.processor, encode.frame_inputs, options=options)


# A sample


def test_encoded_sample_carries_truth_and_frame_inputs(encode, train_samples):
    sample = train_samples[0]
    encoded = encode(sample)
    clip = load_clip(sample)
    assert encoded.sample == sample
    assert torch.equal(encoded.gt_masks, torch.from_numpy(clip.gt_masks))
    assert encoded.gt_masks.dtype == torch.bool
    assert encoded.frame_inputs.shape == (4, 3, 32, 32)
    assert -60 < encoded.loudness_dbfs < 0


def test_clip_without_sound_is_silent_and_has_no_placeholder_for_it(encode, train_samples):
    encoded = encode(dataclasses.replace(train_samples[0], audio_path=None))
    assert encoded.loudness_dbfs == float("-inf")
    assert encode.tokenizer.convert_tokens_to_ids("<|AUDIO|>") not in encoded.prompt.prompt_ids
    assert encode.tokenizer.convert_tokens_to_ids("<|VIDEO|>") in encoded.prompt.prompt_ids


def test_muted_clip_is_silent(encode, train_samples):
    muted = next(sample for sample in train_samples if sample.media_id.startswith("null_m-"))
    assert encode(muted).loudness_dbfs < -60


def test_prompt_holds_the_reference_and_ends_where_the_assistant_begins(encode, train_samples):
    sample = train_samples[0]
    text = encode.tokenizer.decode(encode(sample).prompt.prompt_ids)
    assert sample.reference in text
    assert text.endswith("<|im_start|>assistant\n")


def test_system_prompt_and_instruction_are_put_to_the_model(encode, train_samples):
    options = dataclasses.replace(encode.options, instruction="find {reference} now", system_prompt="be brief")
    other = SampleEncoder(encode.family, encode.processor, encode.frame_inputs, options=options)
    text = other.tokenizer.decode(other(train_samples[0]).prompt.prompt_ids)
    assert text.startswith("<|im_start|>system\nbe brief<|im_end|>")
    assert f"find {train_samples[0].reference} now" in text


def test_pixel_limits_size_the_frames_for_the_vision_tower(encode, train_samples):
    """64 x 64 pixels are 8 x 8 patches; at 32 x 32 at most they are 4 x 4."""
    assert encode(train_samples[0]).prompt.features["video_grid_thw"].tolist() == [[2, 8, 8]]
    encode.options = PromptOptions("{reference}", None, 256, 32 * 32)
    assert encode(train_samples[0]).prompt.features["video_grid_thw"].tolist() == [[2, 4, 4]]


def test_load_replaces_the_media(encode, train_samples):
    first, other = on_other_clips(train_samples)
    encode.load = lambda sample: load_clip(other)
    encoded = encode(first)
    assert encoded.sample == first
    assert torch.equal(encoded.gt_masks, torch.from_numpy(load_clip(other).gt_masks))


# Right-padded batches


def test_right_pad_by_hand():
    batch = right_pad([[1, 2], [3]], [[4], [5, 6, 7]], PAD)
    assert batch["input_ids"].tolist() == [[1, 2, 4, PAD], [3, 5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 4, -100], [-100, 5, 6, 7]]


def test_right_pad_keeps_pad_tokens_of_the_text():
    """A completion may hold the padding token itself; only what was appended is masked."""
    batch = right_pad([[1], [2]], [[PAD, 3], [4]], PAD)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, PAD, 3], [-100, 4, -100]]


def test_labels_are_the_completion_and_its_end_of_turn(encode, loaded, train_samples):
    samples = on_other_clips(train_samples)
    batch = collate(encode, loaded, samples)
    tokenizer = encode.tokenizer
    for row, sample in enumerate(samples):
        is_label = batch["labels"][row] != -100
        ids = batch["input_ids"][row]
        assert torch.equal(batch["labels"][row][is_label], ids[is_label])
        assert tokenizer.decode(ids[is_label]) == sample.chain + tokenizer.eos_token
        assert ids[~is_label & batch["attention_mask"][row].bool()].tolist() == encode(sample).prompt.prompt_ids


def test_seg_index_is_that_of_the_completion(encode, loaded, train_samples):
    batch = collate(asks_for_seg(encode), loaded, [train_samples[0]])
    positions = (batch["input_ids"][0] == loaded.seg_token_id).nonzero().flatten().tolist()
    assert len(positions) == 2  # one in the prompt
    assert batch["seg_index"].tolist() == positions[1:]
    assert batch["seg_weights"].tolist() == [1.0]


def test_completion_without_seg_weighs_nothing(encode, loaded, train_samples):
    first, other = on_other_clips(train_samples)
    chains = {first.key: "I see a drum.", other.key: other.chain}
    batch = collate(encode, loaded, [first, other], lambda sample: chains[sample.key])
    assert batch["seg_weights"].tolist() == [0.0, 1.0]
    last_real = int(batch["attention_mask"][0].sum()) - 1
    assert batch["seg_index"][0].item() == last_real


def test_seg_in_the_prompt_alone_weighs_nothing(encode, loaded, train_samples):
    batch = collate(asks_for_seg(encode), loaded, [train_samples[0]], lambda sample: "I see a drum.")
    assert batch["seg_weights"].tolist() == [0.0]


def test_batch_has_everything_the_loss_needs(encode, loaded, train_samples):
    samples = on_other_clips(train_samples)
    batch = collate(encode, loaded, samples)
    assert [masks.shape for masks in batch["gt_masks"]] == [(4, 64, 64)] * 2
    assert batch["seg_frame_counts"].tolist() == [4, 4]
    assert batch["video_grid_thw"].shape == (2, 3)
    assert batch["input_features"].size(0) == 2


# What rows share


def test_distinct_media_are_numbered_by_first_appearance(encode, train_samples):
    a, b = (encode(sample) for sample in on_other_clips(train_samples))
    features, media_index = distinct_media([b, a, a, b])
    assert media_index == [0, 1, 1, 0]
    assert features[0] is b.prompt.features
    assert features[1] is a.prompt.features


def test_rows_on_a_clip_share_its_media_unless_they_read_it_in_ways_of_their_own(encode, train_samples):
    first, second, other = (encode(sample) for sample in train_samples[:3])
    assert first.sample.media_id == second.sample.media_id != other.sample.media_id
    features, media_index = distinct_media(with_shared_media([other, first, second]))
    assert media_index == [0, 1, 1] and features[1] is first.prompt.features
    encode.options = dataclasses.replace(encode.options, max_pixels=32 * 32)
    small = encode(train_samples[1])
    assert distinct_media(with_shared_media([first, small, first]))[1] == [0, 1, 0]
    assert small.prompt.prompt_ids == with_shared_media([first, small])[1].prompt.prompt_ids


def test_cached_embeddings_are_joined_under_autocast(encode, train_samples):
    rows = [encode(sample) for sample in train_samples[::2][:2]]
    rows = [dataclasses.replace(row, frame_inputs=row.frame_inputs.half()) for row in rows]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as where an SFT writes its samples
        assert collate_frames(rows)["seg_frames"].dtype == torch.float16


def test_frames_are_shared_by_clip_even_between_references(encode, train_samples):
    first, second, other = (encode(sample) for sample in train_samples[:3])
    batch = collate_frames([other, first, second])
    assert batch["seg_clip_index"].tolist() == [0, 1, 1]
    assert batch["seg_frame_counts"].tolist() == [4, 4]
    assert torch.equal(batch["seg_frames"], torch.cat([other.frame_inputs, first.frame_inputs]))


@pytest.mark.parametrize("num_frames", [1, 3])
def test_clips_may_differ_in_frames(encode, train_samples, num_frames):
    a, b = (encode(sample) for sample in on_other_clips(train_samples))
    short = dataclasses.replace(b, frame_inputs=b.frame_inputs[:num_frames])
    batch = collate_frames([a, short])
    assert batch["seg_frame_counts"].tolist() == [4, num_frames]
    assert len(batch["seg_frames"]) == 4 + num_frames


# What is given and what is learned


def test_what_is_given_carries_no_labels(encode, loaded, train_samples):
    target = Target(given="Look: a dog.\n", learned="Wait. It is [SEG].")
    row = train_samples[0].to_row()
    batch = SFTCollator(encode, loaded.seg_token_id, lambda sample: target)([row])
    tokenizer = encode.tokenizer
    labelled = batch["labels"][0] != -100
    assert tokenizer.decode(batch["input_ids"][0][labelled]) == "Wait. It is [SEG]." + tokenizer.eos_token
    prompt = tokenizer.decode(encode(train_samples[0]).prompt.prompt_ids)
    assert tokenizer.decode(batch["input_ids"][0][~labelled]) == prompt + "Look: a dog.\n"


def test_both_parts_are_tokenized_as_one_text(encode, loaded, train_samples):
    """As the model would write them: a token across the border is learned, for it is where the two ways part."""
    whole = encode.tokenizer("I see a drum", add_special_tokens=False).input_ids
    collate = SFTCollator(encode, loaded.seg_token_id, lambda sample: Target(given="I see a dr", learned="um"))
    batch = collate([train_samples[0].to_row()])
    num_prompt = len(encode(train_samples[0]).prompt.prompt_ids)
    assert batch["input_ids"][0, num_prompt:-1].tolist() == whole
    assert encode.tokenizer.decode(whole[-1]) == " drum"  # the last token begins in what is given
    learned = batch["labels"][0][batch["labels"][0] != -100].tolist()
    assert learned == [whole[-1], encode.tokenizer.eos_token_id]


def test_the_token_that_takes_a_chain_back_is_learned(encode, loaded, train_samples):
    """After "the target is the dog." a model writes either " It is [SEG]." or a line break and "Wait"."""
    sample = dataclasses.replace(train_samples[0], wrong="Answer: the target is the dog.")
    batch = SFTCollator(encode, loaded.seg_token_id, reflection)([sample.to_row()])
    learned = encode.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert learned.lstrip(".").startswith("\nWait, let me reconsider.")


def test_a_seg_in_what_is_given_is_refused(encode, loaded, train_samples):
    collate = SFTCollator(encode, loaded.seg_token_id, lambda sample: Target(given="It is [SEG].\n", learned="No."))
    with pytest.raises(ControlTokenError, match=r"control token '\[SEG\]'"):
        collate([train_samples[0].to_row()])
