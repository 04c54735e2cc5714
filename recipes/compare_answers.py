"""Compare GRPO with SFT that continues, on a task answered in words: whole, muted, blanked, beside what sight can do.

python recipes/compare_answers.py --stages outputs/choice --output_dir outputs/choice/table

It reads the outputs of recipes/synthetic/choice/stages.yaml, of think_stages.yaml beside it or, with `--score iou`,
those of recipes/synthetic/moments/stages.yaml, and writes table.md and result.json.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.data.manifest import read_manifest
from aurora_rl.data.manifest_rows import ManifestRow
from aurora_rl.data.questions import QUESTIONS_FILE, QuestionRow, read_questions
from aurora_rl.evaluation.figures import TABLE_FILE, Figure, write_result
from aurora_rl.evaluation.intervals import Interval, bootstrap_difference, bootstrap_interval
from aurora_rl.evaluation.records import RowResult, read_results
from aurora_rl.scripts.stage_outputs import check_known, processor_seconds, results_by_seed
from aurora_rl.synthetic.questions import accuracy_of_sight
from aurora_rl.synthetic.writer import MOMENTS_FILE
from aurora_rl.tasks.spans import Span, temporal_iou

#: The stages that are compared: the one that both others start from, and the one to be better last.
START, BEFORE, AFTER = "sft", "sft_longer", "grpo"
STAGES = {START: "early SFT", BEFORE: "SFT continued", AFTER: "GRPO"}
HEARING, MUTED, BLANKED = "results.jsonl", "results.audio_muted.jsonl", "results.frames_blanked.jsonl"
#: The least gain of GRPO that is called one, and how far muted answers may be above what sight can do.
LEAST_GAIN, ABOVE_SIGHT = 0.05, 0.05
#: Name of the system among the results that `gather_seeds.py` gathers, by the score.
SYSTEMS = {"accuracy": "mcq", "iou": "temporal"}

#: Value of each question by (seed, uid); seeds are pooled.
Values = dict[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Scores of one stage with all of its seeds.

    Attributes:
        scores: score of each greedy answer by seed and uid, such as 1 for a right one.
        clips: clip of each of these.
    """

    scores: Values
    clips: dict[tuple[str, str], str]

    def by_seed(self) -> dict[str, float]:
        """Return each seed's mean score."""
        seeds = sorted({seed for seed, _ in self.scores})
        return {seed: mean([value for (of, _), value in self.scores.items() if of == seed]) for seed in seeds}

    def interval(self, than: Mapping[str, float] | None = None) -> Interval:
        """Compute the mean with its interval over clips, or how far it is above a value of each question's uid.

        Raises:
            ValueError: if a question has no such value.
        """
        check_known([uid for _, uid in self.scores], than)
        values = [value - (than[uid] if than else 0.0) for (_, uid), value in self.scores.items()]
        return bootstrap_interval(values, clips=list(self.clips.values()))


def pool(folder: Path, stage: str, file: str, score: str) -> Pooled:
    """Read a stage's scores of all seeds.

    Raises:
        FileNotFoundError: if the stage was not evaluated.
    """
    found = results_by_seed(folder, stage, file)
    if not found:
        raise FileNotFoundError(f"{folder} holds no evaluate_{stage}/{file}: run the stages first")
    rows = [(seed, row) for seed, path in found.items() for row in read_results(path)]
    return Pooled(
        {(seed, row.uid): score_of(row, score) for seed, row in rows},
        {(seed, row.uid): row.media_id for seed, row in rows},
    )


def score_of(row: RowResult, name: str) -> float:
    """Return a score of a row's greedy answer; 0 without an answer. `accuracy` is whether the answer is right.

    Raises:
        ValueError: if the row's task has no such score.
    """
    if row.greedy is None:
        return 0.0
    if name == "accuracy":
        return float(row.greedy.is_right)
    if name not in row.greedy.scores:
        raise ValueError(f"row {row.key!r} has the scores {sorted(row.greedy.scores)}, not {name!r}: choose by --score")
    return row.greedy.scores[name] or 0.0


def gain(before: Pooled, after: Pooled) -> Interval:
    """Compute the paired difference, question by question; a clip is drawn with all of its questions and seeds."""
    flat = [{"/".join(key): value for key, value in pooled.scores.items()} for pooled in (before, after)]
    return bootstrap_difference(*flat, clips={"/".join(key): clip for key, clip in before.clips.items()})


def accuracies_of_sight(rows: Sequence[QuestionRow]) -> dict[str, float]:
    """Return the probability with which the best answerer who only sees is right, by the question's uid."""
    return {row.uid: accuracy_of_sight(row.kind or "", row.choices, row.seen or ()) for row in rows}


def overlaps_of_sight(rows: Sequence[ManifestRow]) -> dict[str, float]:
    """Return the temporal IoU of the best answerer who only sees, by the row's uid.

    The picture tells whether the thing is in view, nothing else; so that answerer has one answer for things in view and
    one for others, "never" or a span of tenths of the longest time, whose IoU with the training split's truth is best.
    """
    truth = {row.uid: [(start, end) for start, end in json.loads(row.extra or "{}")["times"]] for row in rows}
    latest = max(end for spans in truth.values() for _, end in spans)
    tenths = [latest * number / 10 for number in range(11)]
    candidates: list[list[Span]] = [[], *([(start, end)] for start in tenths for end in tenths if start < end)]
    overlaps: dict[str, float] = {}
    for in_view in (True, False):
        alike = [row for row in rows if (row.category in (row.seen or ())) == in_view]
        learned = [truth[row.uid] for row in alike if row.split == "train"]
        best = max(candidates, key=lambda spans: sum(temporal_iou(spans, true) for true in learned))
        overlaps |= {row.uid: temporal_iou(best, truth[row.uid]) for row in alike}
    return overlaps


