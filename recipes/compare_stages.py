"""Compare all stages over several seeds: a table of each stage's scores, and of the gain by each stage.

The body, with its documentation, is `aurora_rl/scripts/compare_stages.py`.
"""

from aurora_rl.scripts.compare_stages import main

if __name__ == "__main__":
    main()
