"""Compute the distillation's teacher features before training, so that several runs can share them.

The body, with its documentation, is `aurora_rl/scripts/teacher_features.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/teacher_features.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.teacher_features import run

    run()
