import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamModel

from aurora_rl.data.sample import AVSample
from aurora_rl.models import embedding_cache
from aurora_rl.models.embedding_cache import EmbeddingCache, EmbeddingCacheError
from aurora_rl.models.segmenters import FrameEncoder, build_frame_encoder

CLIP = "--KCIeTv6PM_14000_24000"


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


def make_frames(num_frames: int = 2, value: int = 7) -> np.ndarray:
    return np.full((num_frames, 4, 4, 3), value, dtype=np.uint8)


def make_sample(folder: Path, media_id: str, *, row: int = 0, num_frames: int = 2, content: bytes = b"x") -> AVSample:
    frame_paths = []
    for i in range(num_frames):
        path = folder / f"{media_id}_{i}.jpg"
        path.write_bytes(content)
        frame_paths.append(str(path))
    return AVSample(
        uid=f"{media_id}_cat_1",
        row=row,
        split="train",
        media_id=media_id,
        category="cat",
        reference="The cat.",
        fps=1.0,
        frame_paths=tuple(frame_paths),
        audio_path="audio.wav",
        mask_paths=(),
    )


def never() -> np.ndarray:
    raise AssertionError("the clip is cached: its frames are not needed")


def files_of(cache: EmbeddingCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def test_a_clip_is_encoded_once_and_then_read(tmp_path):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    first = cache.get(CLIP, make_frames)
    again = EmbeddingCache(tmp_path, PatchMeans()).get(CLIP, never)
    assert first.shape == (2, 3, 2, 2)
    assert first.dtype == again.dtype == torch.float16
    assert first.eq(7).all()
    assert torch.equal(first, again)
    assert cache.encoder.calls == 1
    assert files_of(cache) == [f"{CLIP}.safetensors"]


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


def test_cached_sam_embeddings_equal_fresh_ones(sam_config, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
    fresh = build_frame_encoder(sam_config).encode(frames)
    for dtype in ("float32", "float16"):
        EmbeddingCache(tmp_path, build_frame_encoder(sam_config), dtype=dtype).get(CLIP, lambda: frames)
        cached = EmbeddingCache(tmp_path, build_frame_encoder(sam_config), dtype=dtype).get(CLIP, never)
        assert torch.equal(cached, fresh.to(getattr(torch, dtype)))
    assert torch.equal(cached.float(), fresh.half().float())
    assert not torch.equal(cached.float(), fresh)


def test_writing_to_what_was_read_does_not_reach_the_disk(tmp_path):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    cache.get(CLIP, make_frames)
    cache.get(CLIP, never).zero_()
    assert cache.get(CLIP, never).eq(7).all()


@pytest.mark.parametrize("media_id", ["../../x", "/etc/x", "..", ".", "a/b", "a\\b", "a\0b", "C:x", "null_c-é"])
def test_no_media_id_leaves_the_folder(tmp_path, media_id):
    cache = EmbeddingCache(tmp_path / "cache", PatchMeans())
    cache.get(media_id, make_frames)
    path = cache.path_of(media_id)
    assert path.resolve().parent == cache.folder.resolve()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert cache.get(media_id, never).eq(7).all()


def test_ids_that_differ_have_files_that_differ(tmp_path):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    ids = ["a/b", "a%2Fb", "a_b", "a b", "a+b"]
    assert len({cache.path_of(media_id) for media_id in ids}) == len(ids)


@pytest.mark.parametrize("media_id", ["", "x" * 300])
def test_ids_that_make_no_file_name_are_refused(tmp_path, media_id):
    with pytest.raises(EmbeddingCacheError, match="makes no file name"):
        EmbeddingCache(tmp_path, PatchMeans()).get(media_id, make_frames)


def test_encoders_sizes_and_dtypes_do_not_share_files(tmp_path):
    caches = [
        EmbeddingCache(tmp_path, PatchMeans(1.0)),
        EmbeddingCache(tmp_path, PatchMeans(2.0)),
        EmbeddingCache(tmp_path, PatchMeans(1.0), dtype="float32"),
    ]
    values = [cache.get(CLIP, make_frames).mean().item() for cache in caches]
    assert values == [7, 14, 7]
    assert [cache.encoder.calls for cache in caches] == [1, 1, 1]


def test_a_file_of_another_encoder_is_refused_by_name(tmp_path):
    theirs, ours = EmbeddingCache(tmp_path, PatchMeans(2.0)), EmbeddingCache(tmp_path, PatchMeans(1.0))
    theirs.get(CLIP, make_frames)
    ours.folder.mkdir()
    shutil.copy(theirs.path_of(CLIP), ours.path_of(CLIP))
    with pytest.raises(EmbeddingCacheError, match="has fingerprint 'weight 2.0-.*, expected 'weight 1.0") as error:
        ours.get(CLIP, never)
    assert str(ours.path_of(CLIP)) in str(error.value)


def test_a_file_of_another_clip_is_refused(tmp_path):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    cache.get("a", make_frames)
    cache.path_of("a").rename(cache.path_of("b"))
    with pytest.raises(EmbeddingCacheError, match="has media_id 'a', expected 'b'"):
        cache.get("b", never)


@pytest.mark.parametrize(
    ("frame_inputs", "message"),
    [
        (torch.zeros(2, 3, 2, 3, dtype=torch.float16), r"has shape \(2, 3, 2, 3\), expected \(2, 3, 2, 2\)"),
        (torch.zeros(2, 3, 2, 2), "has dtype 'F32', expected 'F16'"),
    ],
)
def test_a_file_of_another_shape_or_dtype_is_refused(tmp_path, frame_inputs, message):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    cache.folder.mkdir()
    metadata = {"media_id": CLIP, "fingerprint": cache.encoder.fingerprint}
    save_file({"frame_inputs": frame_inputs}, cache.path_of(CLIP), metadata=metadata)
    with pytest.raises(EmbeddingCacheError, match=message):
        cache.get(CLIP, never)


def test_another_number_of_frames_is_refused(tmp_path):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    cache.get(CLIP, lambda: make_frames(10))
    sample = make_sample(tmp_path, CLIP, num_frames=9)
    with pytest.raises(EmbeddingCacheError, match=r"has shape \(10, 3, 2, 2\), expected \(9, 3, 2, 2\)"):
        cache.get(CLIP, never, frame_paths=sample.frame_paths)


def test_frames_that_were_made_anew_are_refused(tmp_path):
    cache = EmbeddingCache(tmp_path / "cache", PatchMeans())
    sample = make_sample(tmp_path, CLIP, content=b"old")
    assert cache.ensure([sample], lambda _: make_frames()) == 1
    cache.get(CLIP, never, frame_paths=sample.frame_paths)
    sample = make_sample(tmp_path, CLIP, content=b"made anew")
    with pytest.raises(EmbeddingCacheError, match="has frames"):
        cache.get(CLIP, never, frame_paths=sample.frame_paths)
    with pytest.raises(EmbeddingCacheError, match="delete it to encode the clip anew"):
        cache.ensure([sample], lambda _: make_frames())


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None], ids=["empty", "other", "truncated"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, content):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    cache.get(CLIP, make_frames)
    path = cache.path_of(CLIP)
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(EmbeddingCacheError, match=f"{path.name} is damaged"):
        cache.get(CLIP, never)


def test_a_crash_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def crash(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    cache = EmbeddingCache(tmp_path, PatchMeans())
    with monkeypatch.context() as patched:
        patched.setattr(embedding_cache, "save_file", crash)
        with pytest.raises(OSError, match="disk full"):
            cache.get(CLIP, make_frames)
    assert files_of(cache) == []
    assert cache.get(CLIP, make_frames).eq(7).all()


def test_a_file_gets_its_name_when_it_is_whole(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    renamed = []

    def replace(source, target):
        assert load_file(source)["frame_inputs"].eq(7).all()
        assert Path(source).parent == Path(target).parent  # a rename is atomic only inside one file system
        assert not Path(target).exists()
        renamed.append(Path(target))
        Path(source).rename(target)

    monkeypatch.setattr(embedding_cache.os, "replace", replace)
    cache.get(CLIP, make_frames)
    assert renamed == [cache.path_of(CLIP)]


def test_many_readers_and_writers_of_one_clip_see_whole_files(tmp_path):
    caches = [EmbeddingCache(tmp_path, PatchMeans()) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        tensors = list(pool.map(lambda i: caches[i % 8].get(f"clip{i % 3}", make_frames), range(48)))
    assert all(tensor.eq(7).all() for tensor in tensors)
    assert files_of(caches[0]) == [f"clip{i}.safetensors" for i in range(3)]


def test_ensure_encodes_each_missing_clip_once(tmp_path):
    samples = [make_sample(tmp_path, media_id, row=row) for row, media_id in enumerate(["a", "b", "a", "c"])]
    cache = EmbeddingCache(tmp_path / "cache", PatchMeans())
    cache.get("b", make_frames)
    loaded = []

    def load_frames(sample):
        loaded.append(sample.media_id)
        return make_frames(value=ord(sample.media_id))

    assert cache.ensure(samples, load_frames) == 2
    assert loaded == ["a", "c"]
    assert cache.ensure(samples, load_frames) == 0
    assert cache.get("c", never).eq(ord("c")).all()
    assert cache.get("b", never).eq(7).all()


def test_processes_take_disjoint_shares_of_the_clips(tmp_path):
    samples = [make_sample(tmp_path, name, row=row) for row, name in enumerate(["a", "a", "b", "c", "d", "e"])]
    cache = EmbeddingCache(tmp_path / "cache", PatchMeans())
    counts = [
        cache.ensure(samples, lambda _: make_frames(), process_index=index, num_processes=2) for index in range(2)
    ]
    assert counts == [3, 2]
    assert files_of(cache) == [f"{name}.safetensors" for name in "abcde"]


def test_ensure_logs_its_progress_where_there_is_no_terminal(tmp_path, caplog):
    samples = [make_sample(tmp_path, str(i), row=i) for i in range(41)]
    cache = EmbeddingCache(tmp_path / "cache", PatchMeans())
    with caplog.at_level(logging.INFO, logger="aurora_rl"):
        cache.ensure(samples, lambda _: make_frames())
    assert caplog.messages[0] == f"0 of 41 clips are cached in {cache.folder}"
    assert caplog.messages[1] == "encoded 2 of 41 clips"
    assert caplog.messages[-1] == "encoded 41 of 41 clips"
    assert len(caplog.messages) == 22


def test_the_file_is_plain_safetensors(tmp_path):
    cache = EmbeddingCache(tmp_path, PatchMeans())
    cache.get(CLIP, make_frames)
    assert list(load_file(cache.path_of(CLIP))) == ["frame_inputs"]


def test_an_overflow_of_float16_is_refused(tmp_path):
    with pytest.raises(EmbeddingCacheError, match="overflows torch.float16: cache it with dtype='float32'"):
        EmbeddingCache(tmp_path, PatchMeans(1e5)).get(CLIP, make_frames)


def test_cheap_encoders_are_not_cached(tmp_path):
    encoder = build_frame_encoder({"type": "dot", "image_size": 32})
    with pytest.raises(EmbeddingCacheError, match="'dot' encoder is cheaper than a disk read"):
        EmbeddingCache(tmp_path, encoder)


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(EmbeddingCacheError, match=r"choose one of \['float16', 'float32'\]"):
        EmbeddingCache(tmp_path, PatchMeans(), dtype="bfloat16")
