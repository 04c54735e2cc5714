"""What every family must do, checked on its tiny model: `python -m aurora_rl.models.mllm.contract mine.py:MyFamily`.

A check compares the family with something that does not share its code: rows with the same rows alone, generation with
one forward pass a token, log-probabilities with logits, the whole model with the class of transformers that it is
derived from. It raises a `ContractError` that says what to look at, or returns what it has measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models.control_tokens import control_token_ids
from aurora_rl.models.grounding import install_head_forward, shared_media, sharing_tower_outputs
from aurora_rl.models.heads import MaskHead
from aurora_rl.models.mllm import EncodedPrompt, MLLMFamily, load_family
from aurora_rl.models.mllm.sharing import TowerSharingMixin
from aurora_rl.models.prefill import prefill_once
from aurora_rl.models.state_layer import STATE_LAYER
from aurora_rl.models.tower_outputs import TowerOutputs
from aurora_rl.tasks.base import PromptMedia, PromptText, chat_messages
from aurora_rl.tasks.prompts import SEG_TOKEN

SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}
TEXTS = ["the drum is loud", "the bell is near", "Look: I see a drum.", "Listen: I hear a bell.", "It is [SEG]."]
#: Standard deviation of the weights: large enough that a wrong position shows far above rounding errors.
SPREAD = 0.08
#: Largest difference of logits or log-probabilities in float32, some of which are of the order of ten.
TOLERANCE = 5e-4
#: Largest probability of a token that must never be sampled.
SUPPRESSED = 1e-6
#: Logits below it count as equal: a suppressed one is -1e4, where float32 has steps of 1e-3.
FLOOR = -1e3
SECOND, FPS, NUM_STEPS = 16_000, 2.0, 6


class ContractError(AssertionError):
    """A family that does not do what every family must do."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A family with a tiny model of random weights.

    Attributes:
        family: the family.
        model: its tiny model, in eval mode.
        processor: the processor.
    """

    family: MLLMFamily
    model: Any
    processor: Any

    @classmethod
    def of(cls, family: MLLMFamily, sizes: Mapping[str, Any] | None = None) -> Subject:
        """Build the tiny model, of some sizes where they differ from its own; every call gives the same weights."""
        model, processor = family.build_tiny(TEXTS, segmenter=SEGMENTER, sizes=sizes)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, SPREAD)
        return cls(family, model.float().eval(), processor)

    @property
    def seg_id(self) -> int:
        return int(self.processor.tokenizer.convert_tokens_to_ids(SEG_TOKEN))

    @property
    def pad_id(self) -> int:
        return int(self.processor.tokenizer.pad_token_id)

    def is_tower(self, name: str) -> bool:
        return self.family.is_tower(name)

    def encode(
        self,
        text: str = "the drum",
        *,
        frames: int = 4,
        size: tuple[int, int] = (64, 64),
        sound: int = SECOND,
        seed: int = 0,
        fps: float = FPS,
        between: bool = False,
        processor: Any = None,
    ) -> EncodedPrompt:
        """Encode a question about random frames and noise.

        Args:
            text: the question.
            frames: number of frames; 0 for a question without media.
            size: H and W of the frames.
            sound: number of samples; 0 for none. A family without ears gets none.
            seed: seed of frames and noise.
            fps: frames a second.
            between: whether the sound lies between the frames.
            processor: the processor, where it is not the subject's own.
        """
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
        waveform = random.normal(0, 0.1, sound).astype(np.float32) if sound and frames and self.family.hears else None
        options = {"sample_fps": fps, "min_pixels": 256, "max_pixels": 65536}
        is_apart = waveform is not None and not between
        media = PromptMedia([Image.fromarray(frame) for frame in pixels], is_apart, options)
        messages = chat_messages(PromptText.fill("{reference}", reference=text), media if frames else None)
        processor = processor or self.processor
        return self.family.encode(processor, messages, waveform=waveform, fps=fps, use_audio_in_video=between)

    def two(self) -> list[EncodedPrompt]:
        """Encode two prompts of different lengths in every respect."""
        return [self.encode(), self.encode("the bell is near", frames=2, size=(48, 96), sound=2 * SECOND, seed=1)]

    def batch(
        self,
        rows: Sequence[EncodedPrompt],
        clips: Sequence[EncodedPrompt],
        index: Sequence[int],
        completions: Sequence[Sequence[int]] = (),
        *,
        left: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Return the model's inputs: prompts with `completions`, padded at the right, or prompts padded at the left."""
        ids = [row.prompt_ids for row in rows]
        batch = _padded(ids, completions or [[]] * len(rows), self.pad_id, left=left)
        media = self.family.collate_features([clip.features for clip in clips], index) if clips[0].features else {}
        return {**batch, **media}

    @torch.no_grad()
    def logits(
        self,
        rows: Sequence[EncodedPrompt],
        clips: Sequence[EncodedPrompt] | None = None,
        index: Sequence[int] | None = None,
        *,
        left: bool = False,
    ) -> list[torch.Tensor]:
        """Return the logits (L, V) of each row's own tokens; `clips` and `index` where rows share clips."""
        where = list(range(len(rows))) if index is None else list(index)
        clips = clips or rows
        inputs = self.batch(rows, clips, where, left=left)
        with shared_media(self.model, where, [clip.features for clip in clips]):
            logits = self.model(**inputs).logits.clamp(min=FLOOR)
        return [row[mask] for row, mask in zip(logits, inputs["attention_mask"].bool(), strict=True)]

    def alone(self, prompts: Sequence[EncodedPrompt]) -> list[torch.Tensor]:
        """Return the logits of each prompt in a batch of its own."""
        return [self.logits([prompt])[0] for prompt in prompts]


