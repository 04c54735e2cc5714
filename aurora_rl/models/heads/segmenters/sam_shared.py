"""The mask decoders of SAM and its successors with many prompts on one image: image-only results are computed once.

transformers' `SamMaskDecoder` repeats the image for each prompt before its first layer. The prompts change the image's
keys only at the end of that layer, so its projections of the image serve all of them. Weights are never read, but
used by calling the modules that own them: under ZeRO-3 and FSDP they are elsewhere until their module is called.

SAM 2 has one more output token, for the presence of an object, and adds features of higher resolution while it
upscales; SAM 3's tracker and EdgeTAM do the same. SAM-HQ has one more output token, last, whose mask is added to SAM's.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.edgetam.modeling_edgetam import (
    EdgeTamAttention,
    EdgeTamMaskDecoder,
    EdgeTamTwoWayAttentionBlock,
)
from transformers.models.sam.modeling_sam import SamAttention, SamMaskDecoder, SamTwoWayAttentionBlock
from transformers.models.sam2.modeling_sam2 import Sam2Attention, Sam2MaskDecoder, Sam2TwoWayAttentionBlock
from transformers.models.sam3_tracker.modeling_sam3_tracker import (
    Sam3TrackerAttention,
    Sam3TrackerMaskDecoder,
    Sam3TrackerTwoWayAttentionBlock,
)
from transformers.models.sam_hq.modeling_sam_hq import SamHQAttention, SamHQMaskDecoder, SamHQTwoWayAttentionBlock

#: Copies of one another in transformers, as far as this module calls them.
Sam2Like: TypeAlias = Sam2MaskDecoder | Sam3TrackerMaskDecoder | EdgeTamMaskDecoder
MaskDecoder: TypeAlias = SamMaskDecoder | SamHQMaskDecoder | Sam2Like
Sam2LikeAttention: TypeAlias = Sam2Attention | Sam3TrackerAttention | EdgeTamAttention
Attention: TypeAlias = SamAttention | SamHQAttention | Sam2LikeAttention
TwoWayBlock: TypeAlias = (
    SamTwoWayAttentionBlock
    | SamHQTwoWayAttentionBlock
    | Sam2TwoWayAttentionBlock
    | Sam3TrackerTwoWayAttentionBlock
    | EdgeTamTwoWayAttentionBlock
)

#: A power of two, so that scaling by it is exact; large compared with a bias, small enough for float16.
PROBE_SCALE = 1024.0


def decode_prompts(
    decoder: MaskDecoder,
    image_embeddings: Tensor,
    positions: Tensor,
    prompts: Tensor,
    *,
    high_res_features: tuple[Tensor, Tensor] | None = None,
    hq_features: Tensor | None = None,
) -> Tensor:
    """Decode the masks of mask token 0, SAM's single-mask output; SAM-HQ adds those of its own token.

    Args:
        decoder: the decoder with the weights.
        image_embeddings: (N, C, h, w), with the dense prompt added.
        positions: (1, C, h, w) positional embeddings.
        prompts: (N, G, C), one sparse prompt for each mask.
        high_res_features: features of SAM 2, (N, C/8, 4 h, 4 w) and (N, C/4, 2 h, 2 w).
        hq_features: features of SAM-HQ, (N, C/8, 4 h, 4 w).

    Returns:
        Mask logits (N, G, 4 h, 4 w), equal to those of the decoder's own `forward` up to rounding.
    """
    output_tokens, mask_token = _output_tokens(decoder)
    output_tokens = output_tokens.expand(*prompts.shape[:2], -1, -1)
    prompt_tokens = torch.cat([output_tokens, prompts[:, :, None]], dim=2)  # (N, G, T, C)
    positions = positions.flatten(2).transpose(1, 2)[:, None]  # (1, 1, L, C)
    keys = image_embeddings.flatten(2).transpose(1, 2)[:, None]  # (N, 1, L, C) until the first layer's end
    tokens = prompt_tokens
    for layer in decoder.transformer.layers:
        tokens, keys = _two_way(layer, tokens, keys, prompt_tokens, positions)
    final = decoder.transformer
    attended = _tokens_to_image(final.final_attn_token_to_image, tokens + prompt_tokens, keys + positions, keys)
    tokens = final.layer_norm_final_attn(tokens + attended)
    kernels = decoder.output_hypernetworks_mlps[0](tokens[:, :, mask_token])  # (N, G, C / 8)
    pixels = _upscale(decoder, keys, image_embeddings.shape[-2:], high_res_features)  # (N G, C / 8, 4 h, 4 w)
    masks = _mask_logits(pixels, kernels)
    if not isinstance(decoder, SamHQMaskDecoder):
        return masks
    fine = decoder.mask_conv2(decoder.activation(decoder.mask_norm(decoder.mask_conv1(pixels))))
    fine = _add_to_each_prompt(fine, hq_features, len(keys))
    return masks + _mask_logits(fine, decoder.hq_mask_mlp(tokens[:, :, len(output_tokens[0, 0]) - 1]))


def _output_tokens(decoder: MaskDecoder) -> tuple[Tensor, int]:
    """Return the decoder's own tokens (T, C) and the place of mask token 0; SAM-HQ's own token is the last."""
    presence = [decoder.obj_score_token] if isinstance(decoder, Sam2Like) else []
    first = [*presence, decoder.iou_token]
    last = [decoder.hq_token] if isinstance(decoder, SamHQMaskDecoder) else []
    tokens = torch.cat([token.weight for token in (*first, decoder.mask_tokens, *last)])
    return tokens, len(first)


def _mask_logits(pixels: Tensor, kernels: Tensor) -> Tensor:
    """Multiply pixels (N G, c, h, w) by the kernels (N, G, c) of their prompts: (N, G, h, w)."""
    by_prompt = pixels.permute(0, 2, 3, 1).unflatten(0, kernels.shape[:2])  # (N, G, h, w, c)
    return (by_prompt.flatten(2, 3) @ kernels[..., None]).view(by_prompt.shape[:-1])


def _two_way(
    layer: TwoWayBlock,
    tokens: Tensor,
    keys: Tensor,
    prompt_tokens: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run `SamTwoWayAttentionBlock.forward` with keys that are shared by all prompts, or one set a prompt."""
    if layer.skip_first_layer_pe:
        tokens = layer.self_attn(tokens, tokens, tokens)[0]
    else:
        query = tokens + prompt_tokens
        tokens = tokens + layer.self_attn(query, query, tokens)[0]
    tokens = layer.layer_norm1(tokens)
    placed_keys = keys + positions
    attended = _tokens_to_image(layer.cross_attn_token_to_image, tokens + prompt_tokens, placed_keys, keys)
    tokens = layer.layer_norm2(tokens + attended)
    tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
    update = _image_to_tokens(layer.cross_attn_image_to_token, placed_keys, tokens + prompt_tokens, tokens)
    return tokens, layer.layer_norm4(keys + update)


