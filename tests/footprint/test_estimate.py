"""What is divided among processes, by hand."""

import dataclasses
import math

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.footprint import Clips, Footprint, Launch, Part, estimate_footprint
from aurora_rl.footprint.flops import StepFlops, least_seconds
from aurora_rl.footprint.parts import ALWAYS, LOADING, MOMENTS, TRAINING
from aurora_rl.footprint.report import render
from aurora_rl.footprint.workload import Workload, build_workload, most_groups
from aurora_rl.models.packed_layout import pack
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig

CLIPS = Clips(count=3, frames=4, size=(64, 64), seconds=2.0, completion_tokens=50)
COMMON = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 4}


@pytest.fixture
def estimate(tiny_checkpoint: str, tmp_path):
    def run(
        kind: type = AuroraSFTConfig,
        *,
        launch: Launch | None = None,
        model: dict | None = None,
        teacher: str | None = None,
        task: str = DataArguments.task,
        **options,
    ):
        defaults = COMMON | {"output_dir": str(tmp_path), "bf16": False, "gradient_checkpointing": False}
        model_args = ModelArguments(**{"model": tiny_checkpoint, "freeze": ["visual", "audio_tower"], **(model or {})})
        return estimate_footprint(
            model_args,
            DataArguments("data", min_pixels=256, max_pixels=65536, instruction="{reference}", task=task),
            kind(**{**defaults, **options}),
            launch=launch or Launch(is_gpu=False),
            clips=CLIPS,
            device_memory=10**9,
            teacher=teacher,
        )

    return run


def part(footprint: Footprint, name: str) -> int:
    return sum(p.num_bytes for p in footprint.device if p.name.startswith(name))


def test_zero_divides_state_then_gradients_then_weights(estimate) -> None:
    """Bytes a trained float32 weight: 4 + 4 + 12 (float32 copy and two moments), Rajbhandari et al. 2020, figure 1."""
    shares = {}
    for stage in (1, 2, 3):
        footprint = estimate(launch=Launch(num_processes=4, zero_stage=stage, is_deepspeed=True))
        names = ("weights: mask head", "gradients", "optimiser state")
        shares[stage] = [part(footprint, name) for name in names]
    weights, gradients, state = shares[1]
    assert shares[2] == [weights, round(gradients / 4), state]
    assert shares[3] == [round(weights / 4), round(gradients / 4), state]
    assert state == 3 * gradients / 4


@pytest.mark.parametrize("kind", [AuroraSFTConfig, AuroraGRPOConfig])
def test_a_task_without_a_head_takes_no_masks_and_fits_a_model_without_heads(estimate, kind, omni_checkpoint) -> None:
    words = {"task": "tests/words_task.py:NameTheObject", "model": {"model": omni_checkpoint, "freeze": []}}
    options = {"num_generations": 2} if kind is AuroraGRPOConfig else {}
    footprint, with_masks = estimate(kind, **words, **options), estimate(kind, **options)
    assert not [p.name for p in footprint.device if "mask" in p.name]
    assert [p.name for p in with_masks.device if "mask" in p.name]
    with pytest.raises(ValueError, match="has no mask decoder yet"):
        estimate(kind, **{**words, "task": DataArguments.task}, **options)


def test_zero_3_puts_the_weights_together_to_sample(estimate) -> None:
    launch = Launch(num_processes=4, zero_stage=3, is_deepspeed=True)
    footprint = estimate(AuroraGRPOConfig, num_generations=2, launch=launch)
    assert part(footprint, "weights gathered for sampling") == pytest.approx(4 * part(footprint, "weights: "), abs=10)
    by_layer = estimate(AuroraGRPOConfig, num_generations=2, launch=launch, ds3_gather_for_generation=False)
    assert part(by_layer, "weights gathered for sampling") == 0


def test_without_deepspeed_the_state_is_two_moments_and_a_count(estimate) -> None:
    footprint = estimate()
    moments = part(footprint, "optimiser state") - 2 * part(footprint, "gradients")
    assert 0 < moments < 4 * 200 and moments % 4 == 0
    assert part(estimate(optim="sgd"), "optimiser state") == 0


