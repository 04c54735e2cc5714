"""The settings that an output was begun with, kept beside it, so that no run resumes it with others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aurora_rl.files.atomic import write_whole
from aurora_rl.files.plain import parse_json, read_text_file


def check_settings(file: Path, settings: Mapping[str, Any], *, of: Path, is_empty: bool = False) -> None:
    """Write the settings of a new output, or check that they are those that it was begun with.

    Args:
        file: JSON file that holds them.
        settings: settings that change what is in the output, in JSON's types.
        of: the output, for the error.
        is_empty: whether nothing is in the output, so that it may be begun with any settings.

    Raises:
        ValueError: if it was begun with other settings, which the error names.
    """
    if is_empty or not file.exists():
        write_whole(file, json.dumps(settings, indent=2))
    elif (found := parse_json(read_text_file(file))) != settings:
        differing = [name for name in {**settings, **found} if found.get(name) != settings.get(name)]
        raise ValueError(f"{of} was begun with other {differing}: delete it, or choose another `output`")
