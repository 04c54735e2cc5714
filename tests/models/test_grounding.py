"""One forward pass gives log-probabilities and masks; masks belong to the state at `[SEG]` and to their own clip."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, pad

from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.losses import mask_loss
from aurora_rl.models.collate import SFTCollator, collate_frames, distinct_media, right_pad
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.grounding import install_head_forward, projecting_only, row_mask_logits, shared_media
from aurora_rl.models.head_tokens import find_last_token
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni
from aurora_rl.tasks.targets import Target

#: Float32 on tiny models: sums in another order differ by about 1e-6.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def chain_of(sample: AVSample) -> str:
    assert sample.chain is not None
    return sample.chain


def sft_batch(
    loaded: LoadedModel,
    encode: SampleEncoder,
    samples: list[AVSample],
    completion: Callable[[AVSample], str] = chain_of,
) -> dict:
    """Right-padded prompts and completions, without what only the loss needs."""
    collate = SFTCollator(encode, loaded.seg_token_id, lambda sample: Target(completion(sample)))
    batch = collate([sample.to_row() for sample in samples])
    return {name: value for name, value in batch.items() if name not in ("labels", "gt_masks", "seg_weights")}


def rollout_batch(loaded: LoadedModel, encode: SampleEncoder, encoded: list[EncodedSample]) -> tuple[dict, list[int]]:
    """Left-padded prompts and right-padded completions, as GRPO has them, and which distinct medium each row has."""
    tokenizer = encode.tokenizer
    prompts = [torch.tensor(row.prompt.prompt_ids) for row in encoded]
    completions = [torch.tensor(tokenizer(chain_of(row.sample)).input_ids) for row in encoded]
    values = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
    batch = {}
    for name, value in values.items():
        ones = name == "attention_mask"
        left = pad([torch.ones_like(x) if ones else x for x in prompts], padding_value=value, padding_side="left")
        right = pad([torch.ones_like(x) if ones else x for x in completions], padding_value=value)
        batch[name] = torch.cat([left, right], dim=1)
    batch["seg_index"], has_seg = find_last_token(
        **batch, token_id=loaded.seg_token_id, num_completion_tokens=max(map(len, completions))
    )
    assert has_seg.all()
    features, media_index = distinct_media(encoded)
    media = encode.family.collate_features(features, media_index)
    return {**batch, **media, **collate_frames(encoded)}, media_index


def on_distinct_clips(samples: list[AVSample], count: int) -> list[AVSample]:
    """The first row of each of the first `count` clips; their prompts and chains differ in length."""
    first = {sample.media_id: sample for sample in reversed(samples)}
    return [first[media_id] for media_id in sorted(first)][:count]


@contextlib.contextmanager
def calls_of(module: nn.Module) -> Iterator[list[torch.Size]]:
    """Collects the shape of what every call returns."""
    shapes: list[torch.Size] = []
    handle = module.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape))
    yield shapes
    handle.remove()


# Which state the masks come from


def test_seg_index_yields_mask_logits_of_every_frame(loaded, encode, train_samples):
    batch = sft_batch(loaded, encode, on_distinct_clips(train_samples, 2))
    outputs = loaded.model(**batch)
    assert outputs.mask_logits.shape == (2 * 4, 16, 16)  # rows x frames; the `dot` decoder has stride 2 on 32 pixels
    assert outputs.mask_logits.dtype == torch.float32
    masks = row_mask_logits(loaded.model, outputs.mask_logits, torch.tensor([4, 4]), [(64, 64)] * 2)
    assert [row.shape for row in masks] == [(4, 64, 64)] * 2


def test_without_seg_index_the_output_is_the_models_own(loaded, encode, train_samples):
    batch = sft_batch(loaded, encode, train_samples[:1])
    plain = {name: value for name, value in batch.items() if not name.startswith("seg_")}
    outputs = loaded.model(**plain)
    assert not hasattr(outputs, "mask_logits")
    assert torch.equal(outputs.logits, loaded.model(**batch).logits)


def test_masks_are_decoded_from_the_normed_state_at_seg(loaded, encode, train_samples):
    batch = sft_batch(loaded, encode, on_distinct_clips(train_samples, 2))
    outputs = loaded.model(**batch, output_hidden_states=True)
    rows = torch.arange(2)
    assert (batch["input_ids"][rows, batch["seg_index"]] == loaded.seg_token_id).all()
    states = outputs.hidden_states[-1][rows, batch["seg_index"]]
    head = loaded.model.seg_head
    for row, prompt in enumerate(head.projector(states)):
        frames = batch["seg_frames"][4 * row : 4 * row + 4]
        expected = head.mask_decoder(frames, prompt.expand(4, 1, -1))[:, 0]
        assert_close(outputs.mask_logits[4 * row : 4 * row + 4], expected, **CLOSE)


@pytest.mark.parametrize(("offset", "changes"), [(-5, True), (-1, True), (0, True), (1, False)])
def test_masks_depend_on_seg_and_on_what_precedes_it_alone(loaded, encode, train_samples, offset, changes):
    batch = sft_batch(loaded, encode, train_samples[:1])
    before = loaded.model(**batch)
    position = batch["seg_index"].item() + offset
    batch["input_ids"][0, position] = encode.tokenizer.convert_tokens_to_ids("I")
    after = loaded.model(**batch)
    assert not torch.equal(before.logits, after.logits)
    assert torch.equal(before.mask_logits, after.mask_logits) is not changes


def test_masks_depend_on_the_clips_frames_through_the_decoder_alone_too(loaded, encode, train_samples):
    batch = sft_batch(loaded, encode, train_samples[:1])
    before = loaded.model(**batch).mask_logits
    batch["seg_frames"][2] *= -1  # of the mask decoder's input; the language model's is left as it is
    after = loaded.model(**batch).mask_logits
    assert [torch.equal(before[i], after[i]) for i in range(4)] == [True, True, False, True]


def test_mask_loss_trains_the_language_model_through_seg(loaded, encode, train_samples):
    batch = sft_batch(loaded, encode, train_samples[:1])
    loaded.model(**batch).mask_logits.square().mean().backward()
    layer = loaded.model.model.layers[0].self_attn.v_proj
    assert layer.weight.grad.abs().max() > 0
    assert loaded.model.visual.patch_embed.proj.weight.grad.abs().max() > 0
    assert loaded.model.lm_head.weight.grad is None  # masks do not pass through the logits


# Batches


def test_right_padded_batch_equals_its_rows_alone(loaded, encode, train_samples):
    samples = on_distinct_clips(train_samples, 3)
    together = sft_batch(loaded, encode, samples)
    lengths = together["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1  # or nothing would be padded
    outputs = loaded.model(**together)
    for row, sample in enumerate(samples):
        alone = loaded.model(**sft_batch(loaded, encode, [sample]))
        assert_close(outputs.logits[row, : lengths[row]], alone.logits[0], **CLOSE)
        assert_close(outputs.mask_logits[4 * row : 4 * row + 4], alone.mask_logits, **CLOSE)


def test_left_padded_prompts_equal_their_rows_alone(loaded, encode, train_samples):
    encoded = [encode(sample) for sample in on_distinct_clips(train_samples, 3)]
    assert len({len(row.prompt.prompt_ids) for row in encoded}) > 1
    together, _ = rollout_batch(loaded, encode, encoded)
    outputs = loaded.model(**together)
    for row, item in enumerate(encoded):
        batch, _ = rollout_batch(loaded, encode, [item])
        alone = loaded.model(**batch)
        assert_close(outputs.logits[row, together["attention_mask"][row].bool()], alone.logits[0], **CLOSE)
        assert_close(outputs.mask_logits[4 * row : 4 * row + 4], alone.mask_logits, **CLOSE)


def test_padding_side_does_not_matter(loaded, encode, train_samples):
    encoded = [encode(sample) for sample in on_distinct_clips(train_samples, 2)]
    left, _ = rollout_batch(loaded, encode, encoded)
    completions = [encode.tokenizer(chain_of(row.sample)).input_ids for row in encoded]
    right = right_pad([row.prompt.prompt_ids for row in encoded], completions, encode.tokenizer.pad_token_id)
    right["seg_index"], _ = find_last_token(
        right["input_ids"],
        right["attention_mask"],
        loaded.seg_token_id,
        num_completion_tokens=right["input_ids"].size(1),
    )
    del right["labels"]
    media = {name: value for name, value in left.items() if name not in right}
    assert_close(loaded.model(**left).mask_logits, loaded.model(**right, **media).mask_logits, **CLOSE)


def test_rows_on_one_clip_share_its_frames(loaded, encode, train_samples):
    first, second, other = train_samples[:3]
    assert first.media_id == second.media_id != other.media_id
    batch = sft_batch(loaded, encode, [first, other, second])
    assert batch["seg_frames"].shape == (2 * 4, 3, 32, 32)
    assert batch["seg_clip_index"].tolist() == [0, 1, 0]
    with calls_of(loaded.model.seg_head.mask_decoder.down1) as decoded:
        masks = loaded.model(**batch).mask_logits
    assert [shape[0] for shape in decoded] == [2 * 4]
    for row, sample in enumerate([first, other, second]):
        alone = loaded.model(**sft_batch(loaded, encode, [sample])).mask_logits
        assert_close(masks[4 * row : 4 * row + 4], alone, **CLOSE)


def clips_of_two_shapes(samples: list[AVSample]) -> dict[str, AVClip]:
    """The second sample's clip cut to 2 frames of 48 x 80 pixels and half its sound."""
    first, second = (load_clip(sample) for sample in samples)
    frames = np.tile(second.frames[:2, :48], (1, 1, 2, 1))[:, :, :80]
    masks = np.tile(second.gt_masks[:2, :48], (1, 1, 2))[:, :, :80]
    cut = AVClip(frames, second.waveform[: len(second.waveform) // 2], masks)
    return {samples[0].key: first, samples[1].key: cut}


def test_rows_may_differ_in_frames_size_and_sound(loaded, encode, train_samples):
    samples = on_distinct_clips(train_samples, 2)
    clips = clips_of_two_shapes(samples)
    encode.load = lambda sample: clips[sample.key]
    sizes = [clips[sample.key].frames.shape[1:3] for sample in samples]
    masks = row_mask_logits(
        loaded.model, loaded.model(**sft_batch(loaded, encode, samples)).mask_logits, torch.tensor([4, 2]), sizes
    )
    assert [row.shape for row in masks] == [(4, 64, 64), (2, 48, 80)]
    for row, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
        alone = loaded.model(**sft_batch(loaded, encode, [sample])).mask_logits
        [expected] = row_mask_logits(loaded.model, alone, torch.tensor([len(masks[row])]), [size])
        assert_close(masks[row], expected, **CLOSE)


@pytest.mark.parametrize("sizes", [[(64, 64), (64, 64)], [(64, 64), (48, 80)]], ids=["one size", "two sizes"])
def test_only_annotated_frames_are_left(loaded, sizes):
    mask_logits = torch.arange(6.0)[:, None, None].expand(6, 16, 16)  # frame by frame
    rows = row_mask_logits(loaded.model, mask_logits, torch.tensor([4, 2]), sizes, [(0, 3), None])
    assert [row.shape for row in rows] == [(2, *sizes[0]), (2, *sizes[1])]
    assert [row[:, 0, 0].tolist() for row in rows] == [[0, 3], [4, 5]]


# One clip for a whole group


def test_shared_media_gives_what_own_copies_give(loaded, encode, train_samples):
    samples = on_distinct_clips(train_samples, 2)
    results, patches_read = [], []
    for own_copies in (True, False):
        a, b = (encode(sample) for sample in samples)
        batch, media_index = rollout_batch(loaded, encode, [a, b, encode(samples[0]) if own_copies else a])
        assert media_index == ([0, 1, 2] if own_copies else [0, 1, 0])
        loaded.model.zero_grad()
        with calls_of(loaded.model.visual.patch_embed) as calls, shared_media(loaded.model, media_index):
            outputs = loaded.model(**batch)
        patches_read.append(sum(shape[0] for shape in calls))
        (outputs.logits.log_softmax(-1)[..., 0].mean() + outputs.mask_logits.square().mean()).backward()
        gradients = {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}
        results.append((outputs.logits, outputs.mask_logits, gradients))
    (logits, masks, gradients), (shared_logits, shared_masks, shared_gradients) = results
    assert patches_read == [3 * 128, 2 * 128]  # 2 x 8 x 8 patches a clip
    assert_close(shared_logits, logits, **CLOSE)
    assert_close(shared_masks, masks, **CLOSE)
    assert gradients.keys() == shared_gradients.keys()
    assert any(name.startswith("visual.") for name in gradients)
    assert any(name.startswith("audio_tower.") for name in gradients)
    for name, gradient in gradients.items():
        assert_close(shared_gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(loaded, encode, train_samples):
    a, b = (encode(sample) for sample in on_distinct_clips(train_samples, 2))
    batch, media_index = rollout_batch(loaded, encode, [a, a, b])
    loaded.model.train()
    gradients = []
    for _ in range(2):
        loaded.model.zero_grad()
        with shared_media(loaded.model, media_index):
            outputs = loaded.model(**batch)
        outputs.mask_logits.square().mean().backward()  # as a trainer, outside `shared_media`
        gradients.append({name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None})
        loaded.model.gradient_checkpointing_enable()
    assert loaded.model.is_gradient_checkpointing
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_shared_media_ends_with_its_block_even_after_an_error(loaded):
    with pytest.raises(RuntimeError), shared_media(loaded.model, [0, 0]):
        assert loaded.model.media_index == [0, 0]
        raise RuntimeError
    assert loaded.model.media_index is None


def test_shared_media_keeps_each_clip_with_its_rows(loaded, encode, train_samples):
    """Clips of different sizes and lengths of sound, so that a wrong split would shift every feature after it."""
    samples = on_distinct_clips(train_samples, 2)
    clips = clips_of_two_shapes(samples)
    encode.load = lambda sample: clips[sample.key]
    short, long = encode(samples[1]), encode(samples[0])
    rows = [short, short, long, short]  # as TRL has them: the copies of a prompt side by side
    batch, media_index = rollout_batch(loaded, encode, rows)
    assert media_index == [0, 0, 1, 0]
    with shared_media(loaded.model, media_index):
        outputs = loaded.model(**batch)
    for row, sample in enumerate([item.sample for item in rows]):
        alone_batch, _ = rollout_batch(loaded, encode, [encode(sample)])
        alone = loaded.model(**alone_batch)
        assert_close(outputs.logits[row, batch["attention_mask"][row].bool()], alone.logits[0], **CLOSE)


# TRL's fused LM head


def fused_labels(batch: dict, num_prompt_tokens: int) -> torch.Tensor:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :num_prompt_tokens] = -100
    return labels


def test_one_decoder_forward_gives_log_probs_and_masks(loaded, encode, train_samples):
    model = loaded.model
    encoded = [encode(sample) for sample in on_distinct_clips(train_samples, 2)]
    num_prompt_tokens = max(len(row.prompt.prompt_ids) for row in encoded)
    batch, _ = rollout_batch(loaded, encode, encoded)
    plain = model(**batch)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    install_head_forward(model)
    labels = fused_labels(batch, num_prompt_tokens)
    with calls_of(model.get_decoder().norm) as decoded:
        fused = model(**batch, labels=labels, fused_lm_head=True)
    assert len(decoded) == 1
    assert_close(fused.mask_logits, plain.mask_logits, **CLOSE)
    log_probs = plain.logits[:, :-1].log_softmax(-1)
    targets = batch["input_ids"][:, 1:, None]
    is_completion = labels[:, 1:] != -100
    expected = log_probs.gather(-1, targets)[..., 0]
    assert_close(fused.log_probs[is_completion], expected[is_completion], **CLOSE)
    assert (fused.log_probs[~is_completion] == 0).all()
    expected_entropy = -(log_probs.exp() * log_probs).sum(-1)
    assert_close(fused.entropy[is_completion], expected_entropy[is_completion], **CLOSE)


def test_outputs_of_a_head_are_a_declared_field(loaded, encode, train_samples):
    """DDP rebuilds an output from its dataclass fields; an extra key of the dict would be lost."""
    batch = sft_batch(loaded, encode, train_samples[:1])
    add_fused_lm_head(loaded.model)
    install_head_forward(loaded.model)
    fused = loaded.model(**batch, labels=batch["input_ids"], fused_lm_head=True)
    for outputs, base in ((loaded.model(**batch), object), (fused, FusedCausalLMOutput)):
        assert isinstance(outputs, base)
        names = [field.name for field in dataclasses.fields(outputs)]
        assert "head_outputs" in names
        rebuilt = type(outputs)(**{name: getattr(outputs, name) for name in names})
        assert torch.equal(rebuilt.mask_logits, outputs.mask_logits)


def test_log_probs_depend_on_every_earlier_completion_token_and_on_no_later_one(loaded, encode, train_samples):
    model = loaded.model
    encoded = [encode(train_samples[0])]
    batch, _ = rollout_batch(loaded, encode, encoded)
    prompt_length = len(encoded[0].prompt.prompt_ids)
    add_fused_lm_head(model)
    install_head_forward(model)

    def completion_logps() -> torch.Tensor:
        labels = fused_labels(batch, prompt_length)
        return model(**batch, labels=labels, fused_lm_head=True).log_probs[0, prompt_length - 1 :]

    before = completion_logps()
    changed = 3
    batch["input_ids"][0, prompt_length + changed] = encode.tokenizer.convert_tokens_to_ids("I")
    after = completion_logps()
    assert torch.equal(before[:changed], after[:changed])
    assert (before[changed + 1 :] != after[changed + 1 :]).all()


def test_base_model_is_the_decoder_without_projection(loaded, encode, train_samples):
    batch = sft_batch(loaded, encode, train_samples[:1])
    plain = {name: value for name, value in batch.items() if not name.startswith("seg_")}
    full = loaded.model(**plain, output_hidden_states=True)
    with calls_of(loaded.model.lm_head) as projected:
        states = loaded.model.base_model(**plain).last_hidden_state
    assert torch.equal(states, full.hidden_states[-1])
    assert [shape[-1] for shape in projected] == [0]  # no logits of the whole sequence
    assert torch.equal(loaded.model(**plain).logits, full.logits)  # and the projection is back


def test_base_model_leaves_a_patched_projection_in_place(loaded, encode, train_samples):
    """TRL's `cast_lm_head_to_fp32` replaces the forward of the head's instance."""
    batch = sft_batch(loaded, encode, train_samples[:1])
    plain = {name: value for name, value in batch.items() if not name.startswith("seg_")}
    loaded.model.lm_head.forward = lambda states: states[..., :3]
    loaded.model.base_model(**plain)
    assert loaded.model(**plain).logits.size(-1) == 3


def test_generation_still_works_behind_the_wrapped_forward(loaded, encode, train_samples):
    row = encode(train_samples[0])
    ids = torch.tensor([row.prompt.prompt_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **row.prompt.features}
    options = {"max_new_tokens": 5, "do_sample": False}
    before = loaded.model.generate(**inputs, **options)
    add_fused_lm_head(loaded.model)
    install_head_forward(loaded.model)
    assert torch.equal(loaded.model.generate(**inputs, **options), before)


# The head


def test_row_of_weight_zero_keeps_the_graph(loaded, encode, train_samples):
    """A completion without `[SEG]` runs through the head all the same: every rank needs gradients of every module."""
    batch = sft_batch(loaded, encode, train_samples[:1], completion=lambda sample: "Look: I see a drum.")
    assert batch["seg_index"].item() == batch["input_ids"].size(1) - 1
    mask_logits = loaded.model(**batch).mask_logits
    rows = row_mask_logits(loaded.model, mask_logits, torch.tensor([4]), [(64, 64)])
    mask_loss(rows, [torch.ones(4, 64, 64).bool()], row_weights=torch.zeros(1)).total.backward()
    for name, parameter in loaded.model.seg_head.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


def test_head_keeps_the_initialisation_of_its_layers(loaded):
    """Linear(64, 64) draws from [-1/8, 1/8], standard deviation 0.072; the language model's rule is 0.1 here."""
    fresh = AuroraQwen2_5Omni(loaded.model.config)
    assert fresh.seg_head.projector[0].weight.std().item() == pytest.approx(0.072, abs=0.005)
    assert fresh.lm_head.weight.std().item() == pytest.approx(0.1, abs=0.005)


def test_bfloat16_model_gives_float32_masks(loaded, encode, train_samples):
    batch = sft_batch(loaded, encode, train_samples[:1])
    expected = loaded.model(**batch).mask_logits
    masks = loaded.model.to(torch.bfloat16)(**batch).mask_logits
    assert masks.dtype == torch.float32
    assert_close(masks, expected, rtol=0.1, atol=0.1)


def test_a_model_without_heads_is_built_and_answers_in_words(loaded):
    config = loaded.model.config
    config.segmenter = None
    model = AuroraQwen2_5Omni(config)
    ids = torch.arange(5, 19).view(2, 7)
    assert model.heads == {}
    assert model(input_ids=ids).logits.shape[:2] == ids.shape
    with pytest.raises(ValueError, match="no head 'masks'"):
        model(input_ids=ids, seg_index=torch.tensor([1, 2]), head_name="masks")


# Positions that are projected onto the vocabulary


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 5])], ids=["last", "last three", "chosen"])
def test_kept_logits_are_those_of_all_positions(loaded, keep):
    ids = torch.arange(5, 19).view(2, 7)
    everything = loaded.model(input_ids=ids).logits
    kept = loaded.model(input_ids=ids, logits_to_keep=keep).logits
    assert_close(kept, everything[:, keep if torch.is_tensor(keep) else slice(-keep, None)], **CLOSE)
    assert_close(loaded.model(input_ids=ids).logits, everything)  # the head is as it was


def test_an_error_while_projecting_leaves_the_head_as_it_was(loaded):
    with pytest.raises(TypeError), projecting_only(loaded.model.lm_head, 1):
        loaded.model.lm_head(None)
    assert loaded.model.lm_head(torch.zeros(1, 3, loaded.model.lm_head.in_features)).shape[1] == 3


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}])
def test_generate_answers_the_same_with_the_last_position_alone(loaded, projected, options, monkeypatch):
    ids = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8]])
    asked = {"input_ids": ids, "max_new_tokens": 6, "do_sample": False, **options}
    found = loaded.model.eval().generate(**asked)
    assert max(projected) <= 4  # speculation reads the candidates' positions as well
    del projected[:]
    monkeypatch.setattr(AuroraQwen2_5Omni, "_supports_logits_to_keep", lambda self: False)
    assert torch.equal(found, loaded.model.generate(**asked))
    assert max(projected) >= 4
