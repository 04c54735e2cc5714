"""`aurora-rl demo`: the model that comes with the package answers one of the clips that come with it."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aurora_rl.cli import serve
from aurora_rl.cli.arguments import Commands, positive
from aurora_rl.cli.console import CLEAN, printable, refuse
from aurora_rl.data.clips import load_clips
from aurora_rl.data.sample import AVSample
from aurora_rl.first_clip import CLIPS, MODEL, knowledge_of
from aurora_rl.inference.answer_folder import check_answer_folder

if TYPE_CHECKING:
    from aurora_rl.inference.pipeline import ReferenceAnswer
    from aurora_rl.tasks.base import Task

DESCRIPTION = """A first look: a small trained model answers a clip; both come with the package. Nothing is downloaded.

aurora-rl demo              answers clip 3, prints its chain of thought, writes its masks and an overlay video
aurora-rl demo 7            answers another of the dozen clips; aurora-rl demo --list says what they ask
aurora-rl demo 7 --reference "The object on the left."
aurora-rl demo --serve      the model on a page in the browser, with clips without end; needs Gradio

Exit code 0: answered, 2: unusable arguments."""
FIRST = 3
FOLDER = Path("aurora-rl-demo")


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("demo", help="see a small trained model answer a clip", description=DESCRIPTION)
    parser.add_argument("clip", nargs="?", type=positive, default=FIRST, help="number of the clip, from 1")
    parser.add_argument("--reference", help="another sentence to ask than the clip's own")
    parser.add_argument(
        "--output_dir", "-o", type=Path, help=f"folder that is written (default: {FOLDER}, and replaced there)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier answer in --output_dir")
    parser.add_argument("--list", action="store_true", help="list the clips and end")
    parser.add_argument("--serve", action="store_true", help="open the model's page instead")
    parser.add_argument("--port", type=positive, default=7860, help="port of the page")
    parser.add_argument("--device", help="device of the model, such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer the clip and return the exit code."""
    if args.serve:
        return _open_page(args)
    try:
        clips = load_clips(CLIPS, "test", num_frames=None)
        if args.list:
            print("\n".join(f"{number:>3}  {clip.reference}" for number, clip in enumerate(clips, start=1)))
            return CLEAN
        if args.clip > len(clips):
            raise ValueError(f"there is no clip {args.clip}: give a number from 1 to {len(clips)}")
        folder = args.output_dir or FOLDER
        check_answer_folder(folder, overwrite=args.overwrite or args.output_dir is None, inputs=())
        print("\n".join(_answer(clips[args.clip - 1], args, folder)))
    except (OSError, ValueError) as error:
        return refuse("demo", error)
    return CLEAN


def _open_page(args: argparse.Namespace) -> int:
    words = ["--model", str(MODEL), "--port", str(args.port), *(["--device", args.device] if args.device else [])]
    parser = argparse.ArgumentParser()
    serve.register(parser.add_subparsers())
    return serve.run(parser.parse_args(["serve", *words]))


def _answer(sample: AVSample, args: argparse.Namespace, folder: Path) -> list[str]:
    """Answer a clip, write the folder, and return what is printed."""
    # Here, because these import torch and transformers, which take seconds.
    from aurora_rl.inference.answer_files import write_answer
    from aurora_rl.inference.pipeline import AuroraPipeline

    pipeline = AuroraPipeline(str(MODEL), device=args.device)
    started = time.perf_counter()
    reference = args.reference or sample.reference
    answer = pipeline(
        video=[Path(path) for path in sample.frame_paths], text=reference, audio=sample.audio_path, fps=sample.fps
    )
    seconds = time.perf_counter() - started
    write_answer(answer, pipeline.every_frame(answer), folder, model=str(MODEL))
    [found] = answer.references
    return [
        f'clip {args.clip}: "{printable(reference)}"',
        "",
        *(f"  {printable(line)}" for line in found.text.splitlines()),
        "",
        *([] if args.reference else [_truth(sample, found, pipeline.task)]),
        f"{seconds:.1f} s to answer; {folder}/overlay.mp4 shows the masks, with the sound; {folder} holds the rest",
        "",
        f"What it can know: {knowledge_of(MODEL)}",
        "",
        "aurora-rl demo --serve    the same on a page in the browser",
        f'aurora-rl segment CLIP.mp4 "the object on the left" --model {shlex.quote(str(MODEL))} -o out',
    ]


def _truth(sample: AVSample, found: ReferenceAnswer, task: Task) -> str:
    """Compare an answer with the truth, which comes with the clip."""
    import torch

    from aurora_rl.data.media import load_clip
    from aurora_rl.metrics import mask_iou

    is_right = task.is_right(task.parse(found.text), sample)
    verdict = "right" if is_right else f"wrong, the truth is {sample.category}"
    gt_masks = load_clip(sample).gt_masks
    if found.masks is None or gt_masks is None:
        return f"The answer is {verdict}."
    score = mask_iou(torch.from_numpy(found.masks), torch.from_numpy(gt_masks))
    return f"The answer is {verdict}; mask IoU {score:.2f}."
