"""Segment a benchmark's references by agents and a segmenter of noun phrases.

The body, with its documentation, is `aurora_rl/scripts/agents.py`.
"""

import sys

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("recipes/agents.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.agents import main

    sys.exit(main())
