"""Memory that a forward and backward pass takes beside the weights, measured by running its parts on `meta`.

The decoder's layers are all alike: one is run (`peak.forward_and_backward`), the others take the same. Its number
agrees with Korthikanti et al. 2022 (arXiv 2205.05198, section 4): a number of bytes for each token, times the width,
times the depth, without the quadratic term where attention is fused; running the layer counts SwiGLU, grouped keys,
LoRA and frozen weights exactly. The backward pass adds its own memory, in this order: first of the masks, then of the
LM head, then of the layers, one at a time.
"""

from __future__ import annotations

import copy
import dataclasses
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.footprint.peak import forward_and_backward, forward_only
from aurora_rl.footprint.shared_prompts import give_packed_attention, meta_layout, packed_on_meta
from aurora_rl.footprint.workload import Workload
from aurora_rl.losses import mask_loss
from aurora_rl.models.heads.segmenters import Segmenter

#: Copies of a prompt's states beside the running layer, in a pass without gradient: the embedded tokens, which the
#: model's callers hold until its end, and the layer's input.
ENTRIES = 2
#: Bytes that a tower's layer in half precision keeps for each token and unit of width (Korthikanti et al. 2022, eq. 1).
TOWER_LAYER_BYTES = 34
#: Float32 copies of a tile of logits that TRL's LM head holds at once if it runs without Triton.
FOLDED_TILES = 7.25


@dataclasses.dataclass(frozen=True)
class Activations:
    """Memory of a training pass, in bytes.

    Attributes:
        decoder: bytes that the language model's layers keep for the backward pass.
        towers: bytes that trained towers keep; frozen ones keep none, since no gradient reaches their outputs.
        masks: peak of mask decoder and mask loss, in bytes beside `decoder`.
        lm_head: peak of the fused LM head, in bytes beside `decoder`.
        layer: peak of one layer's backward pass, in bytes beside `decoder`.
    """

    decoder: int
    towers: int
    masks: int
    lm_head: int
    layer: int

    @property
    def peak(self) -> int:
        return self.decoder + self.towers + max(self.masks, self.lm_head, self.layer)


def estimate_activations(
    meta: MetaModel, work: Workload, *, half: torch.dtype | None, checkpointing: bool, is_gpu: bool
) -> Activations:
    """Estimate the memory of one pass of one process.

    Args:
        meta: the model.
        work: sizes of the pass.
        half: dtype of mixed precision, None for none. For autocast over float32 weights, the residual stream in
            float32 is not counted.
        checkpointing: whether layers keep only their input, and run again in the backward pass.
        is_gpu: whether Triton computes the tiles of the LM head.
    """
    layers = _layers(meta)
    kept, peak = _run_layer(meta, work, half)
    dtype = half or next(layers[0].parameters()).dtype
    entry = work.tokens * _width(meta) * dtype.itemsize
    return Activations(
        decoder=len(layers) * (entry if checkpointing else kept),
        towers=_tower_bytes(meta, work, dtype, checkpointing=checkpointing),
        masks=_mask_bytes(meta, work) if work.has_masks else 0,
        lm_head=_lm_head_bytes(meta, work, dtype, is_gpu=is_gpu),
        layer=peak if checkpointing else peak - kept,
    )


def estimate_sampling(meta: MetaModel, work: Workload, *, half: torch.dtype | None) -> tuple[int, int]:
    """Estimate the bytes of the longest key-value cache of transformers' `generate`, and of the prefill beside it.

    The prefill is a pass over the prompts that projects the last position of each row onto the vocabulary: logits in
    the model's dtype, of which `generate` makes a float32 copy.
    """
    dtype = half or next(_layers(meta)[0].parameters()).dtype
    rows = work.generated_rows
    cached = rows * sum(_cached_numbers(layer, work.length) for layer in _layers(meta))
    prefill = estimate_pass(meta, work, rows=rows, length=work.prompt_tokens, half=half)
    logits = rows * meta.base.config.get_text_config().vocab_size * (dtype.itemsize + torch.float32.itemsize)
    return cached * dtype.itemsize, prefill + logits


def _cached_numbers(layer: nn.Module, length: int) -> int:
    """Return how many numbers a layer caches of one row; the state of linear attention, of a fixed size, is left out.

    A sliding window keeps the tokens that the next one attends to. Layers that share keys of others cache none.
    """
    attention: Any = getattr(layer, "self_attn", None)
    if not hasattr(attention, "k_proj"):
        return 0
    window = getattr(attention, "sliding_window", None)
    return 2 * attention.k_proj.out_features * (min(length, window - 1) if window else length)


