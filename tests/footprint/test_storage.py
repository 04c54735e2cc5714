"""Host memory while loading, and what lies on disk: by hand for the 7B, and of a real checkpoint at small size."""

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.cli import parse_arguments
from aurora_rl.footprint import Footprint
from aurora_rl.footprint.activations import ENTRIES, _layer_and_inputs, estimate_activations, estimate_sampling
from aurora_rl.footprint.by_hand import estimate
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel, build_meta_model
from aurora_rl.footprint.peak import forward_only
from aurora_rl.footprint.storage import checkpoint_bytes, tower_output_parts
from aurora_rl.footprint.workload import Clips, Workload
from aurora_rl.models.mllm import ClipPass, TowerPass
from tools.measure_footprint import build_trainer, prepared

GRPO = "grpo --config recipes/ref_avs/grpo_7b.yaml --model docs/configs/sft_7b --launch accelerate_configs/"
#: Trained weights of the recipe: lm_head and embed_tokens of 152,064 x 3,584, the mask head, LoRA.
TRAINED = 2 * 152_064 * 3_584 + 20e6
LOADING = "weights on their way to the GPU"


def recipe(options: str) -> Footprint:
    return estimate(parse_arguments(shlex.split(f"footprint {options}")))[0]


def sizes(parts: tuple) -> dict[str, int]:
    return {part.name: part.num_bytes for part in parts}


def test_a_process_of_the_7b_has_22_gb_in_host_memory_while_it_loads() -> None:
    """8.95 B weights and the adapter's 1.11 B in bfloat16; TRL copies the adapter once more for the reference."""
    on_host = sizes(recipe(f"{GRPO}zero2.yaml").host)[LOADING]
    assert on_host == pytest.approx(2 * (8.95e9 + TRAINED + TRAINED), rel=0.01) == pytest.approx(22.4e9, rel=0.01)
    assert sizes(recipe(f"{GRPO}zero2.yaml --beta 0").host)[LOADING] == pytest.approx(on_host - 2 * TRAINED, rel=0.01)
    full = recipe(f"{GRPO}zero2.yaml --model docs/configs/sft_full_7b --use_peft false")
    assert sizes(full.host)[LOADING] == pytest.approx(2 * 2 * 8.95e9, rel=0.01)  # the policy, and its copy


def test_weights_are_loaded_to_where_they_stay_on_a_cpu_and_of_4_bits(tiny_checkpoint: str) -> None:
    assert LOADING not in sizes(recipe(f"{GRPO}cpu.yaml --model {tiny_checkpoint} --bf16 false").host)
    four_bits = f"{GRPO}single_gpu.yaml --model {tiny_checkpoint} --load_in_4bit true --use_peft true"
    assert LOADING not in sizes(recipe(four_bits).host)
    assert LOADING in sizes(recipe(f"{GRPO}single_gpu.yaml --model {tiny_checkpoint}").host)


def test_kept_outputs_of_towers_are_a_feature_for_each_token_and_deeper_layer() -> None:
    """10 frames of 448 x 448 in pairs, 28 x 28 pixels a token, 10 s of sound at 25 tokens a second; width 3,584."""
    options = f"{GRPO}zero2.yaml --tower_cache towers"
    kept = sizes(recipe(options).disk)["outputs of the towers for a clip"]
    assert kept == (5 * 16 * 16 + 250) * 3_584 * 2
    many = sizes(recipe(f"{options} --clips 3").disk)
    assert many["outputs of the towers for 3 clips"] == 3 * kept
    meta = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(deepstack_visual_indexes=[1, 2, 3])))
    meta.config.get_text_config = lambda: SimpleNamespace(hidden_size=8)
    a_clip = ClipPass(12, {"visual": TowerPass(tokens=40, width=4, layers=1, merged=4)})
    clips = Clips(count=None, frames=4, size=(64, 64), seconds=2.0)
    [deep] = tower_output_parts(SimpleNamespace(base=meta), a_clip, clips, torch.bfloat16)
    assert deep.num_bytes == (12 + 3 * 10) * 8 * 2


