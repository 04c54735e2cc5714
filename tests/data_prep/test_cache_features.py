import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.data.media import read_frames
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.heads.segmenters.sam import SamSegmenter
from aurora_rl.scripts.cache_features import main
from tests.warm_interpreter import warm_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(omni_checkpoint: str, sam_checkpoint: str, tiny_benchmark: Path, tmp_path: Path) -> Path:
    """A recipe of a plain model with SAM beside it, with keys of training that are none of this program's."""
    path = tmp_path / "sft.yaml"
    keys = {
        "model": omni_checkpoint,
        "segmenter": {"type": "sam", "checkpoint": sam_checkpoint, "image_size": 64},
        "data_root": str(tiny_benchmark),
        "num_frames": None,
        "embedding_cache": str(tmp_path / "cache"),
        "learning_rate": 1.0e-4,
        "eval_split": "val",
    }
    path.write_text(yaml.safe_dump(keys))
    return path


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def media_ids(tiny_benchmark: Path, *splits: str) -> set[str]:
    args = DataArguments(data_root=str(tiny_benchmark), num_frames=None)
    return {sample.media_id for split in splits for sample in load_split(args, split)}


def run(recipe: Path, *options: str) -> None:
    main(["--config", str(recipe), "--use_cpu", "true", *options])


def test_the_recipes_splits_are_encoded_and_a_later_training_finds_them(
    recipe: Path, sam_checkpoint: str, tiny_benchmark: Path, tmp_path: Path
) -> None:
    run(recipe, "--clips_per_shard", "4")
    cached = [media_id for path in shards(tmp_path / "cache") for media_id in load_file(path)]
    assert sorted(cached) == sorted(media_ids(tiny_benchmark, "train", "val"))
    # As `assemble_encoder` makes it of a model whose decoder has been loaded: with the hash of SAM's image encoder.
    encoder = build_frame_encoder(SamSegmenter.from_checkpoint(sam_checkpoint, image_size=64).config)
    sample = load_split(DataArguments(data_root=str(tiny_benchmark), num_frames=None), "val")[0]
    embeddings = EmbeddingCache(tmp_path / "cache", encoder).get(sample.media_id, frame_paths=sample.frame_paths)
    assert torch.equal(embeddings, encoder.encode(read_frames(sample.frame_paths)).half())


def test_splits_can_be_named_and_those_that_are_cached_are_left_alone(
    recipe: Path, tiny_benchmark: Path, tmp_path: Path
) -> None:
    run(recipe, "--split", "test_u")
    first = shards(tmp_path / "cache")
    run(recipe, "--split", "test_u", "test_n")
    new = set(shards(tmp_path / "cache")) - set(first)
    assert {media_id for path in new for media_id in load_file(path)} == media_ids(tiny_benchmark, "test_n")


def test_verify_names_a_damaged_file_and_drop_damaged_encodes_its_clips_anew(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, "--split", "test_u", "--clips_per_shard", "1")
    run(recipe, "--verify", "true")
    whole = {path: path.read_bytes() for path in shards(tmp_path / "cache")}
    damaged = next(iter(whole))
    damaged.write_bytes(whole[damaged][:-1] + bytes([whole[damaged][-1] ^ 1]))
    with pytest.raises(SystemExit, match=f"1 file.s. are not what was written; .*--drop_damaged.*\n  {damaged}"):
        run(recipe, "--verify", "true")
    run(recipe, "--split", "test_u", "--clips_per_shard", "1", "--drop_damaged", "true")
    assert {path: path.read_bytes() for path in shards(tmp_path / "cache")} == whole


def test_verify_encodes_nothing(recipe: Path, tmp_path: Path) -> None:
    run(recipe, "--verify", "true")
    assert shards(tmp_path / "cache") == []


def test_faults_of_the_data_end_it_without_a_traceback(recipe: Path, tiny_benchmark: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cache_features: .* has no split 'test'"):
        run(recipe, "--split", "test")
    broken = shutil.copytree(tiny_benchmark, tmp_path / "broken")
    frame = next(broken.glob("media/train*/frames/0.jpg"))
    frame.write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=f"cannot read the image {frame}"):
        run(recipe, "--data_root", str(broken), "--split", "train")
    with pytest.raises(SystemExit, match="set `embedding_cache`"):
        recipe.write_text(recipe.read_text().replace("embedding_cache", "no_cache"))
        run(recipe)


def test_a_word_that_is_no_option_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(recipe, "--split", "train", "--verfy")
    assert "unknown arguments: --verfy" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_launched_processes_share_the_clips(recipe: Path, tiny_benchmark: Path, tmp_path: Path) -> None:
    launch = "-m accelerate.commands.launch --config_file accelerate_configs/multi_gpu.yaml --num_processes 2"
    options = shlex.split(f"{launch} --mixed_precision no --main_process_port 0 data_prep/cache_features.py")
    command = [warm_python(), *options, "--config", str(recipe), "--clips_per_shard", "100", "--use_cpu", "true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    cached = [sorted(load_file(path)) for path in shards(tmp_path / "cache")]
    assert len(cached) == 2  # a file of each process
    assert sorted(cached[0] + cached[1]) == sorted(media_ids(tiny_benchmark, "train", "val"))
