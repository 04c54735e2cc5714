"""What TRL's constructor is shown instead of the run's own choices, and is not to act on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel

from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.router_loss import router_loss_of_recipe


@contextlib.contextmanager
def as_trl_expects(
    model: PreTrainedModel, args: AuroraGRPOConfig, encode: SampleEncoder, *, has_copy: bool
) -> Iterator[None]:
    """Hide from TRL's constructor what it would do otherwise than we, while the block runs.

    It would build an engine for images only, and a reference of a class that it does not know.

    Args:
        model: the policy.
        args: the configuration, which is given back as it was.
        encode: the run's encoder.
        has_copy: whether the reference is a copy that the trainer makes itself.
    """
    without_reference = {"beta": 0.0, "sync_ref_model": False} if has_copy else {}
    hidden = args.changed(use_vllm=False, **without_reference)
    with hidden, router_loss_of_recipe(model), _naming_an_image_token(model, encode):
        yield


@contextlib.contextmanager
def _naming_an_image_token(model: PreTrainedModel, encode: SampleEncoder) -> Iterator[None]:
    """Give the model's config the `image_token_id` that TRL's constructor suppresses, if the model sees nothing.

    A token that the head suppresses anyway takes its place while the block runs.
    """
    if hasattr(model.config, "image_token_id"):
        yield
        return
    model.config.image_token_id = encode.family.suppressed_token_ids(encode.processor, model.config)[0]
    try:
        yield
    finally:
        del model.config.image_token_id
