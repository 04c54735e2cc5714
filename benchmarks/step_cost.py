"""Cost of a GRPO step with masks, against TRL's own GRPOTrainer on the same model, prompts and completions.

    python benchmarks/step_cost.py --output out.json     (2 CPU cores)
    python benchmarks/step_cost.py --quick             (`make bench`: one repeat, no sweep of shared prompts)
    python benchmarks/step_cost.py --only_sharing --num_threads 1 --plot sharing.svg

The two trainers step in turn in one process. All numbers are medians over the repeats; a ratio is that of two
successive steps. One table is of a task that is answered in words alone, with a model without a head.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from transformers.utils import logging as transformers_logging

from aurora_rl.assembly.options import OptionParser
from benchmarks.contenders import make_aurora, make_stock, make_words, mask_functions_watched
from benchmarks.embeddings import measure_embeddings
from benchmarks.mask_decoding import LOOP, TOGETHER, measure_decoding
from benchmarks.prompt_sharing import Group, measure_prefill, measure_sharing
from benchmarks.sharing_sweep import CORNERS, GROUP, SHORT, SWEEP, Point, draw, groups_table
from benchmarks.tables import Comparison, decoding_table, embedding_table, sharing_table, step_table, sweep_table
from benchmarks.timing import Stopwatch
from benchmarks.workload import StepShape, build_policy


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of all measurements.

    Attributes:
        repeats: number of steps of each trainer.
        shape: sizes of the step that is measured part by part.
        sweep: sizes of whole steps, which differ in one number.
        sam_image_size: S, image size of the mask decoder, whose embeddings are S / 16 squared.
        sam_frames: F, number of frames in mask decoding.
        encoder: values that differ from `SamVisionConfig`'s defaults, which are those of ViT-B.
        encoder_frames: F, number of frames of the clip that is encoded or read from the cache.
        group: group that is read with its prompt in every row, and once, and of a whole step with that prompt.
        short: groups with short prompts.
        groups: groups whose passes and whole steps are measured; none to leave them out.
        counted: groups whose tokens are counted.
    """

    repeats: int
    shape: StepShape
    sweep: Sequence[StepShape]
    sam_image_size: int = 1024
    sam_frames: int = 10
    encoder: dict = dataclasses.field(default_factory=dict)
    encoder_frames: int = 10
    group: Group = GROUP
    short: Sequence[Group] = SHORT
    groups: Sequence[Group] = ()
    counted: Sequence[Group] = ()