def estimate_pass(meta: MetaModel, work: Workload, *, rows: int, length: int, half: torch.dtype | None = None) -> int:
    """Estimate the peak, in bytes, of the language model's pass without gradient: a layer, its input, the mask.

    Args:
        meta: the model.
        work: the workload, which gives all other sizes.
        rows: number of sequences.
        length: tokens of each sequence.
        half: dtype of mixed precision, None for none.
    """
    sequences = dataclasses.replace(work, rows=rows, prompt_tokens=length, completion_tokens=0, shares_prompts=False)
    layer, inputs = _layer_and_inputs(meta, sequences, half)
    mask = inputs["attention_mask"]
    entries = ENTRIES * inputs["hidden_states"].untyped_storage().nbytes()
    return forward_only(lambda: layer(**inputs)) + entries + (0 if mask is None else mask.untyped_storage().nbytes())


def estimate_mask_decoding(meta: MetaModel, work: Workload) -> int:
    """Estimate the peak, in bytes, of decoding masks without gradient: a chunk, and the logits at both sizes."""
    decoder, frames, prompts = _decoder_and_chunk(meta, work)
    inputs = work.clips * work.frames * torch.Size(decoder.frame_shape).numel() * torch.float32.itemsize
    low_resolution, _ = _run_mask_loss(decoder, work)
    full_size = work.rows * work.frames * work.size[0] * work.size[1] * torch.float32.itemsize
    dtype = next(decoder.parameters()).dtype
    with torch.device("meta"):
        frame_inputs = torch.empty(frames, *decoder.frame_shape, dtype=dtype)
        embeddings = torch.empty(frames, prompts, decoder.prompt_dim, dtype=dtype)
    chunk = forward_only(lambda: decoder.decode(frame_inputs, embeddings))
    return inputs + low_resolution + max(full_size, chunk)


def _layers(meta: MetaModel) -> nn.ModuleList:
    return meta.base.get_decoder().layers


def _width(meta: MetaModel) -> int:
    return meta.base.config.get_text_config().hidden_size


def _run_layer(meta: MetaModel, work: Workload, half: torch.dtype | None) -> tuple[int, int]:
    layer, inputs = _layer_and_inputs(meta, work, half)

    def run() -> Tensor:
        with packed_on_meta():
            output = layer(**inputs)
        return output if isinstance(output, Tensor) else output[0]

    return forward_and_backward(run)


def _usual_layer(meta: MetaModel) -> nn.Module:
    """Return a layer that attends to all tokens; where others have linear attention, it stands for them too."""
    kinds = getattr(meta.base.config.get_text_config(), "layer_types", None) or ["full_attention"]
    index = kinds.index("full_attention") if "full_attention" in kinds else 0
    return _layers(meta)[index]