#: A check returns what it has measured, or None where it does not concern the family.
Check = Callable[[Subject], str | None]


def check_parts(subject: Subject) -> str:
    """Check that towers and LoRA's layers are where the family says, and not inside each other."""
    names = [name for name, _ in subject.model.named_modules()]
    for tower in subject.family.tower_names:
        _require(tower in names, f"tower_names holds {tower!r}, but the model has no module of that name")
    adapted = [name for name in names if re.fullmatch(subject.family.lora_target_modules, name)]
    _require(bool(adapted), f"lora_target_modules {subject.family.lora_target_modules!r} matches no module")
    inside = [name for name in adapted if subject.is_tower(name)]
    _require(not inside, f"lora_target_modules matches {inside[:1]}, which lies in a tower: towers stay frozen")
    return f"{len(subject.family.tower_names)} towers, {len(adapted)} layers for LoRA"


def check_seg(subject: Subject) -> str:
    """Check that `[SEG]` has a row of its own in every table of the vocabulary."""
    tables = [(name, m) for name, m in subject.model.get_decoder().named_modules() if isinstance(m, nn.Embedding)]
    tables.append(("lm_head", subject.model.get_output_embeddings()))
    for name, table in tables:
        rows = len(table.weight)
        _require(
            subject.seg_id < rows,
            f"{SEG_TOKEN} has id {subject.seg_id}, but {name} has {rows} rows: a table is never resized, so use a "
            "vocabulary with padding, or give the token a reserved id",
        )
        _require(bool(table.weight[subject.seg_id].any()), f"the row of {SEG_TOKEN} in {name} is all zeros")
    return f"id {subject.seg_id} in {len(tables)} tables"


@torch.no_grad()
def check_suppressed(subject: Subject) -> str:
    """Check that tokens which go with media are never sampled: placeholders, delimiters, in prompts and by name."""
    prompt, words = subject.encode(), subject.encode(frames=0)
    control = control_token_ids(subject.processor.tokenizer)
    of_media = (set(prompt.prompt_ids) - set(words.prompt_ids)) & control
    probabilities = subject.logits([prompt])[0].softmax(-1)
    names = subject.processor.tokenizer.convert_ids_to_tokens
    known = set(subject.family.suppressed_token_ids(subject.processor, subject.model.config))
    ids = sorted(of_media | known)
    _require(bool(of_media), "the prompt holds no control token that stands for media: check `encode`")
    for token_id in ids:
        found = probabilities[:, token_id].max().item()
        _require(
            found < SUPPRESSED,
            f"{names(token_id)} goes with media but has a probability of {found:.1e}: add it to `media_token_ids`",
        )
    free = {subject.seg_id, subject.processor.tokenizer.eos_token_id} & known
    _require(not free, f"{[names(token_id) for token_id in free]} must be sampled, but is among the suppressed tokens")
    return f"{len(ids)} tokens below {SUPPRESSED:.0e}"


