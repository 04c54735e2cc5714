"""Whether a checkpoint's files are what they should be: plain files, readable, and all the weights in their shapes.

transformers draws anew what a checkpoint lacks and says so in a log line: a model would answer from random weights.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.files.fingerprint import fingerprint_content, fingerprint_values
from aurora_rl.files.plain import check_plain_file, parse_json, read_text_file

INDEX_SUFFIX = ".safetensors.index.json"
NUM_SHOWN = 3  # weights that a message names
REMEDY = "the save was cut short, or the file is another model's: take the checkpoint from where it is whole"


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it is; the text names it and what is wrong."""


def check_checkpoint_files(name_or_path: str | os.PathLike[str]) -> None:
    """Refuse a folder in which something is no plain file, before anything is read; a name on the hub passes.

    Raises:
        NotPlainFileError: naming the file.
        CheckpointError: if an index names a shard of weights outside the folder.
    """
    if not os.path.isdir(name_or_path):
        return
    for path in sorted(Path(name_or_path).iterdir()):
        if not path.is_dir() and path.exists():
            check_plain_file(path)
        if path.name.endswith(INDEX_SUFFIX):
            _check_index(path)


def read_adapter_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of an adapter_config.json, among which is the model beneath.

    Raises:
        CheckpointError: if it is damaged or does not name that model.
        NotPlainFileError: if it is no plain file.
    """
    fields = _read_object(Path(path))
    if not isinstance(fields.get("base_model_name_or_path"), str):
        raise CheckpointError(f"{path} names no base_model_name_or_path: add the model that the adapter was trained on")
    return fields


def fingerprint_checkpoint(name_or_path: str) -> str:
    """Hash of a checkpoint's weights and configs, those of the model beneath an adapter included.

    Raises:
        OSError: if there is no such checkpoint.
    """
    check_checkpoint_files(name_or_path)
    adapter = find_adapter_config_file(name_or_path)
    config_file = Path(adapter or cached_file(name_or_path, "config.json"))
    files = sorted([config_file, *config_file.parent.glob("*.safetensors")])
    parts = [[file.name, fingerprint_content(file)] for file in files]
    if adapter:
        parts.append(["base", fingerprint_checkpoint(read_adapter_config(config_file)["base_model_name_or_path"])])
    return fingerprint_values(parts)


@contextlib.contextmanager
def named_weights(name_or_path: str) -> Iterator[None]:
    """What transformers and PEFT say of weights that are missing, misshapen or damaged becomes a `CheckpointError`."""
    try:
        yield
    except KeyError as error:
        if not str(error.args[0]).startswith("base_model."):  # PEFT's name of a weight in modules_to_save
            raise
        raise CheckpointError(f"{name_or_path} lacks the weight {error.args[0]}: {REMEDY}") from error
    except SafetensorError as error:
        raise CheckpointError(f"a file of weights in {name_or_path} is damaged ({error}): {REMEDY}") from error
    except RuntimeError as error:
        misshapen = re.findall(r"size mismatch for (\S+): (.*)", str(error))
        if not misshapen:
            raise
        shapes = [f"{_as_saved(name)} in another shape ({what.rstrip('.')})" for name, what in misshapen]
        raise CheckpointError(f"{name_or_path} holds the weight {_some(shapes)}: {REMEDY}") from error


def check_model_is_whole(name_or_path: str, loading: Mapping[str, Any], *, new_part: str | None) -> None:
    """Refuse a model some of whose weights its checkpoint lacks, or holds in other shapes.

    Args:
        name_or_path: the checkpoint.
        loading: what `from_pretrained` gives with `output_loading_info` and `ignore_mismatched_sizes`.
        new_part: the module that is to be drawn anew; None where none is.

    Raises:
        CheckpointError: naming the weights.
    """
    missing = [name for name in loading["missing_keys"] if new_part is None or not name.startswith(f"{new_part}.")]
    if missing:
        raise CheckpointError(f"{name_or_path} lacks the weight {_some(missing)}: {REMEDY}")
    misshapen = [
        f"{name} of shape {tuple(found)}, expected {tuple(expected)}"
        for name, found, expected in loading["mismatched_keys"]
    ]
    if misshapen:
        raise CheckpointError(f"{name_or_path} holds the weight {_some(misshapen)}: {REMEDY}")


def check_adapter_is_whole(name_or_path: str, weights: str | os.PathLike[str], model: PeftModel) -> None:
    """Refuse an adapter some of whose weights its file lacks; PEFT itself asks for saved modules alone.

    Args:
        name_or_path: the adapter.
        weights: its safetensors file.
        model: the model that it has been loaded into.

    Raises:
        CheckpointError: naming the weights.
    """
    with safe_open(weights, framework="pt") as file:
        found = set(file.keys())
    expected = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    if missing := expected.keys() - found:
        raise CheckpointError(f"{name_or_path} lacks the weight {_some(missing)}: {REMEDY}")


def _check_index(path: Path) -> None:
    shards = _read_object(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{path} has no weight_map from weights to files: {REMEDY}")
    for shard in set(shards.values()):
        if os.path.basename(shard) != shard:
            raise CheckpointError(f"{path} names {shard!r}, which is not in its folder: {REMEDY}")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = parse_json(read_text_file(path))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {REMEDY}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no JSON object: {REMEDY}")
    return fields


def _as_saved(name: str) -> str:
    """PEFT's name of a weight in memory -> in its file, as PEFT's message about a missing one has it."""
    return re.sub(r"(\.modules_to_save)?\.default(?=\.)", "", name)


def _some(names: Any) -> str:
    names = sorted(names)
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return f"{', '.join(names[:NUM_SHOWN])}{more}"