def test_offloaded_parts_move_to_the_host(estimate) -> None:
    launch = Launch(num_processes=2, zero_stage=3, is_deepspeed=True)
    on_device = estimate(launch=launch)
    offloaded = estimate(launch=dataclasses.replace(launch, offloads_optimizer=True, offloads_parameters=True))
    assert part(offloaded, "optimiser state") == part(offloaded, "weights: ") == 0
    assert {p.name for p in offloaded.host} >= {"optimiser state", "weights: language model"}
    moved = ("optimiser state", "gradients", "weights: ")
    on_host = sum(p.num_bytes for p in offloaded.host if p.when != LOADING)
    assert on_device.peak - offloaded.peak == sum(part(on_device, name) for name in moved) == on_host


def test_deepspeed_keeps_float32_gradients_beside_an_optimiser_on_the_host(estimate) -> None:
    launch = Launch(num_processes=2, zero_stage=2, is_deepspeed=True)
    model = {"dtype": "bfloat16"}
    on_device = estimate(launch=launch, model=model)
    offloaded = estimate(launch=dataclasses.replace(launch, offloads_optimizer=True), model=model)
    gradients = sum(p.num_bytes for p in offloaded.host if p.name == "gradients")
    head = part(on_device, "weights: mask head")  # float32 as it is
    assert gradients == pytest.approx(2 * part(on_device, "gradients") - head / 2, abs=2)


def test_on_a_cpu_offloading_moves_nothing(estimate) -> None:
    launch = Launch(num_processes=2, zero_stage=3, is_deepspeed=True, is_gpu=False)
    offloaded = estimate(launch=dataclasses.replace(launch, offloads_optimizer=True, offloads_parameters=True))
    assert offloaded.host == () and offloaded.peak == estimate(launch=launch).peak


def test_ddp_has_buckets_and_deepspeed_its_own(estimate) -> None:
    ddp = estimate(launch=Launch(num_processes=2, is_gpu=False))
    assert part(ddp, "DDP's buckets") == part(ddp, "gradients")
    zero = estimate(launch=Launch(num_processes=2, zero_stage=2, is_deepspeed=True, reduce_bucket_size=1000))
    assert part(zero, "DeepSpeed's reduce bucket") == 4000
    assert part(estimate(), "D") == 0


def test_the_reference_is_a_copy_of_what_has_no_adapter(estimate) -> None:
    grpo = {"num_generations": 2, "beta": 0.04}
    copied = estimate(AuroraGRPOConfig, **grpo)
    assert part(copied, "reference model") == part(copied, "weights: ")
    assert part(estimate(AuroraGRPOConfig, num_generations=2, beta=0.0), "reference") == 0
    assert part(estimate(AuroraGRPOConfig, model={"use_peft": True}, **grpo), "reference") == 0
    assert part(estimate(), "reference") == 0


def test_the_peak_is_training_or_sampling_never_both(estimate) -> None:
    footprint = estimate(AuroraGRPOConfig, num_generations=2)
    parts = (Part("a", 1), Part("b", 10, "training"), Part("c", 100, "sampling"))
    assert dataclasses.replace(footprint, device=parts).peak == 101
    # On a CPU weights are loaded to where they stay.
    assert {p.when for p in footprint.device} == {ALWAYS, TRAINING, *MOMENTS} - {LOADING}


def test_vllm_takes_its_share_always_or_while_it_is_awake(estimate) -> None:
    def run(**options) -> Footprint:
        options = {"num_generations": 2, "use_vllm": True, "vllm_gpu_memory_utilization": 0.25, **options}
        return estimate(AuroraGRPOConfig, **options)

    def engine(footprint: Footprint) -> tuple[int, set[str]]:
        parts = [p for p in footprint.device if p.name.startswith("vLLM")]
        return sum(p.num_bytes for p in parts), {p.when for p in parts}

    assert engine(run(vllm_mode="colocate")) == (250_000_000, {"always"})
    assert engine(run(vllm_mode="colocate", vllm_enable_sleep_mode=True)) == (250_000_000, {"sampling"})
    sized = run(vllm_mode="colocate", vllm_engine_kwargs={"kv_cache_memory_bytes": 1000})
    assert part(sized, "vLLM: its own weights") == part(sized, "weights: ")
    assert part(sized, "vLLM: its key-value cache") == 1000
    server = run(vllm_mode="server")
    assert part(server, "vLLM") == part(server, "key-value") == server.flops.sampling == 0