def check_forgery(subject: Subject) -> str:
    """Check that a text which holds a placeholder is refused."""
    types = subject.model.token_types(torch.tensor(subject.encode().prompt_ids))
    ids = torch.tensor(subject.encode().prompt_ids)[types > 0].unique().tolist()
    _require(bool(ids), "token_types finds no medium in a prompt that has some")
    for token in subject.processor.tokenizer.convert_ids_to_tokens(ids):
        try:
            subject.encode(f"the {token} drum")
        except ValueError:
            continue
        raise ContractError(f"a reference that holds {token} was not refused: check `encode`")
    return f"{len(ids)} placeholders refused in a text"


@torch.no_grad()
def check_as_transformers(subject: Subject) -> str:
    """Check that the model computes what transformers' own class computes of the processor's own outputs."""
    prompt, outputs, _ = _as_stock(subject)
    expected, found = outputs.logits[0], subject.logits([prompt])[0]
    kept = torch.ones(found.size(-1), dtype=torch.bool)
    kept[subject.family.suppressed_token_ids(subject.processor, subject.model.config)] = False
    return _same([found[:, kept]], [expected[:, kept]], "the model differs from transformers' own class")


def check_media_reach(subject: Subject) -> str:
    """Check that the answer depends on the frames and on the sound, one at a time."""
    base = subject.encode()
    changes = {}
    for name, tensor in base.features.items():
        if tensor.is_floating_point() and tensor.numel() > 100:  # what towers read
            features = {**base.features, name: tensor.flip(-1) * 0.5}
            other = dataclasses.replace(base, features=features)
            changes[name] = _worst([subject.logits([other])[0][-1]], [subject.logits([base])[0][-1]])
    _require(bool(changes), "no feature of a clip is large enough to hold media: check `encode`")
    for name, change in changes.items():
        _require(change > TOLERANCE, f"other {name} change the answer by {change:.1e} only")
    return ", ".join(f"{name} by {change:.1e}" for name, change in changes.items())


def check_padded(subject: Subject) -> str:
    """Check that rows of a padded batch, at either side, are what they are alone."""
    prompts = subject.two()
    alone = subject.alone(prompts)
    right = _same(subject.logits(prompts), alone, "right-padded rows differ from the rows alone")
    left = _same(subject.logits(prompts, left=True), alone, "left-padded rows differ from the rows alone")
    return f"right {right}, left {left}"


def check_shared(subject: Subject) -> str:
    """Check that rows which share clips are what they are alone."""
    clips, index = subject.two(), [0, 0, 1, 0, 1]
    alone = subject.alone(clips)
    shared = subject.logits([clips[i] for i in index], clips, index, left=True)
    return _same(shared, [alone[i] for i in index], "rows that share clips differ from the rows alone")


def check_silence(subject: Subject) -> str | None:
    """Check that clips with and without sound share a batch, and that a silent one runs the audio tower for nothing."""
    if not subject.family.hears:
        return None
    prompts = [subject.encode(sound=sound, seed=i) for i, sound in enumerate((0, SECOND, 0, 3 * SECOND))]
    alone, index = subject.alone(prompts), [0, 0, 1, 1, 2, 2, 3, 3]
    together = _same(subject.logits(prompts), alone, "a batch with and without sound differs from its rows alone")
    rows = [prompts[i] for i in index]
    _same(subject.logits(rows, prompts, index), [alone[i] for i in index], "so do rows that share such clips")
    subject.model.zero_grad()
    subject.model(**subject.batch(prompts[:1], prompts[:1], [0])).logits.square().mean().backward()
    gradients = [p.grad for name, p in subject.model.named_parameters() if subject.is_tower(name)]
    silent = [gradient for gradient in gradients if gradient is not None and not gradient.any()]
    _require(
        bool(silent),
        "no tower ran on a clip without sound: under ZeRO-3 the other processes would wait. Check `silence`",
    )
    return f"{together}; zero gradient in {len(silent)} weights of the silent tower"


