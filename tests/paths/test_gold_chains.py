import pytest
import torch

from aurora_rl.data.media import load_clip, loudness_dbfs
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.rewards import guard_reward_func, load_reward_func
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from aurora_rl.tasks.reference_segmentation import chain_file

REWARDS = [
    "reward_fns.format:format_reward",
    "reward_fns.mask_iou:mask_iou_reward",
    "reward_fns.category:category_reward",
    "reward_fns.perception:perception_reward",
    "reward_fns.reasoning_consistency:reasoning_consistency_reward",
]


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    """Columns of a batch that answers every row with its gold chain and its true masks."""
    root = tmp_path_factory.mktemp("benchmark") / "synthetic"
    write_synthetic_benchmark(root, SyntheticConfig(train=20, val=0, test_s=0, test_u=0, test_n=10))
    chains = root / "chains.jsonl"
    samples = [
        s
        for split in ("train", "test_n")
        for s in load_ref_avs(root, split, num_frames=None, chains=chain_file(chains))
    ]
    clips = [load_clip(sample) for sample in samples]
    rows = [sample.to_row() for sample in samples]
    gt_masks = [torch.from_numpy(clip.gt_masks) for clip in clips]
    return {
        **{name: [row[name] for row in rows] for name in rows[0]},
        "prompts": [None] * len(samples),
        "completions": [[{"role": "assistant", "content": sample.chain}] for sample in samples],
        "pred_masks": gt_masks,
        "gt_masks": gt_masks,
        "loudness_dbfs": [loudness_dbfs(clip.waveform) for clip in clips],
    }


@pytest.mark.parametrize("spec", REWARDS)
def test_a_gold_chain_with_the_true_masks_earns_one(spec, columns):
    rewards = guard_reward_func(load_reward_func(spec))(**columns)
    assert rewards == pytest.approx([1.0] * len(rewards))
    assert "null" in columns["category"]


@pytest.mark.parametrize("spec", REWARDS[1:])  # the form of another clip's chain is right
def test_the_chain_of_another_clip_earns_less(spec, columns):
    shifted = {name: columns[name][7:] + columns[name][:7] for name in ("completions", "pred_masks")}
    rewards = guard_reward_func(load_reward_func(spec))(**{**columns, **shifted})
    assert sum(rewards) / len(rewards) < 0.9
