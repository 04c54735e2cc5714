"""A real vLLM engine in the training process writes what the policy would write. Each test has its control."""

import copy
import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig

from aurora_rl.assembly.answering import VLLMPredictor
from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.evaluation import of_model
from aurora_rl.evaluation.of_model import EvaluationArguments, evaluate_model
from aurora_rl.evaluation.records import RowResult, read_results
from aurora_rl.inference.predictor import Predictor, SeededSampling
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import EncodedPrompt
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.quantization import not_quantized
from aurora_rl.rollout.engine import engine_input
from aurora_rl.rollout.weights import engine_weights
from benchmarks import weight_sync
from benchmarks.vllm_caches import Counts, ask, counted
from benchmarks.vllm_parity import AFTER, BEFORE, compare, measure, report

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

#: Largest difference of log-probabilities in float32.
SAME = 1e-4


@pytest.fixture(scope="module")
def rows(generation, make_prompts):
    """Sound after the frames, between them (several chunks), none at all, and text alone, in one batch."""
    return [
        make_prompts(generation.loaded, kind=kind, seed=seed, seconds=seconds)
        for seed, (kind, seconds) in enumerate(
            [("separate", 2), ("interleaved", 2), ("text", 2), ("interleaved", 7), ("separate", 5), ("silent", 3)]
        )
    ]


def trained(loaded: LoadedModel, model: nn.Module, steps: int = 3) -> nn.Module:
    """A policy after some optimiser steps at a high learning rate."""
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    input_ids = torch.randint(0, 300, (4, 24))
    for _ in range(steps):
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


# Prompts


def test_all_kinds_of_prompts_give_the_policys_log_probabilities(
    generation, generate, rows, difference, record_property
):
    rollouts = generate(rows)
    assert [len(ids) for ids in rollouts.completion_ids] == [len(logps) for logps in rollouts.logprobs]
    found = difference(generation.model, generation.loaded, rows, rollouts)
    assert found < SAME
    record_property("cell", f"qwen2_5_omni|{BEFORE}|{found:.0e}")


def test_greedy_decoding_gives_the_tokens_of_transformers(generation, make_prompts):
    kinds = ("separate", "interleaved", "text", "silent")
    prompts = [make_prompts(generation.loaded, kind=kinds[i % 4], seed=i, seconds=1 + i % 3) for i in range(64)]
    agreements = measure(generation.loaded, prompts, generation, max_tokens=24)
    parted = [agreement for agreement in agreements if not agreement.is_same]
    assert all(abs(agreement.margin) < 1e-4 for agreement in parted)  # where rounding decides
    assert len(parted) < 4
    assert max(agreement.max_difference for agreement in agreements) < SAME


def test_where_two_completions_part_is_told_with_its_margin(generation, generate, rows):
    loaded, row = generation.loaded, rows[2]
    rollouts = generate([row])
    ids, logprobs = rollouts.completion_ids[0], rollouts.logprobs[0]
    other = [*ids[:3], (ids[3] + 1) % 200, *ids[4:]]
    agreement = compare(loaded.model, loaded, row, ids, other, logprobs)
    assert (agreement.num_same, agreement.num_tokens) == (3, len(ids))
    assert agreement.margin > 0
    assert f"clip 0 differs from token 3 of {len(ids)} on, by a margin of" in report([agreement])


def test_vllms_own_positions_of_interleaved_prompts_are_others(generation, generate, rows, difference, monkeypatch):
    from aurora_rl.models.mllm.qwen2_5_omni.engine import AuroraQwen2_5OmniForConditionalGeneration as Corrected

    monkeypatch.delattr(Corrected, "get_mrope_input_positions")
    generation.llm.reset_prefix_cache()
    interleaved, separate = [rows[1], rows[3]], [rows[0], rows[4], rows[5]]
    assert difference(generation.model, generation.loaded, interleaved, generate(interleaved)) > 0.01
    assert difference(generation.model, generation.loaded, separate, generate(separate)) < SAME
    generation.llm.reset_prefix_cache()


