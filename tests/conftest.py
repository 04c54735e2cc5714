"""A tiny benchmark on disk and a tiny model on disk, made once a session; what a test changes, it loads for itself.

official_rows    the rows of Ref-AVSBench's own metadata.csv
tiny_benchmark   folder of a synthetic benchmark: 12 train clips, a few of each other split, 4 frames of 64 px
data_args        how its clips are put to the model
train_samples    its train split, with chains of thought
tiny_checkpoint  folder of a random Qwen2.5-Omni with a `dot` mask decoder, and its processor
omni_checkpoint  folder of the same language model as it comes from the hub: whole Qwen2.5-Omni, no mask decoder
sam_checkpoint   folder of a random SAM in miniature, 128 pixels; read-only, as the following
sam_hq_checkpoint  of SAM-HQ, 128 pixels
sam2_checkpoint  of SAM 2, 64 pixels, its memory of a video included
sam3_checkpoint  of SAM 3, 56 pixels, with its tracker's memory and without its detector
edgetam_checkpoint  of EdgeTAM, 64 pixels, with its memory
film             writes an mp4 file: pictures at their times, sound, rotation
loaded           the model of `tiny_checkpoint`, fresh for every test
encode           the encoder of samples that goes with `loaded`
projected        how many positions a row each call of a language model's head projects onto the vocabulary
nearly_full      no file may grow above 1,000 bytes
"""

import gc
import importlib.util
import json
import lzma
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoProcessor,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
)

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.data.ref_avs import MetadataRow, read_metadata
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.head_tokens import SuppressingHead
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm.qwen2_5_omni.tiny import TinyOmniConfig, build_tiny_omni
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from aurora_rl.tasks.prompts import SEG_TOKEN
from tests.tiny_sams import write_edgetam, write_sam, write_sam2, write_sam3, write_sam_hq

BENCHMARK = SyntheticConfig(train=12, val=4, test_s=3, test_u=3, test_n=3, rows_per_clip=2)
SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}


# The same examples in every run, kept nowhere: a run in CI fails for one reason, a change of the code.
settings.register_profile("aurora", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("aurora")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs something that is not there; vLLM's tests never in CI."""
    found = {
        "gpu": torch.cuda.is_available(),
        "quantization": importlib.util.find_spec("bitsandbytes") is not None,
        "vllm": importlib.util.find_spec("vllm") is not None or "CI" in os.environ,
    }
    missing = {name for name, is_there in found.items() if not is_there}
    left_out = [item for item in items if missing & {mark.name for mark in item.iter_markers()}]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection(session: pytest.Session) -> None:
    """Collect no garbage among modules and tests, here and later: it takes a seventh of the tests' processor time."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Tiny models gain nothing from threads, and workers that each take all cores wait for one another.

    `OMP_NUM_THREADS=2` asks for two: sums are then taken in another order.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches that need no option lie in a folder of the session, for the programs that tests start as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AURORA_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def official_rows(tmp_path_factory: pytest.TempPathFactory) -> list[MetadataRow]:
    """All 20,459 rows, see the licence beside the file."""
    path = tmp_path_factory.mktemp("official") / "metadata.csv"
    path.write_bytes(lzma.decompress((Path(__file__).parent / "data" / "ref_avs_metadata.csv.xz").read_bytes()))
    return read_metadata(path)


@pytest.fixture(scope="session")
def tiny_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a synthetic benchmark with every split of Ref-AVSBench; read-only."""
    root = tmp_path_factory.mktemp("benchmark") / "data"
    write_synthetic_benchmark(root, BENCHMARK)
    return root


@pytest.fixture
def data_args(tiny_benchmark: Path) -> DataArguments:
    """Short prompts (the reference alone), chains of thought, frames at their own size of 64 px."""
    return DataArguments(
        data_root=str(tiny_benchmark),
        chains="chains.jsonl",
        fps=BENCHMARK.fps,
        num_frames=BENCHMARK.frames,
        instruction="{reference}",
        min_pixels=256,
        max_pixels=65536,
    )


@pytest.fixture
def train_samples(data_args: DataArguments) -> list[AVSample]:
    """The train split in the order of metadata.csv: two rows a clip, some of them null references."""
    return load_split(data_args, "train")


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model of about 0.3 M random weights and its processor, by `save_pretrained`; read-only.

    The weights are larger than usual, so that a wrong position or a swapped clip shows far above rounding errors.
    """
    args = DataArguments(data_root=str(tiny_benchmark), chains="chains.jsonl", fps=BENCHMARK.fps, num_frames=None)
    texts = [text for sample in load_split(args, "train") for text in (sample.reference, sample.chain or "")]
    model, processor = build_tiny_omni(
        texts, SEGMENTER, TinyOmniConfig(num_layers=2, num_heads=2, initializer_range=0.1)
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def omni_checkpoint(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder in the hub's layout: weights under `thinker.`, neither `[SEG]` nor a mask decoder; read-only."""
    thinker = load_model(tiny_checkpoint).model
    thinker_config = {name: value for name, value in thinker.config.to_dict().items() if name != "segmenter"}
    omni = Qwen2_5OmniForConditionalGeneration(
        Qwen2_5OmniConfig(thinker_config=thinker_config, enable_audio_output=False)
    )
    weights = {name: weight for name, weight in thinker.state_dict().items() if not name.startswith("seg_head.")}
    omni.thinker.load_state_dict(weights)
    folder = tmp_path_factory.mktemp("omni")
    omni.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = json.loads(tokenizer_file.read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != SEG_TOKEN]
    tokenizer_file.write_text(json.dumps(tokenizer))
    return str(folder)


@pytest.fixture(scope="session")
def sam_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="session")
def sam_hq_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sam_hq(tmp_path_factory.mktemp("sam_hq"))


