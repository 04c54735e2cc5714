"""The place of a head's token in a sequence, and the tokens that a completion may never hold."""

from __future__ import annotations

import torch
from tokenizers import AddedToken
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from aurora_rl.models.sharding import gathered
from aurora_rl.tasks.prompts import SEG_TOKEN

# So far below every real logit that no probability is left, and still finite in bf16.
SUPPRESSED_LOGIT = -1e4


def ensure_head_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int, token: str = SEG_TOKEN) -> int:
    """Add a head's token to the tokenizer, unless it is there, and return its id.

    It is added as an ordinary token: completions are decoded with `skip_special_tokens=True`, and a special `[SEG]`
    would vanish from the text that rewards read.

    Args:
        tokenizer: the tokenizer, which is changed in place.
        vocab_size: rows of the model's embedding matrix, padding included.
        token: the token.

    Raises:
        ValueError: if the id lies outside the embedding matrix, which is never resized because vLLM would not load
            it, or if the tokenizer has the token as a special one.
    """
    if token not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    token_id = head_token_id(tokenizer, token)
    if token not in tokenizer.decode([token_id], skip_special_tokens=True):
        raise ValueError(f"{token} is a special token of this tokenizer: it would be skipped when decoding")
    if token_id >= vocab_size:
        raise ValueError(
            f"{token} got id {token_id}, but the embedding matrix has {vocab_size} rows: use a checkpoint "
            "whose vocabulary is padded"
        )
    return token_id


def head_token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a head's token.

    Raises:
        ValueError: if the tokenizer has no such token.
    """
    if token not in tokenizer.get_vocab():
        raise ValueError(f"the tokenizer has no token {token}: load the model with the head that it belongs to")
    return int(tokenizer.convert_tokens_to_ids(token))


@torch.no_grad()
def init_seg_embedding(model: PreTrainedModel, seg_token_id: int, *, num_tokens: int) -> None:
    """Initialise a token with the mean of the first `num_tokens` rows; a padding row may be all zeros."""
    layers = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    with gathered(layers.values()):
        for weight in layers.values():
            weight[seg_token_id] = weight[:num_tokens].float().mean(0).to(weight.dtype)


class SuppressingHead(nn.Linear):
    """An `lm_head` that adds a constant to its logits; `suppress_tokens` makes one of a plain head."""

    suppressed_logits: torch.Tensor

    @property
    def bias(self) -> torch.Tensor:  # type: ignore[override]
        """(V,) 0, or `SUPPRESSED_LOGIT` where a token is suppressed, in the dtype that the weight has by now."""
        suppressed_logits = self.suppressed_logits.to(self.weight.dtype)  # DeepSpeed casts weights, but not buffers
        if is_deepspeed_zero3_enabled():
            # TRL's fused head asks every weight that it reads whether it has to be gathered.
            from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

            setattr(suppressed_logits, "ds_status", ZeroParamStatus.AVAILABLE)  # noqa: B010
        if isinstance(self.weight, DTensor):
            # Sharded by FSDP2, which leaves buffers as they are; TRL's fused head gathers both or none.
            mesh = self.weight.device_mesh
            return DTensor.from_local(suppressed_logits, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return suppressed_logits


def suppress_tokens(lm_head: nn.Linear, token_ids: list[int]) -> None:
    """Give `token_ids` no probability anywhere: sampling, log-probabilities, entropy and KL all see the same logits.

    The head's bias does this; it is a buffer that is neither trained nor saved nor synced to vLLM. A sampled
    `<|audio_bos|>` would crash the next forward pass, since no audio goes with it.

    Raises:
        ValueError: if the head has a trained bias.
    """
    if isinstance(getattr(lm_head, "bias", None), nn.Parameter):
        raise ValueError("lm_head has a bias of its own: suppressing tokens through it is not supported")
    logits = torch.zeros(lm_head.out_features, device=lm_head.weight.device, dtype=lm_head.weight.dtype)
    logits[token_ids] = SUPPRESSED_LOGIT
    lm_head._parameters.pop("bias", None)
    lm_head.register_buffer("suppressed_logits", logits, persistent=False)
    lm_head.__class__ = SuppressingHead


def find_last_token(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, token_id: int, *, num_completion_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the last token of a head among the completion tokens of each row.

    A row without the token gets the position of its last real token, so that every rank runs the same modules; the
    caller weights its prediction by 0.

    Args:
        input_ids: (B, L) prompt, left-padded, then completion, right-padded.
        attention_mask: (B, L), 0 for padding.
        token_id: id of the head's token, such as `[SEG]`.
        num_completion_tokens: number of last positions that are completion; a token in the prompt is no answer.

    Returns:
        index (B,) long, is_there (B,) bool.
    """
    positions = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
    real = attention_mask.bool()
    hit = (input_ids == token_id) & real & (positions >= input_ids.size(1) - num_completion_tokens)
    is_there = hit.any(1)
    last_hit = (positions * hit).amax(1)
    last_real = (positions * real).amax(1)
    return torch.where(is_there, last_hit, last_real), is_there
