import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import SamConfig, SamModel

from aurora_rl.caches import embedding_shard
from aurora_rl.caches import image_embeddings as embedding_cache
from aurora_rl.caches.embedding_shard import EmbeddingCacheError, shard_sizes
from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.data.sample import AVSample
from aurora_rl.models.heads.segmenters import FrameEncoder, build_frame_encoder

CLIP = "--KCIeTv6PM_14000_24000"
FRAME_BYTES = 3 * 2 * 2 * 2  # of PatchMeans in float16


class PatchMeans(FrameEncoder):
    """Mean colour of each quarter of a frame times a weight: a frozen encoder that can be worked out by hand."""

    kind = "means"
    cacheable = True

    def __init__(self, weight: float = 1.0):
        super().__init__({"image_size": 2})
        self.weight = weight
        self.calls = 0

    @property
    def fingerprint(self) -> str:
        return f"weight {self.weight}".ljust(16, "-")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return (3, 2, 2)

    def encode(self, frames):
        self.calls += 1
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2) * self.weight


def make_sample(folder: Path, media_id: str, *, row: int = 0, num_frames: int = 2, content: bytes = b"x") -> AVSample:
    frames = folder / "frames" / hashlib.sha256(media_id.encode()).hexdigest()
    frames.mkdir(parents=True, exist_ok=True)
    frame_paths = [frames / f"{index}.jpg" for index in range(num_frames)]
    for path in frame_paths:
        path.write_bytes(content)
    return AVSample(
        uid=f"{media_id}_cat_1",
        row=row,
        split="train",
        media_id=media_id,
        category="cat",
        reference="The cat.",
        fps=1.0,
        frame_paths=tuple(str(path) for path in frame_paths),
        audio_path="audio.wav",
        mask_paths=(),
    )


def load_grey(sample: AVSample) -> np.ndarray:
    """Frames as grey as the first letter of the clip's id."""
    return np.full((len(sample.frame_paths), 4, 4, 3), ord(sample.media_id[0]), dtype=np.uint8)


def never(sample: AVSample) -> np.ndarray:
    raise AssertionError(f"{sample.media_id} is cached: its frames are not needed")


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., EmbeddingCache]:
    """A cache on the test's folder, such as each process of a run makes its own."""
    return lambda weight=1.0, dtype="float16": EmbeddingCache(tmp_path / "cache", PatchMeans(weight), dtype=dtype)


def samples_of(folder: Path, names: str) -> list[AVSample]:
    """A sample for each letter; a letter that comes twice is a clip of two references."""
    return [make_sample(folder, name, row=row) for row, name in enumerate(names)]


def only_shard(cache: EmbeddingCache) -> Path:
    [name] = shard_sizes(cache.folder)
    return cache.folder / name


# What is stored


