"""Write report.html and results.json of a training, from the files of its evaluations and trainings.

The body, with its documentation, is `aurora_rl/scripts/report.py`.
"""

from aurora_rl.scripts.report import run

if __name__ == "__main__":
    run()
