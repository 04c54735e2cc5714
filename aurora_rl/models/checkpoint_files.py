"""Checks of a checkpoint's files: they must be plain files, readable, and hold all weights in the right shapes.

transformers initialises missing weights at random and only logs it: a model would answer from random weights.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.files.fingerprint import fingerprint_content, fingerprint_values
from aurora_rl.files.plain import check_plain_file, parse_json, read_text_file
from aurora_rl.models.hub import check_hub

INDEX_SUFFIX = ".safetensors.index.json"
NUM_SHOWN = 3  # weights named in a message
REMEDY = "the save was cut short, or the file is another model's: take the checkpoint from where it is whole"


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the text names the checkpoint and the problem."""


def check_checkpoint_files(name_or_path: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds anything but plain files, before a file is read, and a name on the hub out of reach.

    Raises:
        HubError: if it is no folder, the hub cannot be reached and the cache does not hold it.
        NotPlainFileError: naming the file.
        CheckpointError: if an index names a shard of weights outside the folder.
    """
    if not os.path.isdir(name_or_path):
        check_hub(os.fspath(name_or_path))
        return
    for path in sorted(Path(name_or_path).iterdir()):
        if not path.is_dir() and path.exists():
            check_plain_file(path)
        if path.name.endswith(INDEX_SUFFIX):
            shards = _read_object(path).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise CheckpointError(f"{path} has no weight_map from weights to files: {REMEDY}")
            for shard in set(shards.values()):
                if os.path.basename(shard) != shard:
                    raise CheckpointError(f"{path} names {shard!r}, which is not in its folder: {REMEDY}")


def read_adapter_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of an adapter_config.json, which name the base model.

    Raises:
        CheckpointError: if it is damaged or does not name the base model.
        NotPlainFileError: if it is no plain file.
    """
    fields = _read_object(Path(path))
    if not isinstance(fields.get("base_model_name_or_path"), str):
        raise CheckpointError(f"{path} names no base_model_name_or_path: add the model that the adapter was trained on")
    return fields


def fingerprint_checkpoint(name_or_path: str) -> str:
    """Hash a checkpoint's weights and configs, with an adapter also those of its base model.

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
    """Turn errors of transformers and PEFT about missing, misshapen or damaged weights into a `CheckpointError`."""
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
        # PEFT's message names a weight as in memory; the file has no ".modules_to_save.default" in the name.
        names = [re.sub(r"(\.modules_to_save)?\.default(?=\.)", "", name) for name, _ in misshapen]
        shapes = [
            f"{name} in another shape ({what.rstrip('.')})" for name, (_, what) in zip(names, misshapen, strict=True)
        ]
        raise CheckpointError(f"{name_or_path} holds the weight {_some(shapes)}: {REMEDY}") from error


def check_model_is_whole(name_or_path: str, loading: Mapping[str, Any], *, new_parts: Sequence[str]) -> None:
    """Refuse a model if its checkpoint lacks weights or holds them in other shapes.

    Args:
        name_or_path: the checkpoint.
        loading: result of `from_pretrained` with `output_loading_info` and `ignore_mismatched_sizes`.
        new_parts: names of the modules that start from random weights.

    Raises:
        CheckpointError: naming the weights.
    """
    missing = [name for name in loading["missing_keys"] if name.split(".")[0] not in new_parts]
    if missing:
        raise CheckpointError(f"{name_or_path} lacks the weight {_some(missing)}: {REMEDY}")
    misshapen = [
        f"{name} of shape {tuple(found)}, expected {tuple(expected)}"
        for name, found, expected in loading["mismatched_keys"]
    ]
    if misshapen:
        raise CheckpointError(f"{name_or_path} holds the weight {_some(misshapen)}: {REMEDY}")


def check_adapter_is_whole(name_or_path: str, weights: str | os.PathLike[str], model: PeftModel) -> None:
    """Refuse an adapter if its file lacks weights; PEFT itself checks saved modules only.

    Args:
        name_or_path: the adapter.
        weights: its safetensors file.
        model: the model with the loaded adapter.

    Raises:
        CheckpointError: naming the weights.
    """
    with safe_open(weights, framework="pt") as file:
        found = set(file.keys())
    expected = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    if missing := expected.keys() - found:
        raise CheckpointError(f"{name_or_path} lacks the weight {_some(missing)}: {REMEDY}")


@contextlib.contextmanager
def trained_weights_are_loaded(name_or_path: str, model: nn.Module) -> Iterator[None]:
    """Make `load_state_dict` of a model refuse a state without all trained weights, while the block runs.

    DeepSpeed loads PEFT's models without asking, because their frozen weights are not in its file.

    Raises:
        CheckpointError: from `load_state_dict`, naming the weights.
    """

    def refuse_missing(model: nn.Module, incompatible: Any) -> None:
        trained = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
        if missing := trained.intersection(incompatible.missing_keys):
            raise CheckpointError(f"{name_or_path} lacks the weight {_some(missing)}: {REMEDY}")

    hook = model.register_load_state_dict_post_hook(refuse_missing)
    try:
        with named_weights(name_or_path):
            yield
    finally:
        hook.remove()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = parse_json(read_text_file(path))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {REMEDY}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no JSON object: {REMEDY}")
    return fields


def _some(names: Any) -> str:
    names = sorted(names)
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return f"{', '.join(names[:NUM_SHOWN])}{more}"
