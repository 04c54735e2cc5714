"""Ask a frozen reasoner about every row with the words of every set of tools: the table that tool choosers learn from.

The body, with its documentation, is `aurora_rl/scripts/tool_table.py`.
"""

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/tool_table.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.tool_table import run

    run()