def check_kept(subject: Subject) -> str | None:
    """Check that passes over clips whose tower outputs are kept run no tower and differ in nothing."""
    if not isinstance(subject.model, TowerSharingMixin):
        return None
    sounds = (0, SECOND, 3 * SECOND)
    prompts = [subject.encode(frames=2 * i + 2, sound=sound, seed=i) for i, sound in enumerate(sounds)]
    alone, found, counts = subject.alone(prompts), [], []
    orders = [[0, 1, 2], [2, 0], [0, 0], [1, 2, 1]]
    with sharing_tower_outputs([subject.model], TowerOutputs()), _tower_calls(subject) as calls:
        for order in orders:
            clips = list(dict.fromkeys(order))
            index = [clips.index(clip) for clip in order]
            found += subject.logits([prompts[i] for i in order], [prompts[i] for i in clips], index)
            counts.append(len(calls))
    _require(counts[0] > 0, "no tower ran: check `tower_names`")
    _require(
        counts[0] == counts[-1], "the towers ran on clips whose outputs are kept: check what the model's class replaces"
    )
    expected = [alone[i] for order in orders for i in order]
    return _same(found, expected, "rows that are given kept outputs of the towers differ from the rows alone")


@contextlib.contextmanager
def _tower_calls(subject: Subject) -> Iterator[list[str]]:
    """Yield the names of the towers that run, one a call."""
    calls: list[str] = []
    handles = [
        subject.model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
        for name in subject.family.tower_names
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_generate(subject: Subject) -> str:
    """Check that generation in a padded batch with a cache is what one forward pass a token gives.

    It gives the same logits where each distinct prompt is read once.
    """
    clips, index = subject.two(), [0, 0, 1]
    expected = [_greedy(subject, clip) for clip in clips]
    rows = [clips[i] for i in index]
    inputs = subject.batch(rows, clips, index, left=True)
    options = {"max_new_tokens": NUM_STEPS, "do_sample": False, "eos_token_id": None}
    asked = {**inputs, **options, "return_dict_in_generate": True, "output_logits": True}
    with shared_media(subject.model, index):
        each = subject.model.generate(**asked)
        with prefill_once(subject.model) as prefill:
            once = subject.model.generate(**asked)
    found = each.sequences[:, inputs["input_ids"].size(1) :].tolist()
    _require(
        found == [expected[i] for i in index],
        f"generate gives {found}, one forward pass a token {[expected[i] for i in index]}: check the positions and "
        "`mm_token_type_ids` of later steps",
    )
    worst = _same(once.logits, each.logits, "logits after prompts that are read once differ")
    is_once = "once" if prefill.prompt_of_row is not None else "by every row"
    return f"{len(index)} rows of {NUM_STEPS} tokens are equal; prompts are read {is_once}, logits differ by {worst}"


@torch.no_grad()
def check_state(subject: Subject) -> str:
    """Check that the state which the head reads is after the final norm, so that `lm_head` makes the logits of it."""
    prompts = subject.two()
    inputs = subject.batch(prompts, prompts, range(2))
    states: dict[str, torch.Tensor] = {}
    hook = subject.model.get_decoder().register_forward_hook(
        lambda _module, _args, output: states.update(last=output.last_hidden_state)
    )
    logits = subject.model(**inputs).logits
    hook.remove()
    expected = subject.model.lm_head(states["last"])
    cap = getattr(subject.model.config.get_text_config(), "final_logit_softcapping", None)
    expected = expected if cap is None else torch.tanh(expected / cap) * cap
    return _same(
        [logits.clamp(min=FLOOR)], [expected.clamp(min=FLOOR)], "lm_head of the decoder's last state is not the logits"
    )


@torch.no_grad()
def check_state_layers(subject: Subject) -> str:
    """Check that a head which reads another layer gets transformers' hidden state of it, after the final norm."""
    prompt, outputs, norm = _as_stock(subject, output_hidden_states=True)
    inputs, at = subject.batch([prompt], [prompt], [0]), torch.tensor([len(prompt.prompt_ids) - 1])
    layers = range(1, len(outputs.hidden_states))
    last = len(layers)
    expected = [outputs.hidden_states[i][0, -1] if i == last else norm(outputs.hidden_states[i][0, -1]) for i in layers]
    head, found = subject.model.head(MaskHead.name), []
    hook = head.register_forward_pre_hook(lambda _module, args: found.append(args[0][0]))
    whole = head.config
    try:
        for layer in layers:
            head.config = {**whole, STATE_LAYER: layer}
            subject.model(**inputs, seg_index=at)
            head.config = {**whole, STATE_LAYER: layer - last - 1}  # the same, counted from the end
            subject.model(**inputs, seg_index=at)
    finally:
        hook.remove()
        head.config = whole
    wrong = "a head's state is not transformers' hidden state of that layer, after the final norm"
    forwards = _same(found[::2], expected, wrong)
    _same(found[1::2], expected, f"counted from the end, {wrong}")
    return f"{forwards} over {last} layers"


def check_fused(subject: Subject) -> str:
    """Check TRL's fused log-probabilities against the logits, and the gradients of a pass with everything in it.

    Every weight of the language model and of the head is trained, and with frozen towers nothing else.
    """
    subject = Subject.of(subject.family)  # the forward pass is replaced
    prompts, model = subject.two(), subject.model
    completions = [[10, 11, subject.seg_id, 12], [13, subject.seg_id]]
    inputs = subject.batch(prompts, prompts, range(2), completions)
    with torch.no_grad():
        expected = model(**inputs).logits.log_softmax(-1)[:, :-1]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not subject.is_tower(name))
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    _check_fused_alone(subject, prompts, completions, expected)
    install_head_forward(model)
    at = torch.stack([(row == subject.seg_id).nonzero()[-1, 0] for row in inputs["input_ids"]])
    labels = _labels(inputs["input_ids"], prompts, completions)
    fused = model(**inputs, labels=labels, fused_lm_head=True, seg_index=at)
    said, wanted = _of_labels(expected, labels)
    measured = _same([fused.log_probs[said]], [wanted], "fused log-probabilities differ from those of the logits")
    (-fused.log_probs[said].mean() + fused.sparse_prompt_embeddings.square().mean()).backward()
    decoder = {id(p) for p in model.get_decoder().parameters()}
    for name, parameter in model.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.any())
        if subject.is_tower(name):
            _require(not has, f"{name} lies in a frozen tower, but has a gradient")
        elif id(parameter) in decoder:
            _require(has, f"{name} of the language model has no gradient")
    head = [p for p in model.head(MaskHead.name).projector.parameters()]
    _require(all(p.grad is not None for p in head), "the head has no gradient")
    return measured


