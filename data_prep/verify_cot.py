"""Check chains of thought: repair faults of form, drop wrong chains, and count both.

The body, with its documentation, is `aurora_rl/scripts/verify_cot.py`.
"""

from aurora_rl.scripts.verify_cot import main

if __name__ == "__main__":
    main()
