"""Run the stages of a file: a complete stage is checked and skipped, an interrupted one is resumed.

The body, with its documentation, is `aurora_rl/scripts/run_stages.py`.
"""

import sys

from aurora_rl.scripts.run_stages import main

if __name__ == "__main__":
    sys.exit(main())
