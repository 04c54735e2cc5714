"""Every family that can share prompts computes what it computes of rows apart; the others say why they cannot."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models import packed_attention, shared_prefix
from aurora_rl.models.grounding import install_head_forward, shared_media
from aurora_rl.models.mllm import FAMILIES, MLLMFamily, get_family
from aurora_rl.models.mllm.contract import SECOND, Subject
from aurora_rl.models.packed_attention import IMPLEMENTATION
from aurora_rl.models.packed_layout import PackedLayout, pack
from aurora_rl.models.shared_prefix import enable, packed_row, reason_against
from tests.models.packed_attention.flash_on_cpu import flash_on_cpu

REFUSED = ("qwen3_5", "qwen3_5_moe", "gemma4", "gemma4_unified")
#: Whose prompt each of six rows has, and its completion.
GROUP = [0, 0, 1, 1, 2, 0]
COMPLETIONS = [[5, 6, 7, 8, 9], [7], [9, 8, 7], [], [4, 4, 4, 4], [3, 2]]
NUM_TOKENS = 5


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a pass over the rows leaves: (B, C) log-probabilities and entropies, (B, D) states, the router's loss."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    states: torch.Tensor
    router_loss: torch.Tensor | None


class Rows:
    """Six completions of three prompts, of different lengths in every respect, as the trainer pads them."""

    def __init__(self, subject: Subject, prompts: Sequence[Any]) -> None:
        self.subject, self.model = subject, subject.model
        self.width = max(len(prompt.prompt_ids) for prompt in prompts)
        self.ids = torch.full((len(GROUP), self.width + NUM_TOKENS), subject.pad_id)
        self.mask = torch.zeros_like(self.ids)
        for row, (group, completion) in enumerate(zip(GROUP, COMPLETIONS, strict=True)):
            sequence = prompts[group].prompt_ids + completion
            here = slice(self.width - len(prompts[group].prompt_ids), self.width + len(completion))
            self.ids[row, here], self.mask[row, here] = torch.tensor(sequence), 1
        has_media = bool(prompts[0].features)
        self.media = subject.family.collate_features([prompt.features for prompt in prompts]) if has_media else {}
        # The last token of each row: the prompt's where the completion is empty.
        self.last = self.width - 1 + torch.tensor([len(completion) for completion in COMPLETIONS])

    def options(self) -> dict[str, Any]:
        has_experts = hasattr(self.model.config.get_text_config(), "num_experts")
        return {**self.media, "fused_lm_head": True, **({"output_router_logits": True} if has_experts else {})}

    def plain(self) -> Scores:
        labels = self.ids.masked_fill(self.mask == 0, -100)
        labels[:, : self.width] = -100
        with shared_media(self.model, GROUP):
            outputs, states = self._run(input_ids=self.ids, attention_mask=self.mask, labels=labels)
        of_rows = states[torch.arange(len(GROUP)), self.last]
        values = outputs.log_probs[:, -NUM_TOKENS:], outputs.entropy[:, -NUM_TOKENS:]
        return Scores(*values, of_rows, outputs.aux_loss)

    def shared(self, change: Callable[[PackedLayout], PackedLayout] = lambda layout: layout) -> Scores:
        layout = change(pack(self.ids, self.mask, NUM_TOKENS, GROUP))
        with shared_media(self.model, [0, 1, 2]), packed_row(self.model, layout):
            outputs, states = self._run(**layout.inputs(self.ids))
        values = (layout.completions(each, NUM_TOKENS) for each in (outputs.log_probs, outputs.entropy))
        return Scores(*values, states[0, layout.places_of(self.last)], outputs.aux_loss)

    def _run(self, **inputs: Any) -> tuple[Any, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        hook = self.model.get_decoder().register_forward_hook(
            lambda _module, _args, output: kept.update(states=output.last_hidden_state)
        )
        outputs = self.model(**inputs, **self.options())
        hook.remove()
        return outputs, kept["states"]

    def gradients(self, scores: Scores) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        loss = sum(
            (values * torch.randn(values.shape, generator=generator)).sum()
            for values in (scores.log_probs, scores.states)
        )
        self.model.zero_grad()
        (loss + (0 if scores.router_loss is None else scores.router_loss)).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def is_refused(family: type[MLLMFamily]) -> bool:
    return family.model_types[0] in REFUSED


@pytest.fixture(
    scope="module", params=[f for f in FAMILIES if not is_refused(f)], ids=lambda family: family.model_types[0]
)
def rows(request: pytest.FixtureRequest) -> Rows:
    subject = Subject.of(request.param())
    add_fused_lm_head(subject.model, temperature=0.7, outputs=("log_probs", "entropy"))
    install_head_forward(subject.model)
    enable(subject.model)
    subject.model.train()
    # Many frames in small pictures: time is then the longest of the three axes of their positions.
    frames = subject.encode("the bell is near", frames=12, size=(48, 96), sound=3 * SECOND, seed=1)
    return Rows(subject, [subject.encode(), frames, subject.encode("nothing", sound=0, seed=2)])


@pytest.fixture
def checkpointing(rows: Rows) -> Any:
    rows.model.gradient_checkpointing_enable({"use_reentrant": False})
    yield
    rows.model.gradient_checkpointing_disable()


def test_scores_states_and_gradients_are_those_of_rows_apart(rows: Rows) -> None:
    assert reason_against(rows.model) is None
    plain, shared = rows.plain(), rows.shared()
    assert_close(shared, plain)
    assert_same_gradients(rows, rows.gradients(shared), rows.gradients(plain))


def assert_close(shared: Scores, plain: Scores, atol: float = 1e-5) -> None:
    torch.testing.assert_close(shared.log_probs, plain.log_probs, atol=atol, rtol=0)
    torch.testing.assert_close(shared.entropy, plain.entropy, atol=atol, rtol=0)
    torch.testing.assert_close(shared.states, plain.states, atol=atol, rtol=0)
    assert (shared.router_loss is None) is (plain.router_loss is None)
    if plain.router_loss is not None:  # experts are balanced over the same tokens
        torch.testing.assert_close(shared.router_loss, plain.router_loss, atol=atol, rtol=0)


def assert_same_gradients(rows: Rows, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(gradient.norm() for gradient in theirs.values())
    for name, gradient in theirs.items():
        if gradient.norm() > 1e-4 * largest:
            assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_checkpointing_runs_each_layer_again_with_the_same_layout(rows: Rows, checkpointing: None) -> None:
    shared = rows.shared()
    other = pack(rows.ids[:2], rows.mask[:2], NUM_TOKENS, GROUP[:2])
    with torch.no_grad(), shared_media(rows.model, [0]), packed_row(rows.model, other):
        pass  # what is on between forward and backward pass does not matter
    ours = rows.gradients(shared)
    rows.model.gradient_checkpointing_disable()
    assert_same_gradients(rows, ours, rows.gradients(rows.plain()))


def test_a_merge_of_two_parts_is_computed_again_by_checkpointing(
    rows: Rows, checkpointing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU where copies of a prompt would be large."""
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_: "merged")
    with flash_on_cpu():
        ours = rows.gradients(rows.shared())
    rows.model.gradient_checkpointing_disable()
    assert_same_gradients(rows, ours, rows.gradients(rows.plain()))


