"""Stage 0 of the demo: a random Qwen2.5-Omni of about 0.47 M weights, with a vocabulary of the benchmark's texts.

The body, with its documentation, is `aurora_rl/scripts/init_tiny.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("recipes/init_tiny.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.init_tiny import run

    run()