#: Pairs of steps of a task without a head, for each repeat of the others: their ratio is close to 1.
WORDS_REPEATS = 3
#: Pairs of passes over a group with a short prompt, and of those and of whole steps for each point of the sweep.
SHORT_REPEATS, SWEEP_REPEATS = 15, 2
SMALL = StepShape(hidden_size=256, num_layers=4, num_heads=4)
TOY = StepShape(
    num_generations=2, num_frames=2, completion_length=6, hidden_size=64, num_layers=2, num_heads=2, frame_size=32
)
TOY_GROUP = Group(dataclasses.replace(TOY, num_generations=8, completion_length=8), 40)
STEPS = (
    *(dataclasses.replace(SMALL, num_generations=g) for g in (4, 8, 16, 32)),
    *(dataclasses.replace(SMALL, num_frames=f) for f in (1, 5, 10, 30)),
    *(dataclasses.replace(SMALL, completion_length=n) for n in (32, 64, 128, 256)),
)
PLANS = {
    "full": Plan(repeats=5, shape=StepShape(), sweep=STEPS, groups=SWEEP, counted=CORNERS),
    "quick": Plan(repeats=1, shape=StepShape(), sweep=STEPS, encoder_frames=1),
    "toy": Plan(
        repeats=1,
        shape=TOY,
        sweep=(dataclasses.replace(TOY, num_frames=1),),
        sam_image_size=128,
        sam_frames=2,
        encoder={
            "image_size": 128,
            "hidden_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "global_attn_indexes": [0],
        },
        encoder_frames=1,
        group=TOY_GROUP,
        short=(dataclasses.replace(TOY_GROUP, prompt_length=2),),
        groups=(Group(TOY, 40),),
        counted=CORNERS[:1],
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure one repeat, within 10 minutes on 2 cores")
    parser.add_argument("--only_sharing", action="store_true", help="measure shared prompts alone")
    parser.add_argument("--plot", type=Path, help="file for a plot of shared prompts, .svg or .png; not with --quick")
    parser.add_argument("--output", type=Path, help="JSON file for the medians that have a target")
    parser.add_argument("--num_threads", type=int, default=2, help="number of threads of torch")
    parser.add_argument(
        "--clock",
        choices=("cpu", "wall"),
        default="cpu",
        help="time that is measured: the processor's, which other processes do not change much, or the wall clock's",
    )
    parser.add_argument("--size", choices=PLANS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    plan = PLANS[args.size or ("quick" if args.quick else "full")]
    if args.plot and not plan.groups:
        parser.error("--plot draws groups of several sizes, which --quick does not measure: leave one of them out")
    if args.plot and args.plot.suffix not in (".svg", ".png"):
        parser.error(f"--plot {args.plot} is of no format that is drawn: name a file .svg or .png")
    torch.set_num_threads(args.num_threads)
    stopwatch = Stopwatch()
    with mask_functions_watched(stopwatch):
        medians = {} if args.only_sharing else measure_masks(plan, stopwatch, args.clock)
        medians |= measure_shared_prompts(plan, stopwatch, args.clock, args.plot)
    if args.output:
        args.output.write_text(json.dumps(medians, indent=2) + "\n")


def measure_masks(plan: Plan, stopwatch: Stopwatch, clock: str) -> dict[str, float]:
    """Print each table of what masks cost when it is measured, and return the numbers that have a target."""
    once, twice = (compare(plan.shape, stopwatch, plan.repeats, num_iterations=n) for n in (1, 2))
    _show(f"One step, {plan.shape}", step_table(once, clock))
    _show("The same, rollouts trained on twice, so that TRL scores old log-probabilities", step_table(twice, clock))
    words = compare_words(plan.shape, stopwatch, WORDS_REPEATS * plan.repeats)
    _show("A task that is answered in words alone, with a model without a head", step_table(words, clock))
    decoding = measure_decoding(num_frames=plan.sam_frames, image_size=plan.sam_image_size, repeats=plan.repeats)
    _show(f"Mask decoding, G = 8, F = {plan.sam_frames}, forward and backward", decoding_table(decoding, clock))
    embeddings = measure_embeddings(plan.encoder, num_frames=plan.encoder_frames, repeats=plan.repeats)
    _show(f"Image embeddings of a clip of {plan.encoder_frames} frames", embedding_table(*embeddings, clock))
    comparisons = [(shape, compare(shape, stopwatch, plan.repeats)) for shape in plan.sweep]
    _show("Cost of a step against G, F and completion length", sweep_table(comparisons, clock))
    together, loop = decoding[TOGETHER], decoding[LOOP]
    turns = zip(together.seconds, loop.seconds, strict=True)
    return {
        "ratio_without_masks": once.ratio_without_masks(clock),
        "ratio_dot": once.ratio(clock),
        "ratio_without_head": words.ratio(clock),
        "decode_peak_gb": together.peak_gb,
        "decode_vs_loop": median(ours.on(clock) / theirs.on(clock) for ours, theirs in turns),
    }


def measure_shared_prompts(plan: Plan, stopwatch: Stopwatch, clock: str, plot: Path | None) -> dict[str, float]:
    """Print each table of what shared prompts save, draw the plot, and return the numbers that have a target."""
    title, repeats = "G = {}, P = {:,}, C = {}".format(*plan.group.sizes), plan.repeats
    sharing, prefill = measure_sharing(plan.group, repeats), measure_prefill(plan.group, repeats)
    _show(f"Forward and backward pass of one group, {title}", sharing_table(sharing, clock))
    _show("Prefill of that group in `generate`", sharing_table(prefill, clock))
    step = compare(plan.group.shape, stopwatch, repeats)
    _show(f"One step with that group, {plan.group.shape}", step_table(step, clock))
    short = [Point(group, measure_sharing(group, SHORT_REPEATS)) for group in plan.short]
    _show("Groups with short prompts", groups_table(short, clock))
    if plan.groups:
        points = [
            Point(group, measure_sharing(group, SWEEP_REPEATS), compare(group.shape, stopwatch, SWEEP_REPEATS))
            for group in plan.groups
        ]
        _show("Groups of several sizes", groups_table([*points, *map(Point, plan.counted)], clock))
        if plot is not None:
            draw(points, clock, plot)
    return {
        "ratio_shared_fwd_bwd": sharing.ratio(clock),
        "tokens_ratio": sharing.tokens_ratio,
        "kept_bytes_ratio": sharing.bytes_ratio,
        "prefill_tokens_ratio": prefill.tokens_ratio,
        "ratio_shared_step": 1 / step.ratio(clock),
        "ratio_shared_short_prompt": min(point.passes.ratio(clock) for point in short if point.passes),
    }


def compare(shape: StepShape, stopwatch: Stopwatch, repeats: int, *, num_iterations: int = 1) -> Comparison:
    """Run steps of both trainers in turn."""
    policy = build_policy(shape)
    stock, aurora = (
        make(policy, shape, stopwatch, num_iterations=num_iterations) for make in (make_stock, make_aurora)
    )
    return Comparison([(stock.step(), aurora.step()) for _ in range(repeats)])


def compare_words(shape: StepShape, stopwatch: Stopwatch, repeats: int) -> Comparison:
    """Run steps of both trainers in turn, ours for a task without a head; models, prompts and completions are equal."""
    policy = build_policy(shape, has_head=False)
    stock, words = make_stock(policy, shape, stopwatch), make_words(policy, shape, stopwatch)
    return Comparison([(stock.step(), words.step()) for _ in range(repeats)])


def _show(title: str, table: str) -> None:
    print(f"\n### {title}\n\n{table}", flush=True)


if __name__ == "__main__":
    # Only the tables are printed.
    logging.getLogger("aurora_rl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    main()