#: What sight can do, by the score that is compared.
SIGHT: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "accuracy": lambda data: accuracies_of_sight(read_questions(data / QUESTIONS_FILE)),
    "iou": lambda data: overlaps_of_sight(read_manifest(data / MOMENTS_FILE)),
}


def compare(folder: Path, score: str = "accuracy") -> dict[str, Any]:
    """Compute the whole comparison from the stages' folder, by one of the task's scores."""
    seen = SIGHT[score](folder / "data")
    hearing = {stage: pool(folder, stage, HEARING, score) for stage in STAGES}
    muted = {stage: pool(folder, stage, MUTED, score) for stage in STAGES}
    blanked = {stage: pool(folder, stage, BLANKED, score) for stage in STAGES if any(folder.glob(f"*/{BLANKED}"))}
    asked = {uid for _, uid in hearing[AFTER].scores}
    check_known(asked, seen)
    gained = gain(hearing[BEFORE], hearing[AFTER])
    at_start = {uid: value for (_, uid), value in hearing[START].scores.items()}
    learned = hearing[AFTER].interval(at_start)
    return {
        "score": score,
        "questions": len(asked),
        "clips": len(set(hearing[AFTER].clips.values())),
        "best_by_sight": mean([seen[uid] for uid in asked]),
        "stages": {
            stage: {
                score: hearing[stage].interval(),
                "by_seed": hearing[stage].by_seed(),
                "muted": muted[stage].interval(),
                "muted_by_seed": muted[stage].by_seed(),
                "muted_above_sight": muted[stage].interval(seen),
                **({"blanked": blanked[stage].interval()} if blanked else {}),
                "processor_seconds": processor_seconds(folder, stage),
            }
            for stage in STAGES
        },
        "gain": gained,
        "grpo_wins": gained.mean >= LEAST_GAIN and hearing[AFTER].interval().low > hearing[BEFORE].interval().high,
        "learned": learned,
        "grpo_learns": learned.mean >= LEAST_GAIN and hearing[AFTER].interval().low > hearing[START].interval().high,
        "muted_is_sight_at_most": muted[AFTER].interval(seen).mean <= ABOVE_SIGHT,
    }


def figures(table: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a comparison beside their bars."""
    score, muted = table["score"], table["stages"][AFTER]["muted_above_sight"]
    apart, at_most = f"at least {LEAST_GAIN}, intervals of both apart", f"at most {ABOVE_SIGHT}"
    heard = table["muted_is_sight_at_most"]
    return [
        Figure.of(f"{score}, GRPO - early SFT", table["learned"], bar=apart, met=table["grpo_learns"]),
        Figure.of(f"{score}, GRPO - SFT continued", table["gain"], bar=apart, met=table["grpo_wins"]),
        Figure.of(f"{score}, GRPO muted - best by sight", muted, bar=at_most, met=heard),
        *(Figure.of(f"{score}, {name}", table["stages"][stage][score]) for stage, name in STAGES.items()),
    ]


def size(table: Mapping[str, Any]) -> str:
    """Say in one line what was compared."""
    seeds = len(table["stages"][AFTER]["by_seed"])
    return f"{seeds} seeds, {table['questions']} questions about {table['clips']} clips"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def markdown(table: Mapping[str, Any]) -> str:
    """Write the comparison as Markdown."""
    score = table["score"]
    header = ["stage", score, "of each seed", "muted", "muted, of each seed", "blanked", "processor seconds"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for stage, of_stage in table["stages"].items():
        cells = [
            STAGES[stage],
            of_stage[score].in_words(),
            ", ".join(f"{value:.3f}" for value in of_stage["by_seed"].values()),
            of_stage["muted"].in_words(),
            ", ".join(f"{value:.3f}" for value in of_stage["muted_by_seed"].values()),
            of_stage["blanked"].in_words() if "blanked" in of_stage else "",
            ", ".join(f"{value:.0f}" for value in of_stage["processor_seconds"].values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"GRPO - SFT continued: {table['gain'].in_words(signed=True)}, paired and pooled over seeds; intervals are "
        "over clips. "
        f"{table['questions']} questions about {table['clips']} clips. "
        f"Best answerer that only sees: {table['best_by_sight']:.3f}; GRPO, muted, beside it: "
        f"{table['stages'][AFTER]['muted_above_sight'].in_words(signed=True)}.",
        f"GRPO - early SFT, which both start from: {table['learned'].in_words(signed=True)}.",
        f"At least {LEAST_GAIN} above SFT continued, intervals apart: {'yes' if table['grpo_wins'] else 'no'}. "
        f"Muted at most {ABOVE_SIGHT} above sight: {'yes' if table['muted_is_sight_at_most'] else 'no'}.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", type=Path, required=True, help="output folder of recipes/run_stages.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    parser.add_argument("--score", choices=sorted(SIGHT), default="accuracy", help="score of the task to compare by")
    args = parser.parse_args(argv)
    with parser.refusing():
        table = compare(args.stages, args.score)
    write_result(
        args.output_dir,
        system=SYSTEMS[args.score],
        size=size(table),
        figures=figures(table),
        numbers=table,
        table=markdown(table),
    )
    print((args.output_dir / TABLE_FILE).read_text())


if __name__ == "__main__":
    main()