def test_a_checkpoint_of_the_7b_by_hand() -> None:
    """ZeRO-2: the adapter, the engine's copy of it, float32 weights and AdamW's moments, with no reference in it."""
    disk = sizes(recipe(f"{GRPO}zero2.yaml").disk)
    assert disk["a checkpoint"] == pytest.approx(TRAINED * (2 + 2 + 12), rel=0.01)
    assert disk["checkpoints, 4 at most"] == 4 * disk["a checkpoint"]  # save_total_limit: 3, and the one being written
    assert sizes(recipe(f"{GRPO}zero3.yaml").disk)["a checkpoint"] == pytest.approx(TRAINED * (2 + 12), rel=0.01)
    weights_alone = sizes(recipe(f"{GRPO}zero2.yaml --save_only_model true").disk)["a checkpoint"]
    assert weights_alone == pytest.approx(2 * TRAINED, rel=0.01)


def test_a_run_that_saves_nothing_has_no_checkpoint_on_disk(tiny_checkpoint: str) -> None:
    never = "--save_strategy no --eval_strategy no --load_best_model_at_end false"
    disk = sizes(recipe(f"{GRPO}zero2.yaml --model {tiny_checkpoint} {never}").disk)
    assert not [name for name in disk if "checkpoint" in name]


def test_a_gradient_above_deepspeeds_bucket_lies_beside_it() -> None:
    device = sizes(recipe(f"{GRPO}zero2.yaml").device)
    assert device["one gradient above the bucket"] == 2 * 152_064 * 3_584 > device["DeepSpeed's reduce bucket"] == 10**9


@pytest.mark.parametrize("options", [{}, {"use_peft": True}], ids=["full", "LoRA"])
def test_a_real_checkpoint_is_as_large(options: dict, tmp_path: Path) -> None:
    with prepared(tmp_path) as (model, data_args):
        args = ModelArguments(model=str(model), **options)
        saving = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 1}
        trainer = build_trainer(args, data_args, load_split(data_args, "train")[:2], model, **saving)
        trainer.train()
        estimated = checkpoint_bytes(build_meta_model(args, Launch()), trainer.args, Launch())
        (checkpoint,) = Path(trainer.args.output_dir).glob("checkpoint-*")
        files = [*checkpoint.glob("*.safetensors"), checkpoint / "optimizer.pt"]
        assert sum(path.stat().st_size for path in files) == pytest.approx(estimated, rel=0.02)


def test_the_prefill_projects_one_position_a_row(meta: MetaModel, work: Workload) -> None:
    """Four rows of 30 tokens, 64 wide, in float32: a layer, twice the states, the mask, and logits in two copies."""
    vocab_size = meta.base.lm_head.weight.size(0)
    layer, inputs = _layer_and_inputs(meta, dataclasses.replace(work, rows=4, completion_tokens=0), None)
    states, mask, logits = 4 * 30 * 64 * 4, 4 * 30 * 30, 4 * vocab_size * (4 + 4)
    expected = forward_only(lambda: layer(**inputs)) + ENTRIES * states + mask + logits
    assert estimate_sampling(meta, work, half=None)[1] == expected
    all_positions = 16 * 1703 * 152_064 * 2  # 8.3 GB
    assert sizes(recipe(f"{GRPO}zero2.yaml").device)["prefill"] < all_positions / 2


def test_towers_keep_their_layers_inputs_only_where_they_are_trained(tiny_checkpoint: str, work: Workload) -> None:
    """With checkpointing, of each layer its input in float32, and of one all 34 x 2 bytes a token and unit of width."""

    def towers(*, checkpointing: bool, freeze: list[str]) -> int:
        meta = build_meta_model(ModelArguments(model=tiny_checkpoint, freeze=freeze), Launch())
        return estimate_activations(meta, work, half=None, checkpointing=checkpointing, is_gpu=False).towers

    config = build_meta_model(ModelArguments(model=tiny_checkpoint), Launch()).base.config
    vision, audio = config.vision_config, config.audio_config
    seen, heard = 128 * vision.hidden_size, 50 * audio.d_model
    assert towers(checkpointing=False, freeze=["visual", "audio_tower"]) == 0
    assert towers(checkpointing=True, freeze=["visual", "audio_tower"]) == 0
    assert towers(checkpointing=False, freeze=["audio_tower"]) == 68 * seen * vision.depth
    inputs = 4 * (seen * vision.depth + heard * audio.encoder_layers)
    assert towers(checkpointing=True, freeze=[]) == inputs + 68 * max(seen, heard)