def test_prompts_of_which_a_part_is_known_are_read_right(generation, generate, make_prompts, difference):
    """The first block of each is kept from the pass before: what is left of frames and sound begins anywhere."""
    kinds = ("interleaved", "separate", "interleaved", "interleaved")
    rows = [make_prompts(generation.loaded, kind=kind, seed=i, seconds=5 + i) for i, kind in enumerate(kinds)]
    block = generation.llm.llm_engine.vllm_config.cache_config.block_size
    assert all(block < len(row.prompt_ids) for row in rows)
    generation.llm.reset_prefix_cache()
    for _ in range(2):
        assert difference(generation.model, generation.loaded, rows, generate(rows)) < SAME
    for row in rows:  # a batch of one has no neighbour that makes vLLM look closer
        assert difference(generation.model, generation.loaded, [row], generate([row])) < SAME


def test_another_prompt_than_the_policys_is_an_error_that_shows_where(generation, generate, make_prompts):
    row = make_prompts(generation.loaded, kind="text")
    other = dataclasses.replace(row, prompt_ids=[*row.prompt_ids[:2], 5, *row.prompt_ids[3:]])
    with pytest.raises(ValueError, match="differ from token 2 on"):
        generate([other])


def test_placeholders_that_are_expanded_already_are_an_error(generate, rows):
    engine = dataclasses.replace(rows[0].engine, prompt_ids=rows[0].prompt_ids)
    with pytest.raises(ValueError, match="differ from token"):
        generate([dataclasses.replace(rows[0], engine=engine)])


# Sampling


def test_multimodal_tokens_are_never_sampled(generation, generate, rows, point_at, monkeypatch):
    tempted = copy.deepcopy(generation.loaded.model)
    multimodal = generation.family.multimodal_token_ids(tempted.config)
    favourite = generate(rows[:1]).completion_ids[0][0]
    with torch.no_grad():  # wherever the policy likes its favourite token, it likes these even more
        tempted.lm_head.weight[multimodal] = 2 * tempted.lm_head.weight[favourite]
    point_at(tempted)
    monkeypatch.setattr(generation, "temperature", 1.0)

    def hits() -> int:
        rollouts = generate([row for row in rows for _ in range(4)])
        return sum(token in multimodal for ids in rollouts.completion_ids for token in ids)

    assert hits() == 0
    monkeypatch.setattr(type(generation), "logit_bias", {})
    assert hits() > 0


def test_generation_kwargs_win_over_the_options_but_not_over_what_training_rests_on(generation, monkeypatch):
    image = generation.loaded.model.config.image_token_id
    suppressed = dict(generation.logit_bias)
    asked = {
        "max_tokens": 7,
        "seed": 3,
        "logprobs": 5,
        "logit_bias": {"2": 4.0, image: 50.0},
    }  # JSON's keys are strings
    monkeypatch.setattr(generation, "generation_kwargs", asked)
    options = generation._sampling_options()
    assert suppressed[image] == -100.0
    assert options["logit_bias"] == {2: 4.0, **suppressed}
    assert (options["max_tokens"], options["logprobs"]) == (7, 0)
    params = generation._sampling_params(11)
    assert (params.seed, params.max_tokens, params.logprobs) == (11, 7, 0)
    assert [generation._sampling_params(11, said).max_tokens for said in ([5] * 3, [5] * 7)] == [4, 1]
    assert params.logit_bias == options["logit_bias"]


def test_a_completion_ends_where_the_trainer_takes_it_to_end(generation, generate, rows, monkeypatch):
    """The engine has started without the second end, as a server may have."""
    config, end = generation.loaded.model.generation_config, generation.loaded.processor.tokenizer.eos_token_id
    before = generate(rows).completion_ids
    second = next(token for ids in before for token in ids[:-1] if token != end)
    monkeypatch.setattr(config, "eos_token_id", [second])
    after = generate(rows).completion_ids
    expected = [ids[: ids.index(second) + 1] if second in ids else ids for ids in before]
    assert after == expected != before
    monkeypatch.setattr(generation, "generation_kwargs", {"ignore_eos": False, "stop_token_ids": []})
    assert generate(rows).completion_ids == expected


