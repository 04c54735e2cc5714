"""Does the model listen? Compare GRPO with and without rewards for it, and SFT that continues, over several seeds.

The body, with its documentation, is `aurora_rl/scripts/compare_listening.py`.
"""

from aurora_rl.scripts.compare_listening import main

if __name__ == "__main__":
    main()
