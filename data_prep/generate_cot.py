"""Write chains of thought for a benchmark's rows with a stronger model, at any OpenAI-compatible endpoint.

The body, with its documentation, is `aurora_rl/scripts/generate_cot.py`.
"""

import sys

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/generate_cot.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.generate_cot import main

    sys.exit(main())