@pytest.fixture(scope="module")
def sam_config(tmp_path_factory) -> dict:
    width = {"hidden_size": 32}
    config = SamConfig(
        vision_config={
            **width,
            "output_channels": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "global_attn_indexes": [0],
            "num_pos_feats": 16,
        },
        prompt_encoder_config={**width, "image_size": 64},
        mask_decoder_config={**width, "num_attention_heads": 2},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    SamModel(config).save_pretrained(folder)
    vision_config = {"patch_size": 16, "output_channels": 32}
    return {"type": "sam", "image_size": 64, "checkpoint": str(folder), "sam_config": {"vision_config": vision_config}}


def test_cached_sam_embeddings_are_those_of_direct_encoding_rounded_to_float16(sam_config, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
    fresh = build_frame_encoder(sam_config).encode(frames)
    sample = make_sample(tmp_path, CLIP, num_frames=3)
    for dtype in ("float32", "float16"):
        EmbeddingCache(tmp_path, build_frame_encoder(sam_config), dtype=dtype).ensure([sample], lambda _: frames)
        cached = EmbeddingCache(tmp_path, build_frame_encoder(sam_config), dtype=dtype).get(CLIP)
        assert torch.equal(cached, fresh.to(getattr(torch, dtype)))
    rounding = 2**-11  # half the spacing of float16 relative to a normal number
    assert torch.allclose(cached.float(), fresh, rtol=rounding, atol=2**-25)
    assert not torch.equal(cached.float(), fresh)


def test_references_of_a_clip_share_one_entry_and_are_encoded_once(make_cache, tmp_path):
    cache = make_cache()
    loaded = []
    assert cache.ensure(samples_of(tmp_path, "abacaa"), lambda s: loaded.append(s.media_id) or load_grey(s)) == 3
    assert loaded == ["a", "b", "c"]
    assert set(load_file(only_shard(cache))) == {"a", "b", "c"}
    assert [make_cache().get(name)[0, 0, 0, 0].item() for name in "abc"] == [ord("a"), ord("b"), ord("c")]


def test_rows_that_share_a_clips_id_but_not_its_frames_are_refused(make_cache, tmp_path):
    samples = [make_sample(tmp_path, "a"), make_sample(tmp_path, "a", row=1, num_frames=1)]
    with pytest.raises(EmbeddingCacheError, match="a_cat_1#0 and a_cat_1#1 share the media id 'a' but not"):
        make_cache().ensure(samples, load_grey)


def test_shards_are_plain_safetensors_named_by_their_hash(make_cache, tmp_path):
    cache = make_cache()
    cache.ensure(samples_of(tmp_path, "abcde"), load_grey, clips_per_shard=2)
    paths = [cache.folder / name for name in shard_sizes(cache.folder)]
    assert sorted(sorted(load_file(path)) for path in paths) == [["a", "b"], ["c", "d"], ["e"]]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == [path.stem for path in paths]


def test_writing_to_what_was_read_reaches_neither_the_disk_nor_the_next_reader(make_cache, tmp_path):
    cache = make_cache()
    cache.ensure(samples_of(tmp_path, "a"), load_grey)
    cache.get("a").zero_()
    assert cache.get("a").eq(ord("a")).all()
    assert make_cache().find_damaged() == []


@pytest.mark.parametrize("media_id", ["../../x", "/etc/x", "..", "a/b", "a\\b", "a\0b", "C:x", "null_c-é", "x" * 300])
def test_no_media_id_names_a_file(make_cache, tmp_path, media_id):
    cache = make_cache()
    cache.ensure([make_sample(tmp_path, media_id)], load_grey)
    assert {path.name for path in cache.folder.iterdir()} == {only_shard(cache).name, "index.json"}
    assert make_cache().get(media_id).eq(ord(media_id[0])).all()


def test_the_one_name_that_safetensors_keeps_for_itself_is_refused(make_cache, tmp_path):
    with pytest.raises(EmbeddingCacheError, match="'__metadata__', which safetensors keeps for itself"):
        make_cache().ensure([make_sample(tmp_path, "__metadata__")], load_grey)


def test_an_overflow_of_float16_is_refused(make_cache, tmp_path):
    with pytest.raises(EmbeddingCacheError, match="clip 'a' overflows torch.float16: use dtype='float32'"):
        make_cache(weight=1e5).ensure(samples_of(tmp_path, "a"), load_grey)
    assert list(make_cache(weight=1e5).folder.iterdir()) == []


def test_fewer_frames_than_files_are_refused(make_cache, tmp_path):
    with pytest.raises(EmbeddingCacheError, match=r"a_cat_1#0 is encoded as \(1, 3, 2, 2\), expected \(2, 3, 2, 2\)"):
        make_cache().ensure(samples_of(tmp_path, "a"), lambda s: load_grey(s)[:1])


def test_cheap_encoders_are_not_cached(tmp_path):
    encoder = build_frame_encoder({"type": "dot", "image_size": 32})
    with pytest.raises(EmbeddingCacheError, match="'dot' encoder is cheaper than a disk read"):
        EmbeddingCache(tmp_path, encoder)


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(EmbeddingCacheError, match=r"choose one of \['float16', 'float32'\]"):
        EmbeddingCache(tmp_path, PatchMeans(), dtype="bfloat16")


# Reading


def test_a_clip_that_is_not_cached_is_an_error_that_says_what_to_run(make_cache):
    with pytest.raises(EmbeddingCacheError, match=r"clip 'a' is not in .*: run data_prep/cache_features.py"):
        make_cache().get("a")


def test_what_another_process_writes_later_is_found(make_cache, tmp_path):
    reader = make_cache()
    reader.refresh()
    make_cache().ensure(samples_of(tmp_path, "a"), load_grey)
    assert reader.get("a").eq(ord("a")).all()


class Clips(torch.utils.data.Dataset):
    def __init__(self, cache: EmbeddingCache, names: str):
        self.cache, self.names = cache, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.cache.get(self.names[index])


def test_forked_workers_of_a_data_loader_read_what_their_parent_has_read(make_cache, tmp_path):
    names = "abcdefgh"
    cache = make_cache()
    cache.ensure(samples_of(tmp_path, names), load_grey, clips_per_shard=2)
    kept = cache.get("a")  # a mapping that the workers inherit
    loader = DataLoader(Clips(cache, names * 4), num_workers=2, multiprocessing_context="fork")
    assert [batch[0, 0, 0, 0, 0].item() for batch in loader] == [ord(name) for name in names * 4]
    assert kept.eq(ord("a")).all()


def test_reading_leaves_no_file_open(make_cache, tmp_path):
    cache = make_cache()
    cache.ensure(samples_of(tmp_path, "abcdefgh"), load_grey, clips_per_shard=1)
    before = len(os.listdir("/proc/self/fd"))
    tensors = [cache.get(name) for name in "abcdefgh"]
    assert len(os.listdir("/proc/self/fd")) == before and len(tensors) == 8


# What is refused


def test_encoders_sizes_and_dtypes_do_not_share_files(make_cache, tmp_path):
    caches = [make_cache(), make_cache(weight=0.5), make_cache(dtype="float32")]
    for cache in caches:
        assert cache.ensure(samples_of(tmp_path, "d"), load_grey) == 1
    assert [cache.get("d").mean().item() for cache in caches] == [100, 50, 100]
    assert len({cache.folder for cache in caches}) == 3


def test_a_shard_of_another_encoder_is_refused_by_name(make_cache, tmp_path):
    theirs, ours = make_cache(weight=2.0), make_cache()
    theirs.ensure(samples_of(tmp_path, "a"), load_grey)
    shutil.copytree(theirs.folder, ours.folder)  # its index, too
    with pytest.raises(EmbeddingCacheError, match="has the fingerprint 'weight 2.0-.*, expected 'weight 1.0") as error:
        ours.get("a")
    assert str(only_shard(ours)) in str(error.value)


def test_a_shard_of_another_dtype_is_refused(make_cache, tmp_path):
    theirs, ours = make_cache(dtype="float32"), make_cache()
    theirs.ensure(samples_of(tmp_path, "a"), load_grey)
    ours.folder.mkdir()
    shutil.copy(only_shard(theirs), ours.folder)
    with pytest.raises(EmbeddingCacheError, match="has the dtype 'F32', expected 'F16'"):
        ours.ensure(samples_of(tmp_path, "a"), never)


@pytest.mark.parametrize("change", [{"content": b"made anew"}, {"num_frames": 1}], ids=["sizes", "number"])
def test_changed_frames_are_refused_by_ensure_and_get(make_cache, tmp_path, change):
    make_cache().ensure(samples_of(tmp_path, "ab"), load_grey)
    changed = make_sample(tmp_path, "a", **change)
    shard = only_shard(make_cache())
    for use in (
        lambda: make_cache().ensure([changed], never),
        lambda: make_cache().get("a", frame_paths=changed.frame_paths),
    ):
        with pytest.raises(EmbeddingCacheError, match=r"frames of clip 'a' are not those .* \(2 files, now") as error:
            use()
        assert f"delete {shard} to encode its 2 clips again" in str(error.value)
    shard.unlink()
    assert make_cache().ensure([changed, make_sample(tmp_path, "b")], load_grey) == 2


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None], ids=["empty", "other", "truncated"])
def test_a_damaged_header_is_an_error_that_names_the_file_and_the_remedy(make_cache, tmp_path, content):
    make_cache().ensure(samples_of(tmp_path, "a"), load_grey)
    path = only_shard(make_cache())
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    for use in (lambda: make_cache().get("a"), lambda: make_cache().ensure(samples_of(tmp_path, "a"), never)):
        with pytest.raises(EmbeddingCacheError, match=f"{path.name} is damaged .*--drop_damaged"):
            use()