#: A layout that is wrong by one position, in each of its parts that a decoder reads.
WRONG: dict[str, Callable[[PackedLayout], PackedLayout]] = {
    "completions begin at their prompt's last position": lambda layout: dataclasses.replace(
        layout, step=(layout.step - 1).clamp(min=0)
    ),
    "prompts are one position late": lambda layout: dataclasses.replace(layout, place=(layout.place - 1).clamp(min=0)),
    "branches do not read the last shared token": lambda layout: dataclasses.replace(
        layout, groups=tuple(dataclasses.replace(group, shared=group.shared - 1) for group in layout.groups)
    ),
    "labels are one token late": lambda layout: dataclasses.replace(layout, branch_start=layout.branch_start - 1),
}


@pytest.mark.parametrize("part", [name for name in WRONG if "shared token" not in name])
@torch.no_grad()
def test_a_layout_that_is_wrong_by_one_position_shows(rows: Rows, part: str) -> None:
    difference = rows.shared(WRONG[part]).log_probs - rows.plain().log_probs
    assert difference.abs().max() > 1e-2


@torch.no_grad()
def test_prompts_without_media_count_their_tokens(rows: Rows) -> None:
    encode = rows.subject.encode
    words = Rows(rows.subject, [encode(text, frames=0) for text in ("the drum", "the bell is near", "nothing")])
    assert_close(words.shared(), words.plain())


@torch.no_grad()
def test_in_half_precision_the_scores_differ_by_rounding(rows: Rows) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        difference = rows.shared().log_probs - rows.plain().log_probs
    assert difference.abs().mean() < 0.05


@torch.no_grad()
def test_other_batches_are_computed_as_before(rows: Rows) -> None:
    with_ours = rows.plain()
    rows.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        assert_close(with_ours, rows.plain(), atol=0.0)
        with pytest.raises(RuntimeError, match="call `enable` first"):
            rows.shared()
    finally:
        enable(rows.model)


def test_the_name_of_the_attention_is_not_saved(rows: Rows) -> None:
    assert rows.model.config.get_text_config()._attn_implementation == IMPLEMENTATION
    assert IMPLEMENTATION not in rows.model.config.to_json_string()


@pytest.mark.parametrize("family", [f for f in FAMILIES if is_refused(f)], ids=lambda family: family.model_types[0])
def test_a_decoder_that_cannot_share_says_why(family: type[MLLMFamily]) -> None:
    reason = reason_against(Subject.of(family()).model)
    assert reason is not None and ("attend both ways" in reason or "layers of" in reason)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("layer_types", ["full_attention", "sliding_attention"], "layers of sliding_attention"),
        ("use_bidirectional_attention", "vision", "attend both ways"),
        ("_attn_implementation_internal", "flash_attention_2", "only sdpa reads a packed row"),
        ("attention_dropout", 0.1, "set disable_dropout to true"),
    ],
)
def test_each_reason_against_it_is_found(field: str, value: Any, reason: str) -> None:
    model = Subject.of(get_family("qwen3_vl")).model
    assert reason_against(model) is None
    setattr(model.config.get_text_config(), field, value)
    assert reason in str(reason_against(model))


def test_a_family_without_the_common_mixins_is_left_alone() -> None:
    model = Subject.of(get_family("qwen3_vl")).model
    model.get_decoder().__class__ = type(
        "Strict", (type(model.get_decoder()),), {"forward": lambda self, input_ids: None}
    )
    assert "make it of MLLMMixin" in str(reason_against(model))


def test_dropout_of_an_adapter_is_a_reason_too() -> None:
    model = Subject.of(get_family("qwen3_vl")).model
    model.get_decoder().layers[0].lora_dropout = nn.Dropout(0.05)
    assert "dropout" in str(reason_against(model))
    model.get_decoder().layers[0].lora_dropout.p = 0.0
    assert reason_against(model) is None
    assert shared_prefix.FULL_ATTENTION == "full_attention"
