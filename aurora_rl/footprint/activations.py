"""Memory that a forward and backward pass takes beside the weights, found by running its parts on `meta`.

The decoder's layers are all alike: one is run (`peak.forward_and_backward`), the others take the same. What it keeps
agrees with Korthikanti et al. 2022 (arXiv 2205.05198, section 4): a number of bytes for each token, times the width,
times the depth, without the quadratic term where attention is fused; running the layer counts SwiGLU, grouped keys,
LoRA and frozen weights as they are. The order of a backward pass decides what comes on top: first the masks, then the
LM head, then the layers, one at a time.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.footprint.peak import forward_and_backward, forward_only
from aurora_rl.footprint.workload import Workload
from aurora_rl.losses import mask_loss
from aurora_rl.models.heads.segmenters import Segmenter

#: Copies of a prompt's states that lie beside the layer at work where nothing is kept for a backward pass: the embedded
#: tokens, which the model's callers hold until its end, and the layer's input.
ENTRIES = 2
#: Bytes that a tower's layer of half precision keeps for each token and unit of width (Korthikanti et al. 2022, eq. 1).
TOWER_LAYER_BYTES = 34
#: Float32 copies of a tile of logits that TRL's LM head has alive at once where it runs without Triton.
FOLDED_TILES = 7.25


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes of a training pass.

    Attributes:
        decoder: kept by the language model's layers until their turn in the backward pass.
        towers: kept by trained towers; frozen ones keep nothing, for no gradient reaches their outputs.
        masks: most that mask decoder and mask loss have alive, on top of `decoder`.
        lm_head: most that the fused LM head has alive, on top of `decoder`.
        layer: most that one layer's backward pass has alive, on top of `decoder`.
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
    """Bytes of one pass of one process.

    Args:
        meta: the model.
        work: what it reads.
        half: dtype of mixed precision, None for none. Of autocast over float32 weights the float32 residual stream is
            left out.
        checkpointing: whether layers keep their input alone and run again in the backward pass.
        is_gpu: whether the LM head's tiles are folded by Triton.
    """
    layers = _layers(meta)
    kept, peak = _run_layer(meta, work, half)
    dtype = half or next(layers[0].parameters()).dtype
    entry = work.tokens * _width(meta) * dtype.itemsize
    return Activations(
        decoder=len(layers) * (entry if checkpointing else kept),
        towers=_tower_bytes(meta, work, dtype, checkpointing=checkpointing),
        masks=_mask_bytes(meta, work),
        lm_head=_lm_head_bytes(meta, work, dtype, is_gpu=is_gpu),
        layer=peak if checkpointing else peak - kept,
    )


def estimate_sampling(meta: MetaModel, work: Workload, *, half: torch.dtype | None) -> tuple[int, int]:
    """Bytes of the key-value cache of transformers' `generate` at its longest, and of the prefill beside it.

    The prefill is a pass over the prompts, and projects the last position of each row onto the vocabulary: logits in
    the model's dtype, of which `generate` makes a float32 copy.
    """
    config = meta.base.config.get_text_config()
    dtype = half or next(_layers(meta)[0].parameters()).dtype
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * len(_layers(meta)) * config.num_key_value_heads * head_dim * dtype.itemsize
    rows = work.generated_rows
    prefill = estimate_pass(meta, work, rows=rows, length=work.prompt_tokens, half=half)
    logits = rows * config.vocab_size * (dtype.itemsize + torch.float32.itemsize)
    return rows * work.length * a_token, prefill + logits


def estimate_pass(meta: MetaModel, work: Workload, *, rows: int, length: int, half: torch.dtype | None = None) -> int:
    """Most bytes of the language model's pass over sequences without gradient: a layer's, its input, the mask.

    Args:
        meta: the model.
        work: of which the rest is taken.
        rows: sequences.
        length: tokens of each.
        half: dtype of mixed precision, None for none.
    """
    sequences = dataclasses.replace(work, rows=rows, prompt_tokens=length, completion_tokens=0)
    layer, inputs = _layer_and_inputs(meta, sequences, half)
    mask = inputs["attention_mask"]
    entries = ENTRIES * inputs["hidden_states"].untyped_storage().nbytes()
    return forward_only(lambda: layer(**inputs)) + entries + (0 if mask is None else mask.untyped_storage().nbytes())


def estimate_mask_decoding(meta: MetaModel, work: Workload) -> int:
    """Most bytes of masks without gradient: a chunk of decoding, all logits at the decoder's and the frames' size."""
    decoder, frames, prompts = _decoder_and_chunk(meta, work)
    inputs = work.clips * work.frames * torch.Size(decoder.frame_shape).numel() * torch.float32.itemsize
    low_resolution, _ = _run_mask_loss(decoder, work)
    full_size = work.rows * work.frames * work.size[0] * work.size[1] * torch.float32.itemsize
    return inputs + low_resolution + max(full_size, _decode_a_chunk(decoder, frames, prompts))


def _layers(meta: MetaModel) -> nn.ModuleList:
    return meta.base.get_decoder().layers


def _width(meta: MetaModel) -> int:
    return meta.base.config.get_text_config().hidden_size


def _run_layer(meta: MetaModel, work: Workload, half: torch.dtype | None) -> tuple[int, int]:
    layer, inputs = _layer_and_inputs(meta, work, half)
    return forward_and_backward(lambda: _first(layer(**inputs)))


def _layer_and_inputs(meta: MetaModel, work: Workload, half: torch.dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    layer = copy.deepcopy(_layers(meta)[0]).train()
    if half is not None:
        layer.to(half)
    dtype = next(layer.parameters()).dtype
    with torch.device("meta"):
        hidden_states = torch.empty(work.rows, work.length, _width(meta), dtype=dtype, requires_grad=True)
        positions = torch.empty(3, work.rows, work.length, dtype=torch.long)  # time, height and width of M-RoPE
        # Rows of several lengths are padded, and padding is masked; a single row needs no mask.
        mask = None if work.rows == 1 else torch.empty(work.rows, 1, work.length, work.length, dtype=torch.bool)
    _give_gradients(layer)
    position_embeddings = meta.base.get_decoder().rotary_emb(hidden_states.detach(), positions)
    return layer, {
        "hidden_states": hidden_states,
        "position_embeddings": position_embeddings,
        "attention_mask": mask,
    }


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _give_gradients(module: nn.Module) -> None:
    """So that a backward pass adds to gradients, which are counted elsewhere, instead of making them."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def _tower_bytes(meta: MetaModel, work: Workload, dtype: torch.dtype, *, checkpointing: bool) -> int:
    """With checkpointing each layer keeps its input, and one at a time all that it computes."""
    config, scale = meta.base.config, dtype.itemsize / torch.bfloat16.itemsize
    vision, audio = config.vision_config, config.audio_config
    sizes = {  # (tokens x width, layers)
        "visual": (work.patches * vision.hidden_size, vision.depth),
        "audio_tower": (work.mels * audio.d_model / 2, audio.encoder_layers),  # a convolution of stride 2 comes first
    }
    trained = [size for name, size in sizes.items() if _is_trained(getattr(meta.base, name))]
    a_layer = TOWER_LAYER_BYTES * scale
    if not checkpointing:
        return round(sum(a_layer * entry * depth for entry, depth in trained))
    inputs = sum(dtype.itemsize * entry * depth for entry, depth in trained)
    return round(inputs + max((a_layer * entry for entry, _ in trained), default=0))


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _lm_head_bytes(meta: MetaModel, work: Workload, dtype: torch.dtype, *, is_gpu: bool) -> int:
    """TRL's fused LM head (`trl.kernels.chunked_logprob`): tiles of logits, gradients added up in float32."""
    head = meta.base.get_output_embeddings()
    vocab_size, width = head.weight.shape
    is_trained = any(p.requires_grad for p in head.parameters())
    # Triton picks the completion's tokens; elsewhere all positions are scored, and a tile's copies lie side by side.
    tokens = work.rows * (work.completion_tokens if is_gpu else work.length)
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
    """The mask decoder, and how many frames and prompts on each of them it takes at a time."""
    decoder: Segmenter = copy.deepcopy(meta.base.seg_head.mask_decoder)
    decoder.to(next(decoder.parameters()).dtype)  # buffers, too; autocast would see to them
    frames, prompts = work.clips * work.frames, -(-work.rows // work.clips)
    chunk_frames, chunk_prompts = decoder.chunk_size(frames, prompts, decoder.masks_that_fit(torch.device("meta")))
    return decoder, min(chunk_frames, frames), chunk_prompts


def _decode_a_chunk(decoder: Segmenter, frames: int, prompts: int) -> int:
    dtype = next(decoder.parameters()).dtype
    with torch.device("meta"):
        frame_inputs = torch.empty(frames, *decoder.frame_shape, dtype=dtype)
        embeddings = torch.empty(frames, prompts, decoder.prompt_dim, dtype=dtype)
    return forward_only(lambda: decoder.decode(frame_inputs, embeddings))


def _run_mask_decoder(decoder: Segmenter, frames: int, prompts: int) -> tuple[int, int]:
    dtype = next(decoder.parameters()).dtype
    _give_gradients(decoder)
    with torch.device("meta"):
        frame_inputs = torch.empty(frames, *decoder.frame_shape, dtype=dtype)
        embeddings = torch.empty(frames, prompts, decoder.prompt_dim, dtype=dtype, requires_grad=True)
    return forward_and_backward(lambda: decoder.decode(frame_inputs, embeddings))


def _run_mask_loss(decoder: Segmenter, work: Workload) -> tuple[int, int]:
    """Bytes of all masks' logits at the decoder's resolution, and what the mask loss makes of them."""
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