def test_a_shard_whose_index_lies_about_its_shape_is_refused(make_cache, tmp_path):
    make_cache().ensure(samples_of(tmp_path, "a"), load_grey)
    path = only_shard(make_cache())
    save_file({"a": torch.zeros(1, 2, dtype=torch.float16)}, path)
    index = path.with_name("index.json")
    index.write_text(re.sub(r'"bytes": \d+', f'"bytes": {path.stat().st_size}', index.read_text()))
    with pytest.raises(EmbeddingCacheError, match=rf"{path.name} holds clip 'a' as .*\(1, 2\), expected .*\(2, "):
        make_cache().get("a")


def test_a_pipe_in_a_shards_place_is_refused_and_not_waited_for(make_cache, tmp_path):
    make_cache().ensure(samples_of(tmp_path, "a"), load_grey)
    path = only_shard(make_cache())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(EmbeddingCacheError, match=f"{path.name} is damaged .*no plain file but a pipe"):
        make_cache().get("a")
    assert make_cache().find_damaged() == [path]


def test_a_shard_deleted_under_a_reader_is_an_error_that_says_what_to_run(make_cache, tmp_path):
    cache = make_cache()
    cache.ensure(samples_of(tmp_path, "a"), load_grey)
    only_shard(cache).unlink()
    with pytest.raises(EmbeddingCacheError, match="no longer exists: run data_prep/cache_features.py"):
        cache.get("a")


