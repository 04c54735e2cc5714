"""Own clips by a manifest from training to scores: films of every kind, silent and sounding ones in one batch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, RewardArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.caches.embedding_shard import EmbeddingCacheError
from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.caches.teacher_features import _row_digest
from aurora_rl.data.files import DatasetError
from aurora_rl.data.media import read_clip_frames
from aurora_rl.evaluation.of_model import EvaluationArguments, evaluate_model
from aurora_rl.evaluation.records import read_results
from aurora_rl.footprint.workload import Clips
from aurora_rl.scripts import grpo, sft
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from tests.caches.test_image_embeddings import PatchMeans
from tests.data.own_clips import HEIGHT, WIDTH, coco, column, write_clips, write_manifest

#: What all trainings of this file have in common.
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of films with and without sound, upright and rotated, of a null reference and an unlabelled one."""
    root = write_clips(tmp_path_factory.mktemp("own"))
    (root / "a.json").write_text(json.dumps(coco({0.0: column(3), 1.0: column(5)})))
    (root / "turned.json").write_text(json.dumps(coco({0.0: column(3, WIDTH, HEIGHT)})))
    rows = [
        {"id": "kitchen-1", "video": "clips/a.mp4", "reference": "the thing", "masks": "a.json", "category": "drum"},
        {"id": "kitchen-2", "video": "clips/silent.mp4", "reference": "that", "masks": "a.json", "bonus": "1"},
        {"id": "turned", "video": "clips/rotated.mp4", "reference": "that", "masks": "turned.json"},
        {"id": "none", "video": "clips/still.mp4", "reference": "a whale", "masks": "empty"},
        {"id": "unknown", "video": "clips/varying.mkv", "reference": "that"},
    ]
    tests = [{**row, "id": f"test-{row['id']}", "split": "test"} for row in rows]
    write_manifest(root / "clips.csv", [{"split": "", **row} for row in rows + tests])
    return root


def data_of(own: Path, **options: Any) -> DataArguments:
    options = {"skip_unlabelled": True, "benchmark": "clips", **options}
    return DataArguments(str(own / "clips.csv"), min_pixels=256, max_pixels=65536, instruction="{reference}", **options)


def bonus_reward(prompts: list[Any], completions: list[Any], *, bonus: list[str | None], **columns: Any) -> list[float]:
    """A reward by a column of the manifest."""
    assert set(bonus) <= {None, "1"} and columns["loudness_dbfs"][0] <= 0
    return [0.0 if value is None else float(value) for value in bonus]


def test_own_clips_are_trained_and_scored(own: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    trained, out = tmp_path / "sft", tmp_path / "grpo"
    args = AuroraSFTConfig(str(trained), max_steps=2, **COMMON)
    data = data_of(own, frame_cache=str(tmp_path / "frames"))
    sft.main(ModelArguments(model=tiny_checkpoint), data, TargetArguments(target="answer"), args)
    rewards = RewardArguments([
        "reward_fns.mask_iou:mask_iou_reward", "reward_fns.category:category_reward", f"{__file__}:bonus_reward"
    ])  # fmt: skip
    options = {"num_generations": 2, "max_completion_length": 4, "num_iterations": 1, "steps_per_generation": 2}
    args = AuroraGRPOConfig(str(out), max_steps=2, **{**COMMON, "per_device_train_batch_size": 4}, **options)
    grpo.main(ModelArguments(model=str(trained)), data_of(own), rewards, args)
    scoring = EvaluationArguments(str(tmp_path / "scores"), num_samples=1, max_completion_length=4, use_cpu=True)
    evaluate_model(ModelArguments(model=str(out)), data_of(own, train_split="train"), scoring)
    rows = read_results(tmp_path / "scores" / "results.jsonl")
    assert [row.uid for row in rows] == ["test-kitchen-1", "test-kitchen-2", "test-turned", "test-none"]
    assert [row.category for row in rows] == ["drum", "", "", "null"] and rows[0].novelty == "seen"
    assert all(row.masks is not None and not np.isnan(row.masks.J) for row in rows)
    scores = [row.completion.scores["category"] for row in rows]
    assert scores[0] in (0.0, 1.0) and scores[1:3] == [None, None]
    assert rows[1].novelty is None
    assert list((tmp_path / "frames").rglob("*.png"))


def test_embeddings_and_teacher_features_are_those_of_a_video_at_its_times(own: Path, tmp_path: Path) -> None:
    encoder = PatchMeans()
    [sound, silent, *_] = load_split(data_of(own), "train")
    more = load_split(data_of(own, fps=5.0), "train")[0]
    cache = EmbeddingCache(tmp_path / "cache", encoder)
    assert cache.ensure([sound, silent], read_clip_frames) == 2
    assert np.allclose(cache.get("clips/a.mp4"), encoder.encode(read_clip_frames(sound)), atol=0.1)
    assert cache.ensure([sound, silent], read_clip_frames) == 0
    with pytest.raises(EmbeddingCacheError, match=r"frames of clip 'clips/a.mp4' are not those"):
        cache.ensure([more], read_clip_frames)
    with pytest.raises(EmbeddingCacheError, match=r"share the media id 'clips/a.mp4' but not their frames"):
        cache.ensure([sound, more], read_clip_frames)
    assert _row_digest(sound) != _row_digest(more) != _row_digest(silent)
    assert _row_digest(sound) != _row_digest(dataclasses.replace(sound, frame_times=(0.0, 0.5)))


def test_the_footprint_knows_the_sizes_of_videos(own: Path) -> None:
    clips = Clips.of(load_split(data_of(own, fps=5.0), "train"))
    assert (clips.count, clips.frames, clips.size, clips.seconds) == (4, 10, (HEIGHT, WIDTH), 2.0)


def test_sound_between_frames_and_silence_share_a_batch(own: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    args = AuroraSFTConfig(str(tmp_path / "sft"), max_steps=2, **COMMON)
    data = data_of(own, use_audio_in_video=True)
    sft.main(ModelArguments(model=tiny_checkpoint), data, TargetArguments(target="answer"), args)


def test_rows_without_masks_are_refused_by_training_and_scoring(
    own: Path, tiny_checkpoint: str, tmp_path: Path
) -> None:
    data = data_of(own, skip_unlabelled=False)
    message = r"clip '(test-)?unknown' \(row \d, clips.csv:\d+\) has no masks.*skip_unlabelled: true"
    args = AuroraSFTConfig(str(tmp_path / "sft"), max_steps=1, **COMMON)
    with pytest.raises(DatasetError, match=message):
        sft.main(ModelArguments(model=tiny_checkpoint), data, TargetArguments(target="answer"), args)
    with pytest.raises(DatasetError, match=message):
        evaluate_model(
            ModelArguments(model=tiny_checkpoint), data, EvaluationArguments(str(tmp_path / "s"), use_cpu=True)
        )
