"""Score a model on a benchmark's splits, and under ablations.

The body, with its documentation, is `aurora_rl/scripts/evaluate.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("recipes/evaluate.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.evaluate import run

    run()