def _layer_and_inputs(meta: MetaModel, work: Workload, half: torch.dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    layer = copy.deepcopy(_usual_layer(meta)).train()
    if half is not None:
        layer.to(half)
    dtype = next(layer.parameters()).dtype
    rows, length = (1, work.tokens) if work.shares_prompts else (work.rows, work.length)
    with torch.device("meta"):
        hidden_states = torch.empty(rows, length, _width(meta), dtype=dtype, requires_grad=True)
        axes = (meta.family.position_axes,) if meta.family.position_axes > 1 else ()
        positions = torch.empty(*axes, rows, length, dtype=torch.long)
        # Rows of several lengths are padded, and padding is masked; a single row needs no mask.
        mask = None if rows == 1 else torch.empty(rows, 1, length, length, dtype=torch.bool)
    _give_gradients(layer)
    rotary = meta.base.get_decoder().rotary_emb
    # Layers of Gemma turn by their kind, may hand keys and values on, and read embeddings of their own.
    by_kind = {"layer_type": "full_attention"} if "layer_type" in signature(rotary.forward).parameters else {}
    inputs: dict[str, Any] = {
        "hidden_states": hidden_states,
        "position_embeddings": rotary(hidden_states.detach(), positions, **by_kind),
        "attention_mask": mask,
    }
    if work.shares_prompts:
        give_packed_attention(layer)
        inputs["packed"] = meta_layout(work.rows, work.clips, work.prompt_tokens, work.completion_tokens)
    if by_kind:
        inputs["shared_kv_states"] = {}
    if width := getattr(meta.base.config.get_text_config(), "hidden_size_per_layer_input", None):
        inputs["per_layer_input"] = torch.empty(rows, length, width, dtype=dtype, device="meta")
    return layer, inputs


def _give_gradients(module: nn.Module) -> None:
    """Make gradients, so that a backward pass adds to them and allocates none: they are counted elsewhere."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def _tower_bytes(meta: MetaModel, work: Workload, dtype: torch.dtype, *, checkpointing: bool) -> int:
    """Estimate the bytes of trained towers; with checkpointing a layer keeps its input, and one layer everything."""
    towers = [tower for name, tower in work.towers.items() if _is_trained(meta.base.get_submodule(name))]
    trained = [(tower.tokens * tower.width, tower.layers) for tower in towers]
    a_layer = TOWER_LAYER_BYTES * dtype.itemsize / torch.bfloat16.itemsize
    if not checkpointing:
        return round(sum(a_layer * entry * depth for entry, depth in trained))
    inputs = sum(dtype.itemsize * entry * depth for entry, depth in trained)
    return round(inputs + max((a_layer * entry for entry, _ in trained), default=0))


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _lm_head_bytes(meta: MetaModel, work: Workload, dtype: torch.dtype, *, is_gpu: bool) -> int:
    """Estimate TRL's fused LM head (`trl.kernels.chunked_logprob`): tiles of logits, gradients in float32."""
    head = meta.base.get_output_embeddings()
    vocab_size, width = head.weight.shape
    is_trained = _is_trained(head)
    # Triton picks the completion's tokens; without it all positions are scored, and the copies of a tile add up.
    tokens = work.rows * work.completion_tokens if is_gpu else work.tokens
    rows = min(tokens, TOKEN_CHUNK_SIZE)
    tile = rows * _CHUNKED_LOGPROB_CHUNK_SIZE * dtype.itemsize
    copies = 0 if is_gpu else round(FOLDED_TILES * rows * min(vocab_size, _CHUNKED_LOGPROB_CHUNK_SIZE))
    gradients = tokens * width + is_trained * vocab_size * width
    return tile + (copies + gradients) * torch.float32.itemsize


def _mask_bytes(meta: MetaModel, work: Workload) -> int:
    decoder, chunk_frames, chunk_prompts = _decoder_and_chunk(meta, work)
    frames, prompts = work.clips * work.frames, -(-work.rows // work.clips)
    inputs = frames * torch.Size(decoder.frame_shape).numel() * torch.float32.itemsize
    _, decoding = _run_mask_decoder(decoder, chunk_frames, chunk_prompts)
    logits, losses = _run_mask_loss(decoder, work)
    is_one_chunk = frames <= chunk_frames and prompts <= chunk_prompts
    return inputs + logits + (losses + decoding if is_one_chunk else max(losses, logits + decoding))


def _decoder_and_chunk(meta: MetaModel, work: Workload) -> tuple[Segmenter, int, int]:
    """Return the mask decoder, and how many frames, and prompts on each of them, it takes at a time."""
    decoder: Segmenter = copy.deepcopy(meta.base.seg_head.mask_decoder)
    decoder.to(next(decoder.parameters()).dtype)  # also the buffers, which autocast would cast
    frames, prompts = work.clips * work.frames, -(-work.rows // work.clips)
    chunk_frames, chunk_prompts = decoder.chunk_size(frames, prompts, decoder.masks_that_fit(torch.device("meta")))
    return decoder, min(chunk_frames, frames), chunk_prompts


def _run_mask_decoder(decoder: Segmenter, frames: int, prompts: int) -> tuple[int, int]:
    dtype = next(decoder.parameters()).dtype
    _give_gradients(decoder)
    with torch.device("meta"):
        frame_inputs = torch.empty(frames, *decoder.frame_shape, dtype=dtype)
        embeddings = torch.empty(frames, prompts, decoder.prompt_dim, dtype=dtype, requires_grad=True)
    return forward_and_backward(lambda: decoder.decode(frame_inputs, embeddings))


def _run_mask_loss(decoder: Segmenter, work: Workload) -> tuple[int, int]:
    """Return the bytes of all logits at the decoder's resolution, and the peak of the mask loss."""
    with torch.device("meta"):
        frame_inputs = torch.empty(1, *decoder.frame_shape, dtype=next(decoder.parameters()).dtype)
        low_resolution = decoder.decode(frame_inputs, frame_inputs.new_empty(1, 1, decoder.prompt_dim)).shape[-2:]
        logits = torch.empty(work.rows * work.frames, *low_resolution, requires_grad=True)
        gt_masks = torch.empty(work.rows, work.frames, *work.size, dtype=torch.bool)

    def loss() -> Tensor:
        mask_logits = decoder.postprocess(logits, work.size).unflatten(0, (work.rows, work.frames))
        return mask_loss(mask_logits, gt_masks).total

    _, peak = forward_and_backward(loss)
    return logits.untyped_storage().nbytes(), peak