@pytest.mark.parametrize(
    ("kind", "image_size", "fixture", "numbers"),
    [
        ("edgetam", 64, "edgetam_checkpoint", 4 * 128 * 4 * 4),
        ("sam", 128, "sam_checkpoint", 32 * 8 * 8),
        ("sam2", 64, "sam2_checkpoint", 4 * 128 * 4 * 4),
        ("sam3_tracker", 56, "sam3_checkpoint", 4 * 128 * 4 * 4),
        ("sam_hq", 128, "sam_hq_checkpoint", 3 * 32 * 8 * 8),
    ],
)
def test_embeddings_of_all_clips_lie_on_disk(kind, image_size, fixture, numbers, omni_checkpoint, request, estimate):
    segmenter = {"type": kind, "image_size": image_size, "checkpoint": request.getfixturevalue(fixture)}
    cache, *_ = estimate(model={"model": omni_checkpoint, "segmenter": segmenter}).disk
    assert (cache.name, cache.num_bytes) == ("image embeddings of 3 clips", 3 * 4 * numbers * 2)


def test_without_a_decoder_no_embeddings_lie_on_disk(estimate) -> None:
    assert [found.name for found in estimate().disk] == ["a checkpoint"]


def test_masks_of_the_rollouts_lie_on_the_host_and_their_logits_on_the_gpu_too(estimate) -> None:
    pixels = 4 * 4 * 64 * 64  # rows x frames x height x width
    footprint = estimate(AuroraGRPOConfig, num_generations=2, launch=Launch())
    *_, masks = footprint.host
    assert masks.num_bytes == pixels  # bool
    assert part(footprint, "masks of the rollouts") == pixels * 4
    on_cpu = estimate(AuroraGRPOConfig, num_generations=2)
    assert part(on_cpu, "masks of the rollouts") == pixels * 5 and on_cpu.host == ()


def test_operations_of_a_step_by_hand(estimate, meta) -> None:
    """6 N a token in full fine-tuning, 2 N more where it runs again; of frozen towers the forward pass."""

    def flops(*, is_gpu: bool = False, **options) -> StepFlops:
        return estimate(launch=Launch(is_gpu=is_gpu), **options).flops

    full, work = flops(), estimate().work
    layers = 2 * sum(p.numel() for p in meta.base.get_decoder().layers.parameters()) * work.tokens
    a_token = 2 * meta.base.lm_head.weight.numel()
    head = a_token * work.tokens
    media = full.training - 3 * layers - 3 * head
    assert 0 < media < layers
    assert full.recomputing == head
    assert flops(gradient_checkpointing=True) == dataclasses.replace(full, recomputing=layers + head)
    assert flops(gradient_accumulation_steps=3).training == 3 * full.training
    on_gpu, num_prompt_tokens = flops(is_gpu=True), 4 * work.prompt_tokens  # which are not scored there
    assert full.training - on_gpu.training == 3 * a_token * num_prompt_tokens
    assert on_gpu.recomputing == a_token * 4 * work.completion_tokens
    lora = flops(model={"use_peft": True, "lora_modules_to_save": ["seg_head"]}).training
    assert 2 * layers + 2 * head < lora - media < 2.2 * layers + 2 * head
    kept = flops(model={"use_peft": True, "lora_modules_to_save": ["seg_head", "lm_head"]}).training
    assert kept - lora == head  # its own gradient
    assert least_seconds(full.training, 1.0, 0.5) == full.training / 0.5e12