def test_each_single_flipped_byte_is_found(make_cache, tmp_path):
    cache = make_cache()
    cache.ensure(samples_of(tmp_path, "ab"), load_grey)
    path = only_shard(cache)
    whole = path.read_bytes()
    assert cache.find_damaged() == []
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert cache.find_damaged() == [path]


def test_a_damaged_shard_that_is_deleted_costs_its_own_clips_only(make_cache, tmp_path):
    samples = samples_of(tmp_path, "abcde")
    make_cache().ensure(samples, load_grey, clips_per_shard=2)
    cache = make_cache()
    before = shard_sizes(cache.folder)
    [damaged] = [cache.folder / name for name in before if "c" in load_file(cache.folder / name)]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert cache.find_damaged() == [damaged]
    damaged.unlink()
    loaded = []
    assert make_cache().ensure(samples, lambda s: loaded.append(s.media_id) or load_grey(s), clips_per_shard=2) == 2
    assert loaded == ["c", "d"]
    assert shard_sizes(cache.folder) == before
    assert make_cache().find_damaged() == []


# The index


def test_an_index_spares_the_headers_and_a_lost_one_is_made_anew(make_cache, tmp_path, monkeypatch):
    samples = samples_of(tmp_path, "abc")
    make_cache().ensure(samples, load_grey, clips_per_shard=1)
    index = make_cache().folder / "index.json"
    written = index.read_bytes()
    assert set(json.loads(written)["shards"]) == set(shard_sizes(index.parent))
    with monkeypatch.context() as patched:
        patched.setattr(embedding_cache, "read_header", lambda path: pytest.fail(f"{path} is in the index"))
        assert make_cache().ensure(samples, never) == 0
    index.unlink()
    assert make_cache().get("b").eq(ord("b")).all()
    assert make_cache().ensure(samples, never) == 0
    assert index.read_bytes() == written


@pytest.mark.parametrize("content", ["", "[]", '{"fingerprint": "x", "shards": {}}', '{"shards": 3}', '{"a": 1}'])
def test_an_index_that_cannot_be_used_is_told_and_made_anew(make_cache, tmp_path, caplog, content):
    samples = samples_of(tmp_path, "ab")
    make_cache().ensure(samples, load_grey)
    index = make_cache().folder / "index.json"
    written = index.read_bytes()
    index.write_text(content)
    assert make_cache().ensure(samples, never) == 0
    assert "index.json cannot be used" in caplog.text
    assert index.read_bytes() == written


