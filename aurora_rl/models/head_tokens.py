"""The place of `[SEG]` in a sequence, and the tokens that a completion may never hold."""

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


def ensure_seg_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int:
    """Add `[SEG]` to the tokenizer, unless it is there, and return its id.

    It is added as an ordinary token: completions are decoded with `skip_special_tokens=True`, and a special `[SEG]`
    would vanish from the text that rewards read.

    Args:
        tokenizer: the tokenizer, which is changed in place.
        vocab_size: rows of the model's embedding matrix, padding included.

    Raises:
        ValueError: if the id lies outside the embedding matrix, which is never resized because vLLM would not load
            it, or if the tokenizer has `[SEG]` as a special token.
    """
    if SEG_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(SEG_TOKEN, special=False, normalized=False)])
    seg_token_id = tokenizer.convert_tokens_to_ids(SEG_TOKEN)
    if SEG_TOKEN not in tokenizer.decode([seg_token_id], skip_special_tokens=True):
        raise ValueError(f"{SEG_TOKEN} is a special token of this tokenizer: it would be skipped when decoding")
    if seg_token_id >= vocab_size:
        raise ValueError(
            f"{SEG_TOKEN} got id {seg_token_id}, but the embedding matrix has {vocab_size} rows: use a checkpoint "
            "whose vocabulary is padded"
        )
    return seg_token_id


@torch.no_grad()
def init_seg_embedding(model: PreTrainedModel, seg_token_id: int, *, num_tokens: int) -> None:
    """Initialise `[SEG]` with the mean of the first `num_tokens` rows; a padding row may be all zeros."""
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


def find_seg(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, seg_token_id: int, *, num_completion_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the last `[SEG]` among the completion tokens of each row.

    A row without `[SEG]` gets the position of its last real token, so that every rank runs the same modules; the
    caller weights its masks by 0.

    Args:
        input_ids: (B, L) prompt, left-padded, then completion, right-padded.
        attention_mask: (B, L), 0 for padding.
        seg_token_id: id of `[SEG]`.
        num_completion_tokens: number of last positions that are completion; a `[SEG]` in the prompt is no answer.

    Returns:
        seg_index (B,) long, has_seg (B,) bool.
    """
    positions = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
    real = attention_mask.bool()
    hit = (input_ids == seg_token_id) & real & (positions >= input_ids.size(1) - num_completion_tokens)
    has_seg = hit.any(1)
    last_seg = (positions * hit).amax(1)
    last_real = (positions * real).amax(1)
    return torch.where(has_seg, last_seg, last_real), has_seg
