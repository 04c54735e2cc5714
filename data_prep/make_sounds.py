"""Write sounds without pictures, in AVQA's form: one, two or three things sound at a time under noise.

The body, with its documentation, is `aurora_rl/scripts/make_sounds.py`.
"""

from aurora_rl.scripts.make_sounds import main

if __name__ == "__main__":
    main()
