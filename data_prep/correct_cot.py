"""Correct a model's wrong reasoning: the reflective set, from mistakes that `collect_mistakes.py` found.

The body, with its documentation, is `aurora_rl/scripts/correct_cot.py`.
"""

import sys

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/correct_cot.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.correct_cot import main

    sys.exit(main())
