"""Ask a stage-1 model about every training row and keep its mistakes, the source of reflective training.

The body, with its documentation, is `aurora_rl/scripts/collect_mistakes.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/collect_mistakes.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.collect_mistakes import run

    run()
