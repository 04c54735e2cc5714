"""Supervised fine-tuning: the teacher (stage 0), chains of thought (stage 1), reflective training (stage 2).

The body, with its documentation, is `aurora_rl/scripts/sft.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("recipes/sft.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.sft import run

    run()
