"""The place of a head's token in a sequence, and the tokens that a completion may never hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from aurora_rl.models.sharding import gathered
from aurora_rl.tasks.prompts import SEG_TOKEN

# So far below every real logit that no probability is left, and still finite in bf16.
SUPPRESSED_LOGIT = -1e4
#: Name of a token that a vocabulary without padding keeps in reserve, as all of Gemma's do.
RESERVED_TOKEN = re.compile(r"<unused(\d+)>")


def ensure_head_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int, token: str = SEG_TOKEN) -> int:
    """Add a head's token to the tokenizer, unless it is there, and return its id.

    It is added as an ordinary token: completions are decoded with `skip_special_tokens=True`, and a special `[SEG]`
    would vanish from the text that rewards read. Where the embedding matrix has no free row, a token that the
    vocabulary keeps in reserve, such as `<unused0>`, gets the name and keeps its id.

    Args:
        tokenizer: the tokenizer, which is changed in place.
        vocab_size: rows of the model's smallest embedding matrix, padding included.
        token: the token.

    Raises:
        ValueError: if there is neither a free row, since the matrix is never resized because vLLM would not load it,
            nor a reserved token; or if the tokenizer has the token as a special one.
    """
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        if (next_id := max(vocabulary.values()) + 1) >= vocab_size:
            _rename_reserved_token(tokenizer, token, next_id, vocab_size)
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


def _rename_reserved_token(tokenizer: Any, token: str, next_id: int, vocab_size: int) -> None:
    """Give the first reserved token the name of a head's token.

    It must stand in no merge, in no chat template and among no special tokens: what is named there is in use.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    vocabulary = state.get("model", {}).get("vocab", ())
    in_template = set(RESERVED_TOKEN.findall(str(tokenizer.chat_template)))
    used = {*_merged(state), *map(str, tokenizer.all_special_tokens)}
    reserved = {
        int(match[1]): name
        for name, token_id in tokenizer.get_vocab().items()
        if (match := RESERVED_TOKEN.fullmatch(name)) and token_id < vocab_size and name not in used
        if match[1] not in in_template
    }
    if not reserved or not isinstance(vocabulary, dict):
        raise ValueError(
            f"{token} would get id {next_id}, but the embedding matrix has {vocab_size} rows and the vocabulary no "
            "reserved token such as <unused0>: use a checkpoint whose vocabulary is padded, or has one"
        )
    old = reserved[min(reserved)]
    if old in vocabulary:
        vocabulary[token] = vocabulary.pop(old)
    plain = {"normalized": False, "special": False, "lstrip": False, "rstrip": False, "single_word": False}
    for added in state["added_tokens"]:
        if added["content"] == old:
            added.update(content=token, **plain)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer._tokenizer.encode_special_tokens = tokenizer.split_special_tokens  # the only state that is not written


def _merged(state: dict[str, Any]) -> set[str]:
    """Return the reserved names that a byte-pair vocabulary makes of others, or makes others of."""
    merges = state.get("model", {}).get("merges") or ()
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return {name for left, right in pairs for name in (left, right, left + right) if RESERVED_TOKEN.fullmatch(name)}


def head_token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a head's token.

    Raises:
        ValueError: if the tokenizer has no such token.
    """
    if token not in tokenizer.get_vocab():
        raise ValueError(f"the tokenizer has no token {token}: load the model with the head that it belongs to")
    return int(tokenizer.convert_tokens_to_ids(token))


def vocabulary_tables(model: PreTrainedModel) -> list[Any]:
    """Return the layers with a row for each token: embeddings, `lm_head`, and Gemma's embeddings for every layer."""
    per_layer = getattr(model.get_decoder(), "embed_tokens_per_layer", None)
    tables = (model.get_input_embeddings(), model.get_output_embeddings(), per_layer)
    return [table for table in tables if table is not None]


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Return the number of tokens that every table of the vocabulary has a row for."""
    sizes = (getattr(table, "num_embeddings", None) or table.out_features for table in vocabulary_tables(model))
    return int(min(sizes))


@torch.no_grad()
def init_seg_embedding(model: PreTrainedModel, seg_token_id: int, *, num_tokens: int) -> None:
    """Initialise a token with the mean of the first `num_tokens` rows; a padding row may be all zeros."""
    weights = {id(table.weight): table.weight for table in vocabulary_tables(model)}
    with gathered(weights.values()):
        for weight in weights.values():
            # By parts: a table may take gigabytes, and twice as much in float32.
            total = torch.stack([rows.float().sum(0) for rows in weight[:num_tokens].split(8192)]).sum(0)
            weight[seg_token_id] = (total / num_tokens).to(weight.dtype)


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
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_id: int,
    *,
    num_completion_tokens: int,
    in_calls: Callable[[Sequence[int]], Sequence[bool]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the last token of a head among the completion tokens of each row.

    A row without the token gets the position of its last real token, so that every rank runs the same modules; the
    caller weights its prediction by 0.

    Args:
        input_ids: (B, L) prompt, left-padded, then completion, right-padded.
        attention_mask: (B, L), 0 for padding.
        token_id: id of the head's token, such as `[SEG]`.
        num_completion_tokens: number of last positions that are completion; a token in the prompt is no answer.
        in_calls: function of a completion's ids that tells which of them are a call of a tool; a token there is no
            answer either. None where no tools are called.

    Returns:
        index (B,) long, is_there (B,) bool.
    """
    positions = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
    real = attention_mask.bool()
    hit = (input_ids == token_id) & real & (positions >= input_ids.size(1) - num_completion_tokens)
    if in_calls is not None:
        for row in hit.any(1).nonzero().flatten().tolist():
            said_to_tools = in_calls(input_ids[row, -num_completion_tokens:].tolist())
            hit[row, -num_completion_tokens:] &= ~torch.tensor(said_to_tools, device=hit.device)
    is_there = hit.any(1)
    last_hit = (positions * hit).amax(1)
    last_real = (positions * real).amax(1)
    return torch.where(is_there, last_hit, last_real), is_there
