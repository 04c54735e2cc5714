"""Write questions about sounds, and the table of what a reasoner answers with every set of three tools.

    python data_prep/make_tool_questions.py --output_dir data/tools

Sounds are measured by two real tools, a third one lies, and the reasoner follows a rule, see
`synthetic.tool_questions`. The table, of both splits, is in `<output_dir>/table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aurora_rl.assembly.options import OptionParser
from aurora_rl.data.question_tables import load_question_table
from aurora_rl.data.tool_table import TABLE_FILE
from aurora_rl.files.existing import check_writable_folder
from aurora_rl.logs import setup_logging
from aurora_rl.scripts.tool_table import TableRows, answer_in_python
from aurora_rl.synthetic.tool_questions import reasoner, write_tool_questions
from aurora_rl.tasks.multiple_choice import ChoiceInWords
from aurora_rl.tools.sound import load_tools

TOOLS = ("tempo", "pitch", "aurora_rl.synthetic.tool_questions:assistant")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, and write sounds, questions and table."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that all is written to")
    parser.add_argument("--train", type=int, default=96, help="number of questions to train on, a multiple of four")
    parser.add_argument("--test", type=int, default=48, help="number of held-out questions, a multiple of four")
    parser.add_argument("--seed", type=int, default=0, help="seed of sounds, wordings and the order of options")
    args = parser.parse_args(argv)
    setup_logging()
    try:
        check_writable_folder(args.output_dir, name="--output_dir")
        write_tool_questions(args.output_dir, train=args.train, test=args.test, seed=args.seed)
    except ValueError as error:
        parser.error(str(error))
    samples = [row for split in ("train", "test") for row in load_question_table("avqa", args.output_dir, split)]
    rows = TableRows(load_tools(TOOLS))
    table = args.output_dir / "table"
    table.mkdir(exist_ok=True)
    rows.write(table / TABLE_FILE, answer_in_python(rows, samples, reasoner, ChoiceInWords()))