def test_seeded_prompts_of_more_tokens_than_a_step_takes_are_answered_as_alone(generation, generate, rows, monkeypatch):
    monkeypatch.setattr(generation, "temperature", 1.0)
    monkeypatch.setattr(generation, "max_completion_length", 4)
    size = generation.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    long = [rows[3], rows[4]]  # of 7 and 5 s
    many = [long[i % 2] for i in range(2 * size // sum(len(row.prompt_ids) for row in long) + 4)]
    assert sum(len(row.prompt_ids) for row in many) > size
    seeds = list(range(len(many)))
    generation.llm.reset_prefix_cache()
    together = generate(many, seeds=seeds).completion_ids
    alone = [generate([row], seeds=[seed]).completion_ids[0] for row, seed in list(zip(many, seeds, strict=True))[::8]]
    assert together[::8] == alone
    assert len({tuple(ids) for ids in together}) > len(many) / 2


def test_a_request_is_repeated_by_its_seed(generation, generate, rows, monkeypatch):
    monkeypatch.setattr(generation, "temperature", 1.0)
    same_prompt = [rows[0]] * 4
    first = generate(same_prompt, seeds=[1, 2, 3, 4])
    again = generate(same_prompt[:2], seeds=[3, 1])
    assert again.completion_ids == [first.completion_ids[2], first.completion_ids[0]]
    assert len({tuple(ids) for ids in first.completion_ids}) == 4


def test_a_script_that_asks_gets_the_engines_completions_by_the_seed_of_each_draw(
    generation, generate, rows, monkeypatch
):
    monkeypatch.setattr(generation, "temperature", generation.temperature)  # put back, as the predictor sets it
    [greedy] = generate(rows[:1]).completion_ids
    predictor = VLLMPredictor(generation, generation.model, SimpleNamespace(), seg_token_id=0, max_completion_length=24)
    noise = SeededSampling(["0/a/0", "0/a/1", "0/a/0"], temperature=1.0)
    first, second, again = predictor.generate([SimpleNamespace(prompt=rows[0])] * 3, noise)
    assert first.tolist() == again.tolist() != second.tolist()
    seeds = [generator.initial_seed() % 2**31 for generator in noise.generators]
    assert generate([rows[0]] * 2, seeds=seeds[:2]).completion_ids == [first.tolist(), second.tolist()]
    assert [ids.tolist() for ids in predictor.generate([SimpleNamespace(prompt=rows[0])])] == [greedy]
    monkeypatch.setattr(generation, "max_model_length", len(rows[0].prompt_ids) + 23)  # vLLM would end it a token early
    with pytest.raises(ValueError, match="vllm_max_model_length is .*: set it to that at least"):
        predictor.generate([SimpleNamespace(prompt=rows[0])])


# Evaluation


@pytest.fixture
def evaluate(generation, tiny_checkpoint, data_args, tmp_path, monkeypatch):
    """Scores the checkpoint that the engine has the weights of: by that engine, or by transformers."""
    for name, value in {"temperature": generation.temperature, "max_completion_length": 12}.items():
        monkeypatch.setattr(generation, name, value)
    monkeypatch.setattr(of_model, "start_engine", lambda args, loaded: generation if args.use_vllm else None)

    def run(*, use_vllm: bool, **changes: object) -> dict[str, list[RowResult]]:
        folder = tmp_path / f"by_vllm_{use_vllm}"
        args = EvaluationArguments(
            output_dir=str(folder),
            split=["test_s"],
            num_samples=2,
            ablations=["audio_muted", "frames_blanked"],
            max_completion_length=12,
            use_cpu=True,
            use_vllm=use_vllm,
        )
        data = dataclasses.replace(data_args, **changes)
        scores = evaluate_model(ModelArguments(model=tiny_checkpoint), data, args)
        assert scores["sampler"] == ("vllm" if use_vllm else "transformers")
        passes = {"": folder, **{name: folder / f"scores.{name}.json" for name in args.ablations}}
        return {name: read_results(path) for name, path in passes.items()}

    return run


def test_an_evaluation_by_vllm_finds_what_one_by_transformers_finds(evaluate):
    ours, vllms = evaluate(use_vllm=False), evaluate(use_vllm=True)
    pairs = {name: list(zip(ours[name], vllms[name], strict=True)) for name in ours}
    same = {name: [(a, b) for a, b in pairs[name] if a.greedy.text == b.greedy.text] for name in pairs}
    assert all(len(same[name]) >= len(pairs[name]) - 1 for name in pairs)  # near ties may fall to either side
    for a, b in (pair for of_pass in same.values() for pair in of_pass):
        assert pytest.approx((b.J, b.F, b.S), abs=1e-3) == (a.J, a.F, a.S)
        assert a.greedy.pred_masks
    texts = {name: [row.greedy.text for row in rows] for name, rows in vllms.items()}
    assert texts[""] != texts["audio_muted"] and texts[""] != texts["frames_blanked"]
    assert all(len(row.sampled) == 2 for row in vllms[""])


def test_a_task_without_a_head_asks_the_model_nothing_where_vllm_samples(evaluate, monkeypatch):
    words = {"task": "aurora_rl.tasks.multiple_choice:MultipleChoice", "benchmark": "questions", "chains": None}

    def refuse(*args, **options):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(Predictor, "_inputs", refuse)
    rows = evaluate(use_vllm=True, **words)[""]
    assert rows and all(row.greedy.text for row in rows)
    with pytest.raises(AssertionError, match="the model was asked"):
        evaluate(use_vllm=False, **words)


# Caches


@pytest.fixture
def count_copies(generation, make_prompts, monkeypatch):
    """Counts what some copies of each prompt cost an engine, whose caches are as they are."""
    monkeypatch.setattr(generation, "max_completion_length", 4)

    def count(prompts: list[EncodedPrompt], copies: int) -> Counts:
        with counted(generation, prompts * copies) as counts:
            ask(generation, prompts, copies, "read first")
        return counts[0]

    return count


@pytest.fixture(scope="module")
def long(generation, make_prompts) -> list[EncodedPrompt]:
    """Two prompts of several blocks."""
    return [make_prompts(generation.loaded, kind="separate", seed=i, seconds=6 + i) for i in range(2)]


def tokens(generation, prompts: list[EncodedPrompt]) -> tuple[int, int]:
    """All tokens of some prompts, and those beyond their last whole block, which are read again of each copy."""
    block = generation.llm.llm_engine.vllm_config.cache_config.block_size
    lengths = [len(prompt.prompt_ids) for prompt in prompts]
    assert min(lengths) > 2 * block
    return sum(lengths), sum((length - 1) % block + 1 for length in lengths)


def test_copies_of_a_prompt_are_read_once_and_a_sync_forgets_them(generation, count_copies, long, monkeypatch):
    whole, beyond = tokens(generation, long)
    generation.sync_weights()
    first, again = count_copies(long, 4), count_copies(long, 4)
    assert first.prompt_tokens == 5 * whole  # four copies, and the one that is read first
    assert (first.computed, first.encoded, first.media) == (whole + 4 * beyond, 4, 16)  # frames and sound of two clips
    assert (again.computed, again.encoded) == (5 * beyond, 0)
    generation.sync_weights()
    after = count_copies(long, 4)
    assert (after.computed, after.encoded) == (first.computed, first.encoded)
    monkeypatch.setattr(generation, "_drop_caches", lambda: None)
    generation.sync_weights()  # control: what the old weights have computed would be used
    found = count_copies(long, 4)
    assert (found.computed, found.encoded) == (again.computed, 0)


def test_copies_of_more_media_than_a_step_encodes_are_read_once(generation, count_copies, make_prompts, monkeypatch):
    prompts = [make_prompts(generation.loaded, kind="silent", seed=i, seconds=59) for i in range(5)]
    whole, beyond = tokens(generation, prompts)
    assert whole > generation.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    generation.sync_weights()
    assert count_copies(prompts, 3).computed == whole + 3 * beyond
    monkeypatch.setattr(generation, "_read_first", lambda prompts: None)
    generation.sync_weights()
    assert count_copies(prompts, 3).computed > whole + 2 * beyond + whole // 5  # control: of the last prompt all copies


def test_a_request_that_was_left_keeps_no_old_keys(generation, count_copies, long, rows):
    whole, beyond = tokens(generation, long)
    count_copies(long, 2)
    engine = generation.llm.llm_engine
    engine.add_request("left", engine_input(rows[0].engine), generation._sampling_params(0))
    engine.step()
    assert not generation.llm.reset_prefix_cache()  # vLLM's default, which keeps all blocks then
    generation.sync_weights()
    engine.abort_request(["left"])
    assert count_copies(long, 2).computed == whole + 2 * beyond


# Weights


def test_every_name_is_one_that_vllm_expects_and_none_is_missing(generation):
    sent = [name for name, _ in engine_weights(generation.model, generation.family, towers=True)]
    expected = {name for name, _ in generation._worker.model_runner.model.named_parameters()}
    assert {as_vllm_has_it(name) for name in sent} == expected
    assert len(sent) == len(set(sent))


def as_vllm_has_it(name: str) -> str:
    """`thinker.` off, the language model apart, and what vLLM computes in one product under one name."""
    name = re.sub(r"^thinker\.(lm_head|model)\.", r"language_model.\1.", name).removeprefix("thinker.")
    if name.startswith("audio_tower."):
        return name
    name = re.sub(r"\.(q|k|v)_proj\.", ".qkv_proj.", name)
    name = re.sub(r"\.attn\.(q|k|v)\.", ".attn.qkv.", name)
    return re.sub(r"\.(gate|up)_proj\.", ".gate_up_proj.", name)


@pytest.mark.parametrize("peft", [False, True])
def test_after_training_the_engine_follows_the_policy(
    generation, generate, rows, difference, point_at, peft, record_property
):
    loaded = load_model(generation.loaded.model.config._name_or_path)
    model = loaded.model
    if peft:
        model = get_peft_model(model, peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded))
    else:
        model.visual.requires_grad_(False)
        model.audio_tower.requires_grad_(False)
    policy = trained(loaded, model)
    stale = generate(rows)
    assert difference(policy, loaded, rows, stale) > 0.1  # control: without the sync
    point_at(policy)
    found = difference(policy, loaded, rows, generate(rows))
    assert found < 1e-3
    if peft:
        record_property("cell", f"qwen2_5_omni|{AFTER}|{found:.0e}")


@pytest.mark.quantization
def test_the_engine_follows_lora_on_weights_of_4_bits(generation, generate, rows, difference, point_at):
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=not_quantized(Qwen2_5OmniFamily()), **options)
    loaded = load_model(generation.loaded.model.config._name_or_path, quantization_config=config)
    for layer in loaded.model.modules():
        layer.support_avx512bf16_for_cpu = False  # some CPUs would multiply in bfloat16, from a layout of their own
    policy = get_peft_model(loaded.model, peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert difference(policy, loaded, rows, generate(rows)) > 0.1  # control: without the sync
    point_at(policy)
    assert difference(policy, loaded, rows, generate(rows)) < SAME


def test_a_measured_sync_has_the_size_of_what_is_sent(generation):
    sync = weight_sync.measure(generation, syncs=1)
    policy = (generation.model, generation.family)
    sent = [sum(w.nbytes for _, w in engine_weights(*policy, towers=towers)) for towers in (True, False)]
    assert [1e6 * row["MB"] for row in sync.values()] == pytest.approx(sent) and sent[0] > sent[1] > 0
    assert all(row["sync_s"] > 0 and row["read_s"] > 0 for row in sync.values())


def test_weights_that_do_not_come_are_an_error(generation, monkeypatch):
    complete = generation._iter_named_params
    monkeypatch.setattr(generation, "_towers_are_stale", True)
    monkeypatch.setattr(
        generation, "_iter_named_params", lambda: (pair for pair in complete() if "lm_head" not in pair[0])
    )
    with pytest.raises(RuntimeError, match="no weights came for 1 of vLLM's parameters: language_model.lm_head.weight"):
        generation.sync_weights()
    monkeypatch.undo()
    generation._towers_are_stale = True
    generation.sync_weights()
