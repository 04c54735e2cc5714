"""Make a tool table whose frozen reasoner is a model at any OpenAI-compatible endpoint.

The body, with its documentation, is `aurora_rl/scripts/tool_table_by_endpoint.py`.
"""

import sys

from aurora_rl.assembly.early import check_command_line

if __name__ == "__main__":
    check_command_line("data_prep/tool_table_by_endpoint.py")  # before the import of torch, which takes seconds
    from aurora_rl.scripts.tool_table_by_endpoint import main

    sys.exit(main())