@pytest.fixture(scope="session")
def sam2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="session")
def sam3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sam3(tmp_path_factory.mktemp("sam3"))


@pytest.fixture(scope="session")
def edgetam_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_edgetam(tmp_path_factory.mktemp("edgetam"))


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video file into `tmp_path`."""

    def write(
        frames: Sequence[np.ndarray],
        *,
        times: Sequence[float] | None = None,
        waveform: np.ndarray | None = None,
        sound_start: float = 0.0,
        rotation: int = 0,
        options: dict[str, str] | None = None,
        name: str = "clip.mp4",
    ) -> Path:
        """Encode (H, W, 3) uint8 frames, at 4 a second or at `times`, and (N,) float sound at 16 kHz."""
        path = tmp_path / name
        with av.open(str(path), "w", options=options or {}) as container:
            video = container.add_stream("libx264", rate=4, options={"crf": "1", "preset": "ultrafast"})
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "yuv444p"  # takes odd sizes, and keeps colours where they are
            video.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                video.set_display_rotation(rotation)
            sound = None if waveform is None else container.add_stream("aac", rate=16_000, layout="mono")
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts = round(1000 * (number / 4 if times is None else times[number]))
                frame.time_base = Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            if sound is not None:
                samples = av.AudioFrame.from_ndarray(waveform.astype(np.float32)[None], format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 16_000, round(16_000 * sound_start)
                samples.time_base = Fraction(1, 16_000)
                container.mux(sound.encode(samples))
                container.mux(sound.encode(None))
        return path

    return write


@pytest.fixture
def loaded(tiny_checkpoint: str) -> LoadedModel:
    """The tiny model in eval mode, with its processor; fresh, so that a test may train or change it."""
    return load_model(tiny_checkpoint)


@pytest.fixture
def encode(data_args: DataArguments, loaded: LoadedModel, train_samples: list[AVSample]) -> SampleEncoder:
    """Turns samples into the tensors that `loaded` reads."""
    return assemble_encoder(data_args, loaded, train_samples)


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled from now on, whichever model projects."""
    positions: list[int] = []
    forward = SuppressingHead.forward

    def record(self: SuppressingHead, hidden_states: torch.Tensor) -> torch.Tensor:
        positions.append(hidden_states.size(1))
        return forward(self, hidden_states)

    monkeypatch.setattr(SuppressingHead, "forward", record)
    return positions


@pytest.fixture
def nearly_full() -> Iterator[None]:
    """No file may grow above 1,000 bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, previous)
