"""Write the model and the clips that come with the package, from the files of `make demo` (`make first-clip`).

    python tools/first_clip.py --model outputs/demo/sft --data_root outputs/demo/data

The model's weights are stored in half precision and computed with in float32. Of the held-out clips, the first two of
each type of reference are taken, whatever the model answers to them. The card holds the scores of the stored model on
these and on all held-out clips; `tests/first_clip` scores it again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, Python looks in this file's folder
    sys.path.append(str(ROOT))

from aurora_rl.assembly.arguments import DataArguments  # noqa: E402
from aurora_rl.assembly.benchmarks import load_split  # noqa: E402
from aurora_rl.assembly.encoder import assemble_encoder  # noqa: E402
from aurora_rl.data.sample import AVSample  # noqa: E402
from aurora_rl.evaluation.measures import MEASURES  # noqa: E402
from aurora_rl.evaluation.records import RowResult  # noqa: E402
from aurora_rl.evaluation.scoring import score_answer  # noqa: E402
from aurora_rl.files.atomic import whole_folder, write_whole  # noqa: E402
from aurora_rl.first_clip import CARD, CLIPS, KNOWLEDGE, MODEL  # noqa: E402
from aurora_rl.inference.predictor import Predictor  # noqa: E402
from aurora_rl.models.loading import load_model  # noqa: E402

#: Files of a model beside its weights; a trainer's pickled arguments and states stay behind.
MODEL_FILES = (
    *("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    "chat_template.jinja",
)
SPLITS = ("test_s", "test_n")
ROWS_PER_TYPE = 2
SHOWN = ("greedy_iou", "category_accuracy", "chain_see", "chain_hear", "format_rate")
CARD_TEXT = """---
license: apache-2.0
library_name: transformers
tags: [audio-visual-segmentation, aurora-rl]
---

# The model that comes with Aurora-RL

A Qwen2.5-Omni of {parameters:.2f} million weights with a mask decoder, trained from nothing by the stage `sft` of
`make demo`: 2,000 steps of supervised fine-tuning on synthetic clips, on a CPU. It is there for a first look,
`aurora-rl demo`, and as a start in examples. Nothing about it carries over to a model of useful size.

{knowledge}

It has only ever seen clips of two seconds in which coloured shapes stand for things (a dog, a bell, a piano and so on)
and sound as such, and sentences made by rules. Of a real video, of other words or of other sounds it knows nothing: it
answers all the same, by the nearest of what it knows.

## Scores

Greedy answers of the model as it is stored, to clips that it was not trained on.

| | the {num_clips} clips beside it | all {num_rows} held-out clips of its benchmark |
|---|---|---|
{table}

## Where it comes from

`make demo` and then `make first-clip` (`tools/first_clip.py`). Weights are stored in float16 and loaded in float32.
"""


def write_model(source: Path, target: Path) -> int:
    """Write a model for the package, and return the number of its weights."""
    weights = load_file(source / "model.safetensors")
    stored = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    with whole_folder(target) as folder:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        for name in MODEL_FILES:
            shutil.copyfile(source / name, folder / name)
    return sum(weight.numel() for weight in weights.values())


def choose_clips(samples: Sequence[AVSample]) -> list[AVSample]:
    """Choose the first rows of each type of reference, each about another clip."""
    chosen: list[AVSample] = []
    for kind in sorted({sample.reference_type or "" for sample in samples}):
        taken = {sample.media_id for sample in chosen}
        rows = {
            sample.media_id: sample
            for sample in reversed(samples)
            if (sample.reference_type or "") == kind and sample.media_id not in taken
        }
        chosen += list(reversed(rows.values()))[:ROWS_PER_TYPE]
    return chosen


def write_clips(samples: Sequence[AVSample], target: Path) -> None:
    """Write rows as own data: a manifest, and a folder of frames, masks and sound for each."""
    with whole_folder(target) as folder:
        lines = []
        for number, sample in enumerate(samples, start=1):
            _copy(sample.frame_paths, folder / f"{number:02}" / "frames")
            _copy(sample.mask_paths, folder / f"{number:02}" / "masks")
            waveform, rate = soundfile.read(sample.audio_path)
            soundfile.write(folder / f"{number:02}" / "sound.ogg", waveform, rate, format="OGG")
            lines.append(json.dumps(record_of(sample, number), ensure_ascii=False) + "\n")
        (folder / "clips.jsonl").write_text("".join(lines), encoding="utf-8")


def record_of(sample: AVSample, number: int) -> dict[str, object]:
    """Return the line of the manifest."""
    return {
        "id": f"{number:02}",
        "frames": f"{number:02}/frames",
        "audio": f"{number:02}/sound.ogg",
        "reference": sample.reference,
        "masks": f"{number:02}/masks" if sample.mask_paths else "empty",
        "category": sample.category,
        "split": "test",
        "fps": sample.fps,
        "chain": sample.chain,
        "reference_type": sample.reference_type,
        "seen": sample.seen,
        "heard": sample.heard,
    }


def _copy(paths: Sequence[str], folder: Path) -> None:
    for path in map(Path, paths):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)


def clip_arguments(data_root: Path, *, benchmark: str = "clips") -> DataArguments:
    """Return how clips are given to the model, as in `recipes/synthetic/sft.yaml`."""
    return DataArguments(
        data_root=str(data_root),
        benchmark=benchmark,
        chains="chains.jsonl" if benchmark == "ref_avs" else None,
        fps=2.0,
        num_frames=4,
        instruction="{reference}",
        min_pixels=256,
        max_pixels=65536,
    )


def answer_rows(model: Path, samples: list[AVSample], args: DataArguments) -> list[RowResult]:
    """Score the model's greedy answers."""
    loaded = load_model(str(model))
    encode = assemble_encoder(args, loaded, samples, is_trainable=False)
    predictor = Predictor(loaded.model, encode, append_seg=True)
    return [
        score_answer(encoded.sample, completion.text, completion.mask_probs, encoded.gt_masks)
        for encoded, [completion] in predictor.predict(samples)
    ]


def scores_of(results: Sequence[RowResult]) -> dict[str, float]:
    """Return the numbers of the card by the measure's name."""
    numbers = {name: MEASURES[name].over(results) for name in SHOWN}
    return {name: number for name, number in numbers.items() if number is not None}


def score_lines(clips: Mapping[str, float], held_out: Mapping[str, float]) -> str:
    """Return the lines of the card's table."""
    return "\n".join(f"| {MEASURES[name].label} | {clips[name]:.3f} | {held_out[name]:.3f} |" for name in SHOWN)


def main() -> None:
    """Write model, clips and card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/sft"), help="folder of the demo's model")
    parser.add_argument("--data_root", type=Path, default=Path("outputs/demo/data"), help="folder of the demo's clips")
    args = parser.parse_args()
    torch.manual_seed(0)
    data_args = clip_arguments(args.data_root, benchmark="ref_avs")
    held_out = [sample for split in SPLITS for sample in load_split(data_args, split)]
    parameters = write_model(args.model, MODEL)
    write_clips(choose_clips(held_out), CLIPS)
    own_args = clip_arguments(CLIPS)
    clips = load_split(own_args, "test")
    scores = scores_of(answer_rows(MODEL, clips, own_args))
    table = score_lines(scores, scores_of(answer_rows(MODEL, held_out, data_args)))
    text = CARD_TEXT.format(
        parameters=parameters / 1e6, knowledge=KNOWLEDGE, num_clips=len(clips), num_rows=len(held_out), table=table
    )
    write_whole(CARD, text)
    print(f"{MODEL} and {CLIPS} are written\n{table}")


if __name__ == "__main__":
    main()
