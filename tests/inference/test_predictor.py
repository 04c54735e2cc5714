"""What a model answers depends on the sample and on the seed, never on the company it is computed in."""

import dataclasses

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVClip
from aurora_rl.inference.predictor import Completion, Predictor, SeededSampling
from aurora_rl.models.collate import SFTCollator, collate_frames
from aurora_rl.models.grounding import row_mask_logits
from aurora_rl.models.heads.masks import MaskHead
from aurora_rl.tasks.targets import Target, gold_chain
from tests.words_task import NameTheObject

NUM_TOKENS = 10


@pytest.fixture
def predictor(loaded, encode, train_samples) -> Predictor:
    """Of a random model that knows six words, `[SEG]` and the end of the turn among them.

    Their mean logits are levelled, so that what is said depends on the prompt instead of being one word for ever.
    """
    words = [*encode.tokenizer(" drum bell dog bird[SEG]").input_ids, encode.tokenizer.eos_token_id]
    assert len(words) == 6
    collate = SFTCollator(encode, loaded.seg_token_id, lambda sample: Target(" drum bell dog bird[SEG]"))
    batch = collate([sample.to_row() for sample in train_samples[:4]])
    with torch.no_grad():
        logits = loaded.model(**{k: v for k, v in batch.items() if not k.startswith(("seg_", "gt_"))}).logits
    means = logits[batch["labels"] != -100].mean(0)
    loaded.model.lm_head.bias.fill_(-1e4)
    loaded.model.lm_head.bias[words] = -means[words]
    return Predictor(loaded.model, encode, loaded.seg_token_id, max_completion_length=NUM_TOKENS, batch_size=4)


def predict(predictor: Predictor, samples, **options) -> list[list[Completion]]:
    return [completions for _, completions in predictor.predict(samples, **options)]


def assert_same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    found_rows, expected_rows = sum(found, []), sum(expected, [])
    assert [row.text for row in found_rows] == [row.text for row in expected_rows]
    for a, b in zip(found_rows, expected_rows, strict=True):
        assert (a.mask_probs is None) == (b.mask_probs is None)
        if a.mask_probs is not None:
            assert_close(a.mask_probs, b.mask_probs, rtol=1e-3, atol=1e-4)


# Greedy


def test_clips_of_sound_alone_answer_beside_others_in_words(predictor, train_samples, monkeypatch):
    """A batch of the model holds one kind of media; a task with a head needs frames, and says so."""
    monkeypatch.setattr(predictor.encode, "task", NameTheObject())
    monkeypatch.setattr(predictor.encode, "frame_inputs", None)
    samples = [
        dataclasses.replace(s, frame_paths=(), mask_paths=()) if i % 2 else s for i, s in enumerate(train_samples[:5])
    ]
    predictor.batch_size = 5
    together = predict(predictor, samples)
    sampled = predict(predictor, samples, num_samples=2)
    predictor.batch_size = 1
    assert_same(together, predict(predictor, samples))
    predictor.batch_size = 2
    assert_same(sampled, predict(predictor, samples, num_samples=2))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_greedy_answers_do_not_depend_on_the_batch(predictor, train_samples, batch_size):
    samples = train_samples[:7]
    expected = predict(predictor, samples)
    assert len({completions[0].text for completions in expected}) > 3
    assert {completions[0].mask_probs is None for completions in expected} == {True, False}
    predictor.batch_size = batch_size
    assert_same(predict(predictor, samples), expected)


def test_clips_with_and_without_sound_answer_together_as_they_do_alone(predictor, train_samples):
    """In generation, too, where positions are counted by another path than in training."""
    samples = [dataclasses.replace(s, audio_path=None) if i % 2 else s for i, s in enumerate(train_samples[:5])]
    predictor.batch_size = 5
    together = predict(predictor, samples)
    predictor.batch_size = 1
    assert_same(together, predict(predictor, samples))
    with_sound = predict(predictor, train_samples[:5])
    assert [a[0].text == b[0].text for a, b in zip(together, with_sound, strict=True)][::2] == [True] * 3
    assert not all(a[0].text == b[0].text for a, b in zip(together[1::2], with_sound[1::2], strict=True))


def test_samples_come_back_in_order_and_encoded(predictor, train_samples):
    results = list(predictor.predict(iter(train_samples[:5])))
    assert [encoded.sample for encoded, _ in results] == train_samples[:5]
    assert [len(completions) for _, completions in results] == [1] * 5


