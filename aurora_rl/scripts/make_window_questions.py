"""Write questions of which half need a tool: a sound's loudness in a window, and a colour that is seen.

    python data_prep/make_window_questions.py --output_dir data/calls

See `synthetic.window_questions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aurora_rl.assembly.options import OptionParser
from aurora_rl.files.existing import check_writable_folder
from aurora_rl.logs import setup_logging
from aurora_rl.synthetic.window_questions import write_window_questions


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, and write clips and questions."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that all is written to")
    parser.add_argument("--sft", type=int, default=3200, help="number of questions with calls to imitate, even")
    parser.add_argument("--train", type=int, default=1600, help="number of questions for rollouts, even")
    parser.add_argument("--test", type=int, default=300, help="number of held-out questions, even")
    parser.add_argument("--seed", type=int, default=0, help="seed of pictures, sounds and questions")
    args = parser.parse_args(argv)
    setup_logging()
    try:
        check_writable_folder(args.output_dir, name="--output_dir")
        write_window_questions(args.output_dir, sft=args.sft, train=args.train, test=args.test, seed=args.seed)
    except ValueError as error:
        parser.error(str(error))
