"""What an earlier version wrote still loads, resumes and scores alike: a user's files outlive our names for things.

files_of_0_1.tar.xz was written on 2026-11-26 by commit 9a3b935 (0.1.0, before its release), all paths in it relative:

    data/                     data_prep/make_synthetic.py: 5 clips of 2 frames of 32 px and 1 s of sound
    model/                    recipes/init_tiny.py: 0.1 M random weights, `dot` mask decoder
    sft/, sft/checkpoint-2/   recipes/sft.py --config sft.yaml, 4 steps; the others' checkpoints are left out
    adapter/                  the same with --use_peft true --model sft: LoRA, whole head and embeddings
    sam/, embeddings/         a random SAM of width 16, and the embedding cache that it filled
    results/                  recipes/evaluate.py --config evaluate.yaml, of the adapter
    mistakes.jsonl(.parts)    data_prep/collect_mistakes.py --config mistakes.yaml; the journal as a kill leaves it:
                              four rows of six, and half a line
    expected.json             what that version computed from these files

The files are never written anew: where one does not load any more, the code has to learn to read it. Numbers are
compared with a tolerance, since processors round differently.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.cli import main as aurora_rl
from aurora_rl.data.run_lengths import decode_masks
from aurora_rl.evaluation.records import read_results
from aurora_rl.models.collate import collate_frames
from aurora_rl.models.grounding import segmentation_model
from aurora_rl.models.heads import FrameBatch
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.segmenters import build_frame_encoder, complete_segmenter_config
from aurora_rl.models.loading import load_model

ROOT = Path(__file__).parents[2]
DATA = DataArguments(
    data_root="data",
    chains="chains.jsonl",
    fps=2.0,
    num_frames=2,
    instruction="{reference}",
    min_pixels=256,
    max_pixels=65536,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the unpacked files; read-only."""
    folder = tmp_path_factory.mktemp("files_of_0_1")
    with tarfile.open(Path(__file__).with_name("files_of_0_1.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(written: Path) -> dict[str, Any]:
    return json.loads((written / "expected.json").read_text())


@pytest.fixture
def folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files to work in, its configs in today's words, as their user has to write them."""
    shutil.copytree(written, tmp_path / "files")
    config = tmp_path / "files" / "mistakes.yaml"
    config.write_text(config.read_text().replace("\nout:", "\noutput:"))
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


def run(program: str, *options: str) -> str:
    """Run a program of the checkout in the present folder; what it wrote to stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *options], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@torch.no_grad()
def forward(checkpoint: str) -> dict[str, torch.Tensor]:
    """Log-probabilities of the second row's gold chain, and mask logits at its `[SEG]`, by a plain forward pass."""
    loaded = load_model(checkpoint)
    samples = load_split(DATA, "train")
    row = assemble_encoder(DATA, loaded, samples)(samples[1])
    completion = loaded.processor.tokenizer(samples[1].chain, add_special_tokens=False).input_ids
    ids = torch.tensor([[*row.prompt.prompt_ids, *completion]])
    media = loaded.family.collate_features([row.prompt.features], [0])
    outputs = loaded.model.eval()(
        input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **media
    )
    logps = outputs.logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    state = outputs.hidden_states[-1][:, ids[0].tolist().index(loaded.seg_token_id)]
    frames = collate_frames([row])
    clips = FrameBatch(frames["seg_frames"], frames["seg_frame_counts"], frames["seg_clip_index"])
    mask_logits = run_head(segmentation_model(loaded.model).seg_head, state, clips)["mask_logits"]
    return {"logps": logps[-len(completion) :], "mask_logits": mask_logits.flatten()[::16]}


@pytest.mark.parametrize("checkpoint", ["model", "sft/checkpoint-2", "adapter"])
def test_checkpoint_gives_the_numbers_that_it_gave(folder, expected, checkpoint):
    computed = forward(checkpoint)
    assert len(computed["logps"]) == 38
    for name, values in computed.items():
        torch.testing.assert_close(values, torch.tensor(expected[checkpoint][name]), rtol=1e-4, atol=1e-4)


def test_interrupted_training_ends_as_it_ended(folder):
    before = json.loads((folder / "sft" / "trainer_state.json").read_text())
    (folder / "resumed").mkdir()
    shutil.move(folder / "sft" / "checkpoint-2", folder / "resumed" / "checkpoint-2")
    run("recipes/sft.py", "--config", "sft.yaml", "--output_dir", "resumed", "--resume_from_checkpoint", "true")
    after = json.loads((folder / "resumed" / "trainer_state.json").read_text())
    names = ("step", "loss", "mask_bce", "mask_dice", "grad_norm")
    steps = [[log[name] for name in names] for log in before["log_history"] if "loss" in log]
    assert [step[0] for step in steps] == [1, 2, 3, 4]
    resumed = [[log[name] for name in names] for log in after["log_history"] if "loss" in log]
    torch.testing.assert_close(torch.tensor(resumed), torch.tensor(steps), rtol=1e-3, atol=1e-4)


def test_embedding_cache_is_found_and_read(folder, expected):
    encoder = build_frame_encoder(
        complete_segmenter_config({"type": "sam", "checkpoint": "sam", "image_size": 64}), dtype=torch.float32
    )
    samples = load_split(DATA, "train")
    embedding = EmbeddingCache("embeddings", encoder).get(samples[0].media_id, frame_paths=samples[0].frame_paths)
    assert list(embedding.shape) == expected["embedding"]["shape"] == [2, 16, 4, 4]
    assert embedding.flatten()[::31].tolist() == expected["embedding"]["values"]


@pytest.mark.parametrize("preset", ["avsbench", "davis", "aurora"])
def test_saved_masks_score_as_they_scored(folder, expected, preset):
    command = ["evaluate", "--results", "results/results.jsonl", "--data_root", "data", "--split", "test_s", "test_n"]
    assert aurora_rl([*command, "--preset", preset, "--output_dir", "again"]) == 0
    after = json.loads(Path("again/scores.json").read_text())["splits"]
    assert set(after) == {"test_s", "test_n"}
    for split, numbers in expected["splits"][preset].items():
        assert {name: after[split][name] for name in numbers} == pytest.approx(numbers, abs=1e-6)


def test_results_folder_is_read_by_what_compares_and_shows_it(folder, capsys):
    assert aurora_rl(["compare", "results/scores.json", "results/scores.json"]) == 0
    shown = capsys.readouterr().out
    assert "test_s" in shown and "J" in shown
    results = read_results(Path("results/results.jsonl"))
    assert [result.uid for result in results] == ["test_s-00000_0_1000_engine_1", "null_m-test_s-00000_0_1000_null_1"]
    assert [decode_masks(result.greedy.pred_masks).shape for result in results] == [(2, 32, 32)] * 2


def test_journal_of_a_killed_run_is_continued(folder):
    unbroken = (folder / "mistakes.jsonl").read_text()
    (folder / "mistakes.jsonl").unlink()
    kept = (folder / "mistakes.jsonl.parts" / "00000.jsonl").read_text().splitlines()[:4]
    run("data_prep/collect_mistakes.py", "--config", "mistakes.yaml")
    lines = (folder / "mistakes.jsonl").read_text().splitlines()
    assert lines[:4] == kept == unbroken.splitlines()[:4]  # not asked again
    assert [json.loads(line)["row"] for line in lines] == [json.loads(line)["row"] for line in unbroken.splitlines()]
