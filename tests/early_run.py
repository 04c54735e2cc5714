"""Runs command lines one after the other in one fresh interpreter, and tells what each said and which libraries came.

    python tests/early_run.py < commands.json

A command is a list of words: `aurora-rl` or a script of the checkout, then its arguments. One that goes past its checks
would import torch, here an error.
"""

import contextlib
import importlib.abc
import io
import json
import runpy
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Imports that take seconds.
SLOW = ("torch", "transformers", "datasets", "trl", "accelerate", "peft", "gradio", "pyarrow")


class RefuseSlow(importlib.abc.MetaPathFinder):
    """Makes an import of a slow library an error that names it."""

    def find_spec(self, name, path=None, target=None):
        if name in SLOW and sys._getframe(2).f_code.co_name != "find_spec":
            raise AssertionError(f"{name} is imported before the arguments were checked")
        return None


def run(words: list[str]) -> dict[str, object]:
    program, *arguments = words
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = start(program, arguments)
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = None
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def start(program: str, arguments: list[str]) -> int:
    if program == "aurora-rl":
        from aurora_rl.cli import main

        return main(arguments)
    sys.argv = [program, *arguments]
    runpy.run_path(str(ROOT / program), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.meta_path.insert(0, RefuseSlow())
    results = [run(words) for words in json.load(sys.stdin)]
    assert not set(SLOW) & set(sys.modules)
    print(json.dumps(results))
