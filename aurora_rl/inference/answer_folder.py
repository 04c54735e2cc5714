"""The folder that `aurora-rl segment` writes into, checked before the model is loaded; `answer_files` fills it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aurora_rl.files.existing import check_writable_folder

#: What an answer consists of, see `answer_files`.
FILES = ("answer.json", "chain.txt", "masks", "masks.json", "overlay.mp4")


def check_answer_folder(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Check that an answer can be written into a folder; nothing is made.

    Args:
        folder: where the answer goes.
        overwrite: whether an earlier answer may go.
        inputs: files that are read.

    Raises:
        FileExistsError: if the folder holds an answer and must not be overwritten.
        ValueError: if a file that is to be read would be replaced, or the folder cannot be written.
    """
    check_writable_folder(folder, name="--output_dir")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} holds {', '.join(there)} of an earlier run: give another folder or --overwrite"
        )
    replaced = {(folder / name).resolve() for name in FILES}
    for path in inputs:
        if replaced & {path.resolve(), *path.resolve().parents}:
            raise ValueError(f"{path} would be read and replaced in one run: give another folder than {folder}")