@torch.no_grad()
def _check_fused_alone(
    subject: Subject, clips: Sequence[EncodedPrompt], completions: Sequence[Sequence[int]], expected: torch.Tensor
) -> None:
    """Check the fused pass of a model whose heads are not asked, as a reference model's, with rows that share clips."""
    index = [0, 1, 0]
    rows, said = [clips[i] for i in index], [completions[i] for i in index]
    inputs = subject.batch(rows, clips, index, said)
    labels = _labels(inputs["input_ids"], rows, said)
    with shared_media(subject.model, index):
        fused = subject.model(**inputs, labels=labels, fused_lm_head=True)
    is_said, wanted = _of_labels(expected[index], labels)
    _same([fused.log_probs[is_said]], [wanted], "fused log-probabilities of rows that share clips differ")


def check_towers_learn(subject: Subject) -> str:
    """Check that gradients reach every tower through rows that share clips."""
    clips, index = subject.two(), [0, 0, 1]
    subject.model.zero_grad()
    with shared_media(subject.model, index):
        outputs = subject.model(**subject.batch([clips[i] for i in index], clips, index))
    outputs.logits.square().mean().backward()
    counts = []
    for tower in subject.family.tower_names:
        found = {n: p.grad for n, p in subject.model.named_parameters() if f".{tower}." in f".{n}."}
        reached = sum(gradient is not None and bool(gradient.any()) for gradient in found.values())
        _require(reached > 0, f"no gradient reaches the tower {tower}")
        counts.append(f"{reached} of {len(found)} in {tower}")
    subject.model.zero_grad()
    return ", ".join(counts)