def test_greedy_answer_is_that_of_plain_generate(predictor, loaded, encode, train_samples):
    [[completion]] = predict(predictor, train_samples[:1])
    row = encode(train_samples[0])
    ids = torch.tensor([row.prompt.prompt_ids])
    sequences = loaded.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **row.prompt.features,
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
    )
    expected = encode.tokenizer.decode(sequences[0, ids.size(1) :], skip_special_tokens=True)
    assert completion.text == expected


def test_completion_has_at_most_the_tokens_asked_for(predictor, loaded, encode, train_samples):
    loaded.model.lm_head.bias[encode.tokenizer.eos_token_id] = -1e4
    predictor.max_completion_length = 3
    [[completion]] = predict(predictor, train_samples[:1])
    assert 0 < len(encode.tokenizer(completion.text).input_ids) <= 3


def test_end_of_turn_ends_the_completion_and_is_not_part_of_its_text(predictor, encode, train_samples):
    texts = [row.text for completions in predict(predictor, train_samples[:4], num_samples=4) for row in completions]
    lengths = {len(encode.tokenizer(text).input_ids) for text in texts}
    assert len(lengths) > 3  # they ended at different places, in one batch
    assert not any("<|" in text for text in texts)


# Sampling


def test_sampled_answers_do_not_depend_on_the_batch(predictor, train_samples):
    samples = train_samples[:5]
    expected = predict(predictor, samples, num_samples=2, seed=3)
    predictor.batch_size = 7  # three samples at once instead of two
    assert_same(predict(predictor, samples, num_samples=2, seed=3), expected)
    predictor.batch_size = 1  # less than the completions of one sample
    assert_same(predict(predictor, samples, num_samples=2, seed=3), expected)


def test_sampled_answers_do_not_depend_on_which_other_samples_are_asked(predictor, train_samples):
    """As when the work is shared by processes."""
    samples = train_samples[:4]
    together = predict(predictor, samples, num_samples=2)
    shares = [predict(predictor, samples[i::2], num_samples=2) for i in range(2)]
    assert_same([shares[0][0], shares[1][0], shares[0][1], shares[1][1]], together)


def test_the_samples_of_a_row_read_its_prompt_once(predictor, train_samples):
    num_rows = []
    decoder = predictor.model.get_decoder()
    decoder.register_forward_pre_hook(lambda *given: num_rows.append(len(given[-1]["inputs_embeds"])), with_kwargs=True)
    predictor.generate([row for row in map(predictor.encode, train_samples[:2]) for _ in range(3)])
    assert num_rows[:2] == [2, 6]


def test_further_samples_leave_the_first_ones_alone(predictor, train_samples):
    two = predict(predictor, train_samples[:2], num_samples=2)
    three = predict(predictor, train_samples[:2], num_samples=3)
    assert_same([completions[:2] for completions in three], two)


def test_seed_and_number_of_the_draw_change_the_answer(predictor, train_samples):
    [first] = predict(predictor, train_samples[:1], num_samples=4, seed=0)
    [other] = predict(predictor, train_samples[:1], num_samples=4, seed=1)
    assert len({completion.text for completion in first}) > 1
    assert [completion.text for completion in first] != [completion.text for completion in other]


def test_global_random_state_does_not_matter(predictor, train_samples):
    expected = predict(predictor, train_samples[:2], num_samples=2)
    torch.manual_seed(99)
    assert_same(predict(predictor, train_samples[:2], num_samples=2), expected)


def test_sampling_at_temperature_near_zero_is_greedy(predictor, train_samples):
    assert_same(
        predict(predictor, train_samples[:3], num_samples=1, temperature=1e-5), predict(predictor, train_samples[:3])
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature):
    """5000 draws: the standard error of a frequency is below 0.0071, and 0.03 is four of them."""
    logits = torch.tensor([0.5, -0.5, 1.0])
    draws = SeededSampling([str(i) for i in range(5000)], temperature=temperature)
    scores = logits.expand(5000, 3)
    first = draws(torch.zeros(5000, 1), scores).argmax(-1)
    second = draws(torch.zeros(5000, 2), scores).argmax(-1)
    expected = (logits / temperature).softmax(-1)
    for tokens in (first, second):
        frequencies = torch.bincount(tokens, minlength=3) / 5000
        assert_close(frequencies, expected, rtol=0, atol=0.03)
    # The second token is drawn anew: the two agree as often as independent draws do.
    assert (first == second).float().mean().item() == pytest.approx(expected.square().sum().item(), abs=0.03)


