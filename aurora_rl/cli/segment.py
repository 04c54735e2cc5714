"""`aurora-rl segment`: one clip, some references, and a folder of masks, chains of thought and an overlay video."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.checks import check_pipeline_arguments, check_positive
from aurora_rl.cli.console import CLEAN, printable, refuse
from aurora_rl.cli.pipeline_arguments import add_pipeline_arguments, load_pipeline
from aurora_rl.data.footage import check_footage
from aurora_rl.files.existing import check_file, check_folder
from aurora_rl.inference.answer_folder import check_answer_folder

if TYPE_CHECKING:
    from aurora_rl.inference.pipeline import AuroraPipeline, ClipAnswer

DESCRIPTION = """Segment what references point at in a video: masks, the chain of thought, an overlay video with sound.

aurora-rl segment clip.mp4 "the object making a sound before the man" --model DIR -o out/
aurora-rl segment --frames frames/ --audio audio.wav "the drum" "the man on the left" --model DIR -o out/

Writes answer.json, chain.txt, masks/<reference>/<frame>.png, masks.json (COCO) and overlay.mp4; see docs/inference.md.
Exit code 0: answered (that there is no such target is an answer), 2: unusable arguments, model or clip."""

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("segment", help="segment a video", description=DESCRIPTION)
    parser.add_argument("inputs", nargs="+", metavar="[VIDEO] REFERENCE", help="video or still image, then references")
    add_pipeline_arguments(parser)
    parser.add_argument("--output_dir", "-o", type=Path, required=True, help="folder that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier answer in the folder")
    parser.add_argument(
        "--frames", type=Path, metavar="DIR", help="folder of image files, in order of name, instead of a video"
    )
    parser.add_argument("--audio", type=Path, metavar="FILE", help="sound file (default: the video's own sound)")
    parser.add_argument("--fps", type=float, help="frames a second of --frames (default: the model's own rate)")
    parser.add_argument(
        "--every_frame", action="store_true", help="write masks of every frame, not only of sampled ones"
    )
    parser.add_argument(
        "--no_tracking", action="store_true", help="take the nearest sampled masks, even where a memory could track"
    )
    parser.add_argument(
        "--forward_only", action="store_true", help="track from earlier sampled frames alone: no picture has to wait"
    )
    parser.add_argument("--window", type=float, metavar="SECONDS", help="length of the windows of a longer clip")
    parser.add_argument(
        "--stride", type=float, metavar="SECONDS", help="time from one window to the next (default: --window)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer, write the folder and return the exit code."""
    try:
        video, references = _checked_clip(args)
        # Here, because this imports torch and transformers, which take seconds.
        from aurora_rl.inference.answer_files import write_answer

        pipeline = load_pipeline(args)
        started = time.perf_counter()
        answer = _answer(pipeline, video, references, args)
        written = time.perf_counter()
        write_answer(
            answer,
            pipeline.every_frame(
                answer, track=args.every_frame and not args.no_tracking, both_ways=not args.forward_only
            ),
            args.output_dir,
            model=args.model,
            every_frame=args.every_frame,
        )
    except (OSError, ValueError) as error:
        return refuse("segment", error)
    writing = time.perf_counter() - written
    lines = []
    for number, each in enumerate(answer.references):
        target = "no such target" if each.is_null else each.category or "no answer"
        share = "" if each.masks is None else f", {each.masks.mean():.1%} of the pixels"
        lines.append(f"{number}. {each.reference}: {target}{share}")
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in answer.seconds.items())
    lines.append(f"{written - started:.1f} s to answer ({parts}), {writing:.1f} s to write {args.output_dir}")
    print("\n".join(printable(line) for line in lines))
    return CLEAN


def _checked_clip(args: argparse.Namespace) -> tuple[Path | list[Path], list[str]]:
    """Check all arguments, and return the video or its frames, and the references."""
    video, references = _clip_and_references(args)
    if not all(reference.strip() for reference in references):
        raise ValueError(f"the references are {references}: none of them may be empty")
    check_positive(args, "fps", "window", "stride")
    check_pipeline_arguments(args)
    if isinstance(video, Path):
        check_file(video, name="the clip")
    if args.audio is not None:
        check_file(args.audio, name="--audio")
    files = [*(video if isinstance(video, list) else [video]), *([args.audio] if args.audio else [])]
    check_answer_folder(args.output_dir, overwrite=args.overwrite, inputs=files)
    check_footage(video, audio=args.audio, fps=args.fps or 1.0, max_side=args.max_side)
    return video, references


def _answer(
    pipeline: AuroraPipeline, video: Path | list[Path], references: list[str], args: argparse.Namespace
) -> ClipAnswer:
    return pipeline(
        video=video,
        text=references,
        audio=args.audio,
        fps=args.fps,
        window_seconds=args.window,
        stride_seconds=args.stride,
    )


def _clip_and_references(args: argparse.Namespace) -> tuple[Path | list[Path], list[str]]:
    if args.frames is not None:
        check_folder(args.frames, name="--frames")
        files = [path for path in args.frames.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise ValueError(f"{args.frames} holds no image files: expected {', '.join(sorted(IMAGE_SUFFIXES))}")
        numbers = re.compile(r"(\d+)")  # 2.jpg comes before 10.jpg
        files.sort(key=lambda path: [int(p) if p.isdigit() else p for p in numbers.split(path.name)])
        return files, args.inputs
    if args.fps is not None:
        raise ValueError("--fps is the rate of --frames: a video knows its own")
    video, *references = args.inputs
    if not references:
        raise ValueError(f"there is no reference: say what to segment, as in: aurora-rl segment {video} 'the drum'")
    return Path(video), references
