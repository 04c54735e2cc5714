"""Ask a model about every training row several times and count how often it is right, the source of a curriculum.

The body, with its documentation, is `aurora_rl/scripts/pass_rates.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/pass_rates.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.pass_rates import run

    run()
