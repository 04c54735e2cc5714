"""A tokenizer and a chat template for tiny models, of Qwen's own classes and tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from aurora_rl.models.head_tokens import ensure_head_token

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}VIDEO{% elif part['type'] == 'image' %}IMAGE"
    "{% elif part['type'] == 'audio' %}AUDIO"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_template(tokens: Mapping[str, str]) -> str:
    """Return the template of a chat; `tokens` are those of media by the tokenizer's attributes."""
    template = TEMPLATE
    for medium, delimiters in (("video", "vision"), ("image", "vision"), ("audio", "audio")):
        names = (f"{delimiters}_bos_token", f"{medium}_token", f"{delimiters}_eos_token")
        template = template.replace(medium.upper(), "".join(tokens.get(name, "") for name in names), 1)
    return template


def train_tokenizer(
    texts: Iterable[str], tokens: Mapping[str, str], *, max_vocab_size: int, min_vocab_size: int = 0
) -> Qwen2Tokenizer:
    """Train a byte-pair vocabulary and add the tokens of media, turns and `[SEG]`.

    Args:
        texts: texts in which frequent words become single tokens.
        tokens: tokens of media by the tokenizer's attributes.
        max_vocab_size: upper limit of the vocabulary before added tokens.
        min_vocab_size: lower limit of the vocabulary, which is filled with words that occur in no text.
    """
    blank = Qwen2Tokenizer(vocab={}, merges=[])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([*texts, "user assistant system"], trainer)
    state = json.loads(bpe.to_str())["model"]
    fillers = {f"unused{token_id}": token_id for token_id in range(len(state["vocab"]), min_vocab_size)}
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"] | fillers,
        merges=[tuple(merge) for merge in state["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=dict(tokens),
        model_max_length=32768,
    )
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    ensure_head_token(tokenizer, vocab_size=len(tokenizer) + 1)
    return tokenizer
