"""Write questions about sounds, and the table of what a reasoner answers with every set of three tools.

The body, with its documentation, is `aurora_rl/scripts/make_tool_questions.py`.
"""

from aurora_rl.scripts.make_tool_questions import main

if __name__ == "__main__":
    main()
