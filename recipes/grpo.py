"""Stage 3: GRPO with mask rewards.

The body, with its documentation, is `aurora_rl/scripts/grpo.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("recipes/grpo.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.grpo import run

    run()