CHECKS: dict[str, Check] = {
    "parts": check_parts,
    "seg": check_seg,
    "suppressed": check_suppressed,
    "forgery": check_forgery,
    "as_transformers": check_as_transformers,
    "media_reach": check_media_reach,
    "padded": check_padded,
    "shared": check_shared,
    "silence": check_silence,
    "kept": check_kept,
    "generate": check_generate,
    "state": check_state,
    "state_layers": check_state_layers,
    "fused": check_fused,
    "towers_learn": check_towers_learn,
}


def _as_stock(subject: Subject, **options: Any) -> tuple[EncodedPrompt, Any, nn.Module]:
    """Run transformers' own class on the processor's own outputs; return the prompt, its outputs and its final norm."""
    recorder = _Recorder(subject.processor)
    prompt = subject.encode(processor=recorder)
    given = {k: torch.as_tensor(v) for k, v in recorder.outputs.items() if not _is_of_objects(v)}
    stock = subject.model.stock(subject.model.config).eval()
    stock.load_state_dict(subject.model.state_dict(), strict=False)
    return prompt, stock(**given, **options), stock.get_decoder().norm


class _Recorder:
    """A processor that keeps what it returned last."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.outputs: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self._processor(*args, **kwargs)
        self.outputs = dict(outputs)
        return outputs


def _is_of_objects(value: Any) -> bool:
    """Tell what is no tensor, such as metadata of a video."""
    return not isinstance(value, torch.Tensor) and np.asarray(value).dtype.kind not in "biuf"


def _padded(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, *, left: bool
) -> dict[str, torch.Tensor]:
    """Join prompts to completions, padded at one side: `input_ids` and `attention_mask`, both (B, L)."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    padded, masks = [], []
    for row in rows:
        missing = max(map(len, rows)) - len(row)
        pads = (missing, 0) if left else (0, missing)
        padded.append(nn.functional.pad(torch.tensor(row), pads, value=pad_id))
        masks.append(nn.functional.pad(torch.ones(len(row), dtype=torch.long), pads))
    return {"input_ids": torch.stack(padded), "attention_mask": torch.stack(masks)}


def _labels(
    input_ids: torch.Tensor, rows: Sequence[EncodedPrompt], completions: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return labels (B, L) on the completions of right-padded rows."""
    labels = torch.full_like(input_ids, -100)
    for label, ids, row, said in zip(labels, input_ids, rows, completions, strict=True):
        span = slice(len(row.prompt_ids), len(row.prompt_ids) + len(said))
        label[span] = ids[span]
    return labels


def _of_labels(log_probs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where (B, L - 1) a next token has a label, and these tokens' log-probabilities of (B, L - 1, V)."""
    following = labels[:, 1:]
    is_said = following != -100
    return is_said, log_probs.gather(-1, following.clamp(min=0)[..., None])[..., 0][is_said]


@torch.no_grad()
def _greedy(subject: Subject, prompt: EncodedPrompt) -> list[int]:
    """Return greedy tokens, one forward pass without a cache for each."""
    said: list[int] = []
    for _ in range(NUM_STEPS):
        said.append(int(subject.logits([prompt.extended(said)])[0][-1].argmax()))
    return said


def _worst(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def _same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], wrong: str) -> str:
    """Compare tensors; `wrong` says what it means if they differ."""
    worst = _worst(found, expected)
    _require(worst <= TOLERANCE, f"{wrong} by {worst:.1e}, more than {TOLERANCE:.0e}")
    return f"{worst:.1e}"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)


def main(words: Sequence[str] | None = None) -> int:
    """Run all checks on a family and print a line for each; returns 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m aurora_rl.models.mllm.contract", description=__doc__)
    parser.add_argument("family", help="model_type of a family here, or mine.py:MyFamily, whose code runs")
    subject = Subject.of(load_family(parser.parse_args(words).family))
    failed = 0
    for name, check in CHECKS.items():
        try:
            measured = check(subject)
            line = "does not concern it" if measured is None else f"ok: {measured}"
        except Exception as error:  # each check is told of, whatever a family raises
            failed += 1
            kind = "" if isinstance(error, ContractError) else f"{type(error).__name__}: "
            line = f"FAILED: {kind}{error}"
        print(f"{name:>16}  {line}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks pass")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
