"""Write the synthetic Ref-AVS benchmark: moving, sounding shapes in Ref-AVSBench's layout.

The body, with its documentation, is `aurora_rl/scripts/make_synthetic.py`.
"""

from aurora_rl.scripts.make_synthetic import main

if __name__ == "__main__":
    main()
