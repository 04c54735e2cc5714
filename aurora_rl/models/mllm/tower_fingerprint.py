"""A hash of everything that a model's towers compute by, beside the clip: weights, configs and the code's version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from aurora_rl.files.fingerprint import fingerprint_values
from aurora_rl.models.mllm.sharing import TowerSharingMixin
from aurora_rl.models.sharding import gathered
from aurora_rl.models.tensor_digest import tensor_digest

#: Fields of a config that say nothing about what is computed, or that a saved model has and a fresh one has not.
NOT_COMPUTED_BY = ("architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")


def towers_fingerprint(model: TowerSharingMixin) -> str:
    """Return a hash of a model's towers in 64 hexadecimal digits; all processes must call it.

    A model that was trained with frozen towers has that of the model which it started from. Another version of
    transformers, whose towers may compute otherwise, gives another hash.
    """
    configs = [[name, _fields(part.config)] for name, part in _towers(model)]
    facts = [type(model).__name__, transformers.__version__, configs]
    return fingerprint_values([repr(facts), tensor_digest(_weights(model))])


def _towers(model: TowerSharingMixin) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield the towers that are models of their own, without what holds the language model too."""
    decoder = model.get_decoder()
    for name, part in model.tower_modules():
        if isinstance(part, PreTrainedModel) and all(inner is not decoder for inner in part.modules()):
            yield name, part


def _fields(config: Any) -> list[tuple[str, str]]:
    fields = config.to_dict().items()
    return sorted((k, repr(v)) for k, v in fields if not k.startswith("_") and k not in NOT_COMPUTED_BY)


def _weights(model: TowerSharingMixin) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights and the buffers that are saved with them; one by one, since ZeRO-3 gathers each."""
    for name, part in model.tower_modules():
        for own, weight in part.named_parameters(recurse=False):
            with gathered([weight]):
                yield f"{name}.{own}", weight
        yield from ((f"{name}.{own}", buffer) for own, buffer in _saved_buffers(part))


def _saved_buffers(part: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    transient = part._non_persistent_buffers_set
    return ((name, buffer) for name, buffer in part.named_buffers(recurse=False) if name not in transient)
