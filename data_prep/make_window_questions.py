"""Write questions of which half need a tool: a sound's loudness in a window, and a colour that is seen.

The body, with its documentation, is `aurora_rl/scripts/make_window_questions.py`.
"""

from aurora_rl.scripts.make_window_questions import main

if __name__ == "__main__":
    main()
