"""Count what the rules of benchmarks take for right on a benchmark's own questions, whatever a model may say.

python recipes/count_matchers.py --mmau tests/data/mmau_test_mini.json.xz --output_dir outputs/matchers
python recipes/count_matchers.py --mmau mmau-test-mini.json --mmar MMAR-meta.jsonl --output_dir outputs/matchers

It writes table.md and result.json. MMAU's and MMAR's scripts have one rule.
"""

import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path

from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import TABLE_FILE, Figure, write_result
from aurora_rl.files.plain import check_plain_file, parse_json
from aurora_rl.tasks.matchers import MATCHERS, count_right

#: Counts of the official rule on the authors' files, by the benchmark's name; what is not known is left out.
EXPECTED: Mapping[str, Mapping[str, int]] = {
    "mmau_mini": {"bare_letter": 2, "letter_and_text": 967, "the_answer_is": 907, "wrong_choice_right": 9},
    "mmar": {"bare_letter": 0, "the_answer_is": 910, "wrong_choice_right": 20},
}
SAID = {
    "bare_letter": "the right option's letter",
    "letter_and_text": '"(B) text" of the right option',
    "the_answer_is": '"The answer is <right text>"',
    "wrong_choice_right": "questions in which a wrong option's text counts as right",
}

#: Options of a question, and the index of the right one.
Question = tuple[list[str], int]


def read_questions(path: Path) -> list[Question]:
    """Read a benchmark's questions: a JSON list or JSON lines with `choices` and `answer`, packed by xz or not.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged or empty, a row lacks them, or its answer is none of its choices.
    """
    check_plain_file(path)
    try:
        text = (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()).decode()
        lines = (line for line in text.split("\n") if line.strip())
        rows = parse_json(text) if text.lstrip().startswith("[") else list(map(parse_json, lines))
    except (lzma.LZMAError, ValueError) as error:
        raise ValueError(
            f"cannot read {path}: {error}; expected a JSON list or JSON lines, packed by xz or not"
        ) from error
    if not rows:
        raise ValueError(f"{path} holds no question: expected a JSON list or JSON lines")
    questions = []
    for number, row in enumerate(rows):
        choices = row.get("choices") if isinstance(row, dict) else None
        if not isinstance(choices, list) or row.get("answer") not in choices:
            raise ValueError(
                f"{path}, row {number}: expected `choices` and an `answer` among them, not {str(row)[:120]}"
            )
        questions.append((row["choices"], row["choices"].index(row["answer"])))
    return questions


def count(name: str, questions: Sequence[Question]) -> tuple[dict[str, dict[str, int]], list[Figure]]:
    """Count by every rule, and compare the official one with what was found on the authors' file."""
    by_rule = {rule: count_right(match, questions) for rule, match in MATCHERS.items()}
    found = by_rule["mmau"]
    figures = [
        Figure(f"{name}, official rule: {SAID[kind]}", found[kind], f"{expected:,}", found[kind] == expected)
        for kind, expected in EXPECTED[name].items()
    ]
    return by_rule, figures


def markdown(by_rule: Mapping[str, Mapping[str, int]], title: str) -> str:
    """Write the counts of all rules as a Markdown table."""
    lines = [f"| {title} | " + " | ".join(by_rule) + " |", "|" + "---|" * (len(by_rule) + 1)]
    lines += [f"| {SAID[kind]} | " + " | ".join(f"{of[kind]:,}" for of in by_rule.values()) + " |" for kind in SAID]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--mmau", type=Path, required=True, help="MMAU's mmau-test-mini.json, packed by xz or not")
    parser.add_argument("--mmar", type=Path, help="MMAR's MMAR-meta.jsonl, which does not come with this package")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    args = parser.parse_args(argv)
    files = {name: path for name, path in (("mmau_mini", args.mmau), ("mmar", args.mmar)) if path is not None}
    with parser.refusing():
        questions = {name: read_questions(path) for name, path in files.items()}
    counted = {name: count(name, of_file) for name, of_file in questions.items()}
    official = {name: by_rule["mmau"] for name, (by_rule, _) in counted.items()}
    write_result(
        args.output_dir,
        system="matchers",
        size=", ".join(f"{len(of_file):,} questions of {name}" for name, of_file in questions.items()),
        figures=[figure for _, figures in counted.values() for figure in figures],
        numbers={**official, "by_rule": {name: by_rule for name, (by_rule, _) in counted.items()}},
        table="\n\n".join(markdown(by_rule, f"said, {name}") for name, (by_rule, _) in counted.items()),
    )
    print((args.output_dir / TABLE_FILE).read_text())


if __name__ == "__main__":
    main()