def test_an_index_that_lags_behind_is_no_hindrance(make_cache, tmp_path):
    make_cache().ensure(samples_of(tmp_path, "a"), load_grey)
    index = make_cache().folder / "index.json"
    old = index.read_bytes()
    make_cache().ensure(samples_of(tmp_path, "ab"), load_grey)
    index.write_bytes(old)
    assert make_cache().get("b").eq(ord("b")).all()
    assert make_cache().ensure(samples_of(tmp_path, "ab"), never) == 0
    assert len(json.loads(index.read_bytes())["shards"]) == 2


# Space and progress


def test_clips_that_do_not_fit_on_the_disk_are_refused_before_any_is_encoded(make_cache, tmp_path, monkeypatch):
    samples = samples_of(tmp_path, "abc")
    make_cache().ensure(samples[:1], load_grey)
    needed = 2 * 2 * FRAME_BYTES  # two clips of two frames are missing
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(embedding_cache.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(EmbeddingCacheError, match=r"2 clips take 9.6e-08 GB, but .* has 9.5e-08 GB free: .*ignore"):
        make_cache().ensure(samples, never)
    assert make_cache().ensure(samples[:2], load_grey) == 1
    assert make_cache().ensure(samples, load_grey, ignore_free_space=True) == 1
    monkeypatch.setattr(embedding_cache.shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert make_cache().ensure(samples, never) == 0  # nothing is missing


def test_what_will_be_encoded_is_told_before_and_progress_without_a_terminal(make_cache, tmp_path, caplog):
    samples = [make_sample(tmp_path, str(index), row=index) for index in range(82)]
    cache = make_cache()
    with caplog.at_level(logging.INFO, logger="aurora_rl"):
        cache.ensure(samples, load_grey, clips_per_shard=2)
    assert caplog.messages[0] == f"0 of 82 clips are cached in {cache.folder}"
    assert caplog.messages[1].startswith("82 clips to encode take 3.94e-06 GB on disk, ")  # 82 * 2 * 24 bytes
    assert caplog.messages[2] == "encoding: 3 of 41 shards of 2 clips"
    assert caplog.messages[-1] == "encoding: 41 of 41 shards of 2 clips"
    assert len(caplog.messages) == 16


# Processes, crashes


def test_processes_take_disjoint_shares_of_the_clips(make_cache, tmp_path):
    samples = samples_of(tmp_path, "aabcde")
    caches = [make_cache(), make_cache()]
    counts = [
        cache.ensure(samples, load_grey, process_index=index, num_processes=2) for index, cache in enumerate(caches)
    ]
    assert counts == [3, 2]
    caches[0].refresh()
    assert caches[0].media_ids == set("abcde")


def test_a_run_skips_what_one_beside_it_has_encoded_meanwhile(make_cache, tmp_path):
    samples = samples_of(tmp_path, "abcd")
    encoded = []

    def load_while_another_run_works(sample: AVSample) -> np.ndarray:
        encoded.append(sample.media_id)
        if len(encoded) == 1:
            make_cache().ensure(samples[2:], load_grey)
        return load_grey(sample)

    assert make_cache().ensure(samples, load_while_another_run_works, clips_per_shard=1) == 2
    assert encoded == ["a", "b"]


def test_a_file_gets_its_name_when_it_is_whole(make_cache, tmp_path, monkeypatch):
    renamed = []
    replace = os.replace

    def check_and_replace(source: Path, target: Path) -> None:
        if Path(target).suffix == ".safetensors":
            assert load_file(source)["a"].eq(ord("a")).all()
            renamed.append(Path(target).name)
        assert Path(source).parent == Path(target).parent  # a rename is atomic only inside one file system
        assert not Path(target).exists()
        replace(source, target)

    monkeypatch.setattr(embedding_shard.os, "replace", check_and_replace)
    cache = make_cache()
    cache.ensure(samples_of(tmp_path, "a"), load_grey)
    assert renamed == list(shard_sizes(cache.folder))


def test_an_error_in_a_shard_leaves_those_before_it_and_no_half_file(make_cache, tmp_path):
    samples = samples_of(tmp_path, "abcd")

    def load(sample: AVSample) -> np.ndarray:
        if sample.media_id == "d":
            raise OSError("unreadable")
        return load_grey(sample)

    with pytest.raises(OSError, match="unreadable"):
        make_cache().ensure(samples, load, clips_per_shard=2)
    cache = make_cache()
    assert [path.suffix for path in cache.folder.iterdir()] == [".safetensors"]
    cache.refresh()
    assert cache.media_ids == {"a", "b"}


def test_half_files_of_killed_processes_are_never_counted_and_removed_after_a_day(make_cache, tmp_path):
    cache = make_cache()
    cache.folder.mkdir(parents=True)
    old, young = cache.folder / "old.tmp", cache.folder / "young.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    assert cache.ensure(samples_of(tmp_path, "a"), load_grey) == 1
    assert not old.exists() and young.exists()


def test_memory_does_not_grow_with_the_clips_of_a_shard(make_cache, tmp_path, monkeypatch):
    encode, alive, counts = PatchMeans.encode, [], []

    def count_alive(self, frames):
        frame_inputs = encode(self, frames)
        alive.append(frames)
        weakref.finalize(frame_inputs, alive.pop)
        return frame_inputs

    def load(sample: AVSample) -> np.ndarray:
        counts.append(len(alive))
        return load_grey(sample)

    monkeypatch.setattr(PatchMeans, "encode", count_alive)
    make_cache(dtype="float32").ensure(samples_of(tmp_path, "abcdefgh"), load, clips_per_shard=8)
    assert counts == [0] + [1] * 7  # the one that was written last


LETTERS = "abcdefghijklmnopqrst"


def run(folder: Path, load: Callable[[AVSample], np.ndarray] = load_grey) -> None:
    """Cache 20 clips, two a shard."""
    torch.set_num_threads(1)  # the threads of the process that this one is forked from are not here
    EmbeddingCache(folder / "cache", PatchMeans()).ensure(samples_of(folder, LETTERS), load, clips_per_shard=2)


def start(folder: Path, load: Callable[[AVSample], np.ndarray]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, load))
    process.start()
    return process


def cached_values(folder: Path) -> dict[str, float]:
    cache = EmbeddingCache(folder / "cache", PatchMeans())
    cache.refresh()
    return {media_id: cache.get(media_id).mean().item() for media_id in cache.media_ids}


def test_killed_in_the_middle_and_resumed_equals_unbroken(tmp_path):
    stuck, unbroken = tmp_path / "stuck", tmp_path / "unbroken"

    def stick_at_h(sample: AVSample) -> np.ndarray:
        if sample.media_id == "h":
            stuck.touch()
            time.sleep(600)
        return load_grey(sample)

    process = start(tmp_path, stick_at_h)
    deadline = time.monotonic() + 240
    while not stuck.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert cached_values(tmp_path) == {name: ord(name) for name in "abcdef"}  # g was in the shard being filled
    [half] = EmbeddingCache(tmp_path / "cache", PatchMeans()).folder.glob("*.tmp")
    resumed = []
    run(tmp_path, lambda sample: resumed.append(sample.media_id) or load_grey(sample))
    assert "".join(resumed) == LETTERS[6:]
    assert cached_values(tmp_path) == {name: ord(name) for name in LETTERS}
    half.unlink()
    run(unbroken)
    assert digest_of_files(tmp_path / "cache") == digest_of_files(unbroken / "cache")


def digest_of_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_processes_at_once_give_the_same_set(tmp_path):
    def load_slowly(sample: AVSample) -> np.ndarray:
        time.sleep(0.01)
        return load_grey(sample)

    processes = [start(tmp_path, load_slowly) for _ in range(2)]
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0, 0]
    run(tmp_path, never)
    assert cached_values(tmp_path) == {name: ord(name) for name in LETTERS}
    assert EmbeddingCache(tmp_path / "cache", PatchMeans()).find_damaged() == []