def _tokens_to_image(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let tokens (N, G, T, C) attend to the image (N, 1 or G, L, C)."""
    if key.size(1) == 1:  # one image for all prompts: all their tokens are one batch of queries
        return attention(query.flatten(1, 2)[:, None], key, value)[0].view_as(query)
    # One image a prompt: it is much cheaper to project a few tokens than thousands of pixels.
    heads = attention.num_attention_heads
    to_key, _ = _weight_and_bias(attention.k_proj)  # its bias adds the same to a token's scores at all pixels
    to_value, value_bias = _weight_and_bias(attention.v_proj)
    to_key, to_value = to_key.unflatten(1, (heads, -1)), to_value.unflatten(1, (heads, -1))  # (C, heads, D)
    queries = attention.q_proj(query).unflatten(-1, (heads, -1)) * attention.scaling
    queries = torch.einsum("ngthd,chd->ngthc", queries, to_key).flatten(2, 3)  # (N, G, T heads, C)
    probs = (queries @ key.transpose(-1, -2)).softmax(-1, dtype=torch.float32).to(value.dtype)
    seen = (probs @ value).unflatten(2, (-1, heads))  # (N, G, T, heads, C)
    attended = torch.einsum("ngthc,chd->ngthd", seen, to_value).flatten(3) + value_bias
    return _out_projection(attention)(attended)


def _weight_and_bias(projection: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return (C, D) and (D,) such that `projection(x) = x @ weight + bias`.

    The weight is scaled up in the call: in bf16, a weight plus a larger bias would be rounded at the bias's size.
    """
    width, device = projection.in_features, projection.weight.device
    answers = projection(PROBE_SCALE * torch.eye(width + 1, width, device=device, dtype=projection.weight.dtype))
    return (answers[:-1] - answers[-1]) / PROBE_SCALE, answers[-1]


def _image_to_tokens(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let the image (N, 1 or G, L, C) attend to each prompt's tokens (N, G, T, C): (N, G, L, C)."""
    if query.size(1) == key.size(1):
        return attention(query, key, value)[0]
    heads = attention.num_attention_heads
    projected = attention.q_proj(query).expand(-1, key.size(1), -1, -1)
    q, k, v = (
        x.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2)  # (N G, heads, L or T, D)
        for x in (projected, attention.k_proj(key), attention.v_proj(value))
    )
    attended = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
    return _out_projection(attention)(attended.transpose(1, 2).flatten(2)).unflatten(0, key.shape[:2])


def _out_projection(attention: Attention) -> nn.Linear:
    return attention.o_proj if isinstance(attention, Sam2LikeAttention) else attention.out_proj


def _upscale(
    decoder: MaskDecoder,
    keys: Tensor,
    size: torch.Size,
    high_res_features: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Upscale (N, G, L, C) to (N G, C / 8, 4 h, 4 w), with channels last in memory throughout."""
    images = keys.flatten(0, 1).transpose(1, 2).unflatten(2, tuple(size))  # (N G, C, h, w)
    finest, finer = high_res_features or (None, None)
    upscaled = _add_to_each_prompt(decoder.upscale_conv1(images), finer, len(keys))
    upscaled = decoder.activation(decoder.upscale_layer_norm(upscaled))
    return decoder.activation(_add_to_each_prompt(decoder.upscale_conv2(upscaled), finest, len(keys)))


def _add_to_each_prompt(images: Tensor, features: Tensor | None, num_frames: int) -> Tensor:
    """Add (N, c, h, w) features of the frames to (N G, c, h, w) images of the frames' prompts."""
    if features is None:
        return images
    return (images.unflatten(0, (num_frames, -1)) + features[:, None]).flatten(0, 1)