def test_suppressed_token_is_never_drawn():
    scores = torch.tensor([0.0, -1e4, float("-inf")]).expand(500, 3)
    draws = SeededSampling([str(i) for i in range(500)], temperature=2.0)
    assert set(draws(torch.zeros(500, 1), scores).argmax(-1).tolist()) == {0}


def test_equal_names_draw_equal_noise():
    draws = SeededSampling(["a", "b", "a"], temperature=1.0)
    noise = draws(torch.zeros(3, 1), torch.zeros(3, 5))
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


# Masks


def test_only_a_completion_with_seg_has_masks(predictor, train_samples):
    completions = sum(predict(predictor, train_samples[:6], num_samples=4), [])
    with_seg = ["[SEG]" in completion.text for completion in completions]
    assert {True, False} == set(with_seg)
    assert [completion.mask_probs is not None for completion in completions] == with_seg
    for completion in completions:
        if completion.mask_probs is not None:
            assert completion.mask_probs.shape == (4, 64, 64)
            assert completion.mask_probs.dtype == torch.float32
            assert 0 <= completion.mask_probs.min() <= completion.mask_probs.max() <= 1


def test_masks_are_those_of_a_forward_pass_over_prompt_and_completion(predictor, loaded, encode, train_samples):
    """Nothing of the batch's padding and of its other rows is left in them."""
    checked = 0
    for sample, completions in zip(
        train_samples[:4], predict(predictor, train_samples[:4], num_samples=3), strict=True
    ):
        row = encode(sample)
        for completion in completions:
            completion_ids = encode.tokenizer(completion.text).input_ids
            if loaded.seg_token_id not in completion_ids:
                continue
            last_seg = len(completion_ids) - 1 - completion_ids[::-1].index(loaded.seg_token_id)
            ids = torch.tensor([[*row.prompt.prompt_ids, *completion_ids]])
            with torch.no_grad():
                outputs = loaded.model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    **row.prompt.features,
                    seg_index=torch.tensor([len(row.prompt.prompt_ids) + last_seg]),
                    **collate_frames([row]),
                )
            [logits] = row_mask_logits(loaded.model, outputs.mask_logits, torch.tensor([4]), [row.frame_size])
            assert_close(completion.mask_probs, logits.sigmoid(), rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked > 0


def test_masks_come_at_the_frames_own_size(predictor, loaded, encode, train_samples):
    def load(sample) -> AVClip:
        clip = load_clip(sample)
        if sample.media_id == train_samples[0].media_id:
            return clip
        return AVClip(clip.frames[:2, :, :48], clip.waveform, clip.gt_masks[:2, :, :48])

    encode.load = load
    loaded.model.lm_head.bias[loaded.seg_token_id] = 1e3
    shapes = [c.mask_probs.shape for [c] in predict(predictor, [train_samples[0], train_samples[2]])]
    assert shapes == [(4, 64, 64), (2, 64, 48)]


def test_lora_model_answers_with_its_trained_head(loaded, encode, train_samples):
    loaded.model.lm_head.bias[loaded.seg_token_id] = 1e3
    model = get_peft_model(loaded.model, peft_config(ModelArguments(model="", use_peft=True), loaded))
    predictor = Predictor(model, encode, loaded.seg_token_id, max_completion_length=2)
    [[before]] = predict(predictor, train_samples[:1])
    with torch.no_grad():
        loaded.model.seg_head.modules_to_save["default"].projector[2].bias[-1] += 3.0  # of all the mask logits
    [[after]] = predict(predictor, train_samples[:1])
    assert before.text == after.text == "[SEG][SEG]"
    assert_close(after.mask_probs.logit(), before.mask_probs.logit() + 3.0, rtol=1e-3, atol=1e-3)


def test_dropout_is_off_though_the_model_was_training(loaded, encode, train_samples):
    loaded.model.lm_head.bias[loaded.seg_token_id] = 1e3
    config = peft_config(ModelArguments(model="", use_peft=True, lora_dropout=0.9), loaded)
    model = get_peft_model(loaded.model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    predictor = Predictor(model.train(), encode, loaded.seg_token_id, max_completion_length=2)
    assert_same(predict(predictor, train_samples[:1]), predict(predictor, train_samples[:1]))


def test_second_predictor_on_one_model_gives_the_same(predictor, loaded, encode, train_samples):
    """The evaluation recipe makes one for every ablation."""
    expected = predict(predictor, train_samples[:2])
    again = Predictor(loaded.model, encode, loaded.seg_token_id, max_completion_length=NUM_TOKENS)
    assert_same(predict(again, train_samples[:2]), expected)


def test_model_can_be_trained_after_it_has_answered(predictor, loaded, encode, train_samples):
    """What inference mode leaves behind in the model must not end up in a graph."""
    predict(predictor, train_samples[:1])
    batch = SFTCollator(encode, loaded.seg_token_id, gold_chain)([train_samples[2].to_row()])
    inputs = {name: value for name, value in batch.items() if name not in ("gt_masks", "seg_weights")}
    outputs = loaded.model(**inputs)
    (outputs.loss + outputs.mask_logits.mean()).backward()
    assert loaded.model.model.layers[0].self_attn.v_proj.weight.grad.abs().max() > 0


def test_masks_of_silent_clips_are_answered_too(predictor, encode, train_samples):
    encode.load = lambda sample: AVClip(
        load_clip(sample).frames, np.zeros(32000, np.float32), load_clip(sample).gt_masks
    )
    assert len(predict(predictor, train_samples[:2])) == 2


# No [SEG]


def test_appended_seg_gives_masks_and_leaves_the_text(predictor, train_samples):
    without = predict(predictor, train_samples[:7])
    predictor.append_seg = True
    appended = predict(predictor, train_samples[:7])
    assert [c.text for [c] in appended] == [c.text for [c] in without]
    assert {c.mask_probs is None for [c] in without} == {True, False}
    for [before], [after] in zip(without, appended, strict=True):
        assert after.mask_probs is not None
        if before.mask_probs is not None:
            assert_close(after.mask_probs, before.mask_probs, rtol=1e-3, atol=1e-4)


def test_appended_seg_reads_the_state_at_the_seg_that_was_appended(predictor, loaded, encode, train_samples):
    closing = encode.tokenizer(" It is [SEG].").input_ids
    predictor.append_seg = True
    [ids] = predictor._with_seg([torch.tensor([5, 6, encode.tokenizer.eos_token_id])])
    assert ids.tolist() == [5, 6, *closing]
    [ids] = predictor._with_seg([torch.tensor([5, loaded.seg_token_id, 7])])
    assert ids.tolist() == [5, loaded.seg_token_id, 7]


# What is projected onto the vocabulary


@pytest.mark.parametrize("options", [{}, {"num_samples": 2}], ids=["greedy", "sampled"])
def test_only_the_last_position_of_a_prompt_is_projected(predictor, train_samples, projected, options):
    predict(predictor, train_samples[:2], **options)
    assert projected and set(projected) == {1}


# Rows annotated in part, and tasks of words


def test_masks_are_predicted_on_every_frame_whichever_are_annotated(predictor, train_samples):
    sample = train_samples[0]
    in_part = dataclasses.replace(sample, mask_paths=(sample.mask_paths[0], "", "", ""))
    unknown = dataclasses.replace(sample, mask_paths=())
    predictor.append_seg = True
    [[whole]], [[partly]], [[none]] = (predict(predictor, [row]) for row in (sample, in_part, unknown))
    assert whole.mask_probs.shape == (4, 64, 64)
    assert torch.equal(partly.mask_probs, whole.mask_probs) and torch.equal(none.mask_probs, whole.mask_probs)


def test_task_of_words_runs_one_pass_and_no_head(predictor, encode, train_samples, monkeypatch):
    words = Predictor(predictor.model, encode, max_completion_length=NUM_TOKENS, append_seg=True)
    expected = [[each.text for each in row] for row in predict(words, train_samples[:2])]
    monkeypatch.setattr(encode, "task", NameTheObject())
    monkeypatch.setattr(encode, "frame_inputs", None)
    monkeypatch.setattr(MaskHead, "forward", lambda *args, **options: pytest.fail("the mask head was called"))
    words = Predictor(predictor.model, encode, max_completion_length=NUM_TOKENS, append_seg=True)
    assert words.seg_token_id is None
    answers = predict(words, train_samples[:2])
    assert [[each.text for each in row] for row in answers] == expected
    assert all(each.mask_probs is each.prediction is None for [each] in answers)