def test_a_live_teacher_reads_the_prompts(estimate, meta, tiny_checkpoint: str) -> None:
    flops, work = estimate(teacher=tiny_checkpoint).flops, estimate().work
    layers = 2 * sum(p.numel() for p in meta.base.get_decoder().layers.parameters())
    head = 2 * meta.base.lm_head.weight.numel()
    media = estimate().flops.training - 3 * (layers + head) * work.tokens
    assert flops.scoring == layers * work.rows * work.prompt_tokens + media
    assert flops.training == estimate().flops.training


@pytest.mark.parametrize(
    ("options", "zero_stage", "passes"),
    [
        ({}, 0, 0),  # each rollout is trained on once, and sampling leaves the states for the masks behind
        ({}, 3, 1),  # masks, for no states are left behind
        ({"beta": 0.1}, 0, 1),  # the reference
        ({"num_iterations": 2}, 0, 1),  # old log-probabilities, which give the masks too
        ({"num_iterations": 2}, 3, 1),
        ({"use_vllm": True}, 0, 1),  # old log-probabilities, for the engine's differ
        ({"use_vllm": True, "beta": 0.1}, 3, 2),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, 0, 1),  # masks
        ({"use_vllm": True, "mask_truncated_completions": True}, 0, 2),  # old log-probabilities and masks
    ],
)
def test_forward_passes_over_the_rollouts(estimate, meta, options: dict, zero_stage: int, passes: int) -> None:
    """Frozen towers run in the first of them, which is sampling if the policy samples."""
    options = {"num_generations": 2, "beta": 0.0, "vllm_mode": "colocate", "gradient_checkpointing": True, **options}
    launch = Launch(num_processes=2, zero_stage=zero_stage, is_deepspeed=True)
    footprint = estimate(AuroraGRPOConfig, launch=launch, **options)
    work, flops = footprint.work, footprint.flops
    a_token = 2 * sum(p.numel() for p in meta.base.get_decoder().layers.parameters())
    head = 2 * meta.base.lm_head.weight.numel() * work.rows * work.completion_tokens
    iterations = options.get("num_iterations", 1)
    prompts = work.rows if options.get("use_vllm") else work.clips
    read = prompts * work.prompt_tokens + work.rows * work.completion_tokens
    sampled, scored = ((a_token * tokens + head) / iterations for tokens in (read, work.tokens))
    towers = flops.sampling - sampled  # with a cache, sampling passes each token once, and a group's prompt once
    assert towers > 0
    assert flops.scoring == pytest.approx(passes * scored + towers * options.get("use_vllm", False))
    trained = estimate(AuroraGRPOConfig, launch=launch, model={"freeze": []}, **options).flops
    assert trained.scoring == pytest.approx(passes * (trained.sampling - sampled + scored))


def test_frozen_towers_run_once_for_a_clip_whose_group_is_spread_over_micro_batches(estimate) -> None:
    def tower_flops(**options) -> float:
        footprint = estimate(AuroraGRPOConfig, share_prompts=False, **options)
        plain = dataclasses.replace(footprint.work, towers={}).row_tokens
        assert plain == footprint.work.tokens
        return footprint.flops.sampling

    whole = tower_flops(per_device_train_batch_size=4, num_generations=4)
    halves = tower_flops(per_device_train_batch_size=2, num_generations=4, gradient_accumulation_steps=2)
    assert halves == pytest.approx(whole)


