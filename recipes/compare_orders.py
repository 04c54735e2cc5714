"""Compare curricula: accuracy after equally many steps, and dead groups, foretold by pass rates and counted.

The body, with its documentation, is `aurora_rl/scripts/compare_orders.py`.
"""

from aurora_rl.scripts.compare_orders import main

if __name__ == "__main__":
    main()