@pytest.mark.parametrize(
    "options",
    [
        {"share_prompts": False},
        {"torch_compile": True},
        {"model": {"attn_implementation": "eager"}},
        {"model": {"use_peft": True}},  # LoRA's dropout, which TRL takes out only if it is asked to
    ],
    ids=["off", "compiled", "other attention", "dropout"],
)
def test_what_the_trainer_does_not_share_is_counted_plain(estimate, options: dict) -> None:
    plain = estimate(AuroraGRPOConfig, num_generations=2, **options)
    assert plain.work.tokens == plain.work.row_tokens
    is_lora = "use_peft" in options.get("model", {})
    changed = {**options, "disable_dropout": True} if is_lora else {}
    shared = estimate(AuroraGRPOConfig, num_generations=2, **changed)
    work = shared.work
    assert work.tokens == 2 * (work.prompt_tokens - 1) + 4 * (1 + work.completion_tokens) < work.row_tokens
    for name in ("scoring", "training", "recomputing"):
        assert getattr(shared.flops, name) < getattr(plain.flops, name) or not getattr(plain.flops, name)
    assert part(shared, "activations: decoder") < part(plain, "activations: decoder")
    assert "tokens, as prompts are shared" in render(shared) and "shared" not in render(plain)


@pytest.mark.parametrize(("rows", "group", "passes"), [(8, 4, 1), (4, 4, 2), (2, 4, 4), (6, 4, 2), (3, 2, 2)])
def test_tokens_are_those_of_the_trainers_own_layout(rows: int, group: int, passes: int) -> None:
    """The fullest micro-batch of a generation batch, whose groups lie one behind the other."""
    prompt, completion = 7, 5
    ids = torch.ones(rows, prompt + completion, dtype=torch.long)
    batches = [[row // group for row in range(first, first + rows)] for first in range(0, rows * passes, rows)]
    counts = [len(pack(ids, ids, completion, keys).source) for keys in batches]
    clips = most_groups(rows, group, passes=passes)
    work = Workload(rows, clips, prompt, completion, {}, 1, (8, 8), shares_prompts=True)
    assert work.tokens == max(counts)
    assert dataclasses.replace(work, shares_prompts=False).tokens == ids.numel()


def test_rollouts_that_are_trained_on_twice_are_sampled_half_as_often(estimate) -> None:
    def sampling(**options) -> float:
        return estimate(AuroraGRPOConfig, num_generations=2, **options).flops.sampling

    once = sampling()
    assert sampling(num_iterations=2) == once / 2
    assert sampling(gradient_accumulation_steps=3) == pytest.approx(3 * once)
    assert sampling(steps_per_generation=4) == once  # four times as many rollouts, every fourth step


def test_an_engine_beside_the_trainer_samples_as_much_as_the_trainer_would(estimate) -> None:
    def sampling(**options) -> float:
        return estimate(AuroraGRPOConfig, num_generations=2, **options).flops.sampling

    assert sampling(use_vllm=True, vllm_mode="colocate") == sampling(share_prompts=False) > sampling() > 0
    assert sampling(use_vllm=True, vllm_mode="server") == 0


def test_tokens_by_hand(estimate) -> None:
    """4 frames of 64 x 64 in pairs, 16 x 16 pixels a token; 25 tokens a second of sound."""
    work = estimate(AuroraGRPOConfig, num_generations=2, max_completion_length=7).work
    assert work.prompt_tokens == 2 * (64 // 16) ** 2 + 2 * 25 + math.ceil(len("{reference}") / 3) + 64
    assert (work.rows, work.clips, work.completion_tokens, work.generated_rows) == (4, 2, 7, 4)
    assert [tower.tokens for tower in work.towers.values()] == [2 * 2 * (64 // 8) ** 2, 2 * 200 / 2]
    assert estimate().work.completion_tokens == 50


def test_max_pixels_bounds_the_frames(meta) -> None:
    args = DataArguments("data", max_pixels=32 * 32)

    class Options:
        per_device_train_batch_size, gradient_accumulation_steps = 1, 1

    work = build_workload(meta.family, meta.base.config, args, Options, CLIPS)
    assert work.towers["visual"].tokens == 2 * (32 // 8) ** 2


def test_sizes_of_clips_that_are_sound_alone_are_read_from_a_sound(train_samples) -> None:
    heard = [dataclasses.replace(sample, frame_paths=(), mask_paths=()) for sample in train_samples[:2]]
    clips = Clips.of(heard)
    assert (clips.frames, clips.size, clips.seconds) == (0, (0, 0), 2.0)
    assert Clips.of([*heard, train_samples[2]]).frames == 4
