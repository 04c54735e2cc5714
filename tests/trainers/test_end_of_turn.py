"""One rule says where a completion ends, wherever one is generated: at the tokenizer's end of turn, or at any end that
the model's generation config names.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

import aurora_rl
from aurora_rl.inference.pipeline import AuroraPipeline
from aurora_rl.inference.predictor import Predictor
from aurora_rl.models.end_of_turn import declare_ends, end_token_ids, until_end
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig

LENGTH = 6
TOKENIZER = SimpleNamespace(eos_token_id=7)


# The rule


@pytest.mark.parametrize(
    ("declared", "ends"),
    [(None, [7]), (7, [7]), (3, [7, 3]), ([3, 7], [7, 3]), ([3, 5], [7, 3, 5]), ((3,), [7, 3]), ([], [7])],
)
def test_ends_are_the_tokenizers_and_all_that_the_generation_config_names(declared: Any, ends: list[int]) -> None:
    assert end_token_ids(TOKENIZER, GenerationConfig(eos_token_id=declared)) == ends


def test_a_model_without_generation_config_ends_at_the_tokenizers() -> None:
    assert end_token_ids(TOKENIZER, None) == [7]
    with pytest.raises(ValueError, match="no token ends a completion"):
        end_token_ids(SimpleNamespace(eos_token_id=None), GenerationConfig())
    assert end_token_ids(SimpleNamespace(eos_token_id=None), GenerationConfig(eos_token_id=4)) == [4]


def test_a_completion_goes_up_to_its_first_end_which_is_part_of_it() -> None:
    ids = torch.tensor([[1, 7, 0, 0], [1, 3, 7, 2], [7, 7, 7, 7], [1, 2, 4, 5]])
    assert [row.tolist() for row in until_end(ids, [7, 3])] == [[1, 7], [1, 3], [7], [1, 2, 4, 5]]


def test_the_rule_is_written_into_the_config_of_a_model() -> None:
    config = GenerationConfig(eos_token_id=3)
    declare_ends(config, TOKENIZER)
    assert config.eos_token_id == [7, 3]
    declare_ends(config, TOKENIZER)
    assert config.eos_token_id == [7, 3]
    one = GenerationConfig()
    declare_ends(one, TOKENIZER)
    assert one.eos_token_id == 7


# The places


class Forced:
    """A logits processor that lets each row say the ids that it is given, and no other."""

    def __init__(self, rows: Sequence[Sequence[int]], prompt_length: int) -> None:
        self.rows, self.prompt_length = rows, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(self.rows):
            forced[row, ids[min(input_ids.size(1) - self.prompt_length, len(ids) - 1)]] = 0.0
        return forced


def force(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    """Whatever this model generates from now on are these completions, as far as it does not end them before."""
    plain = model.generate

    def generate(**inputs: Any) -> torch.Tensor:
        forced = Forced(rows, inputs["input_ids"].size(1))
        return plain(**{**inputs, "logits_processor": LogitsProcessorList([forced])})

    model.generate = generate


@pytest.fixture(params=["another special token", "a word"])
def second(request: pytest.FixtureRequest, loaded: LoadedModel) -> int:
    """An end that the tokenizer does not call its end of turn, named by the generation config."""
    tokenizer = loaded.processor.tokenizer
    token_id = tokenizer.pad_token_id if request.param.startswith("another") else tokenizer("bell").input_ids[0]
    loaded.model.generation_config.eos_token_id = [token_id, tokenizer.eos_token_id]
    return token_id


@pytest.fixture
def said(second: int, loaded: LoadedModel) -> list[list[int]]:
    """Four completions: ended by either token, by one after the other, and cut at the length limit."""
    tokenizer = loaded.processor.tokenizer
    first, word = tokenizer.eos_token_id, tokenizer("drum").input_ids[0]
    seg = loaded.seg_token_id
    return [
        [word, seg, first, word, word, word],
        [word, seg, second, word, seg, word],
        [seg, second, first, word, word, word],
        [word, seg, word, word, word, word],
    ]


ENDS_AT = [3, 3, 2, 6]


def test_evaluation_and_mistakes_end_them_so(said, loaded, encode, train_samples) -> None:
    force(loaded.model, said)
    predictor = Predictor(loaded.model, encode, loaded.seg_token_id, max_completion_length=LENGTH)
    found = predictor.generate([encode(sample) for sample in train_samples[:4]])
    assert [ids.tolist() for ids in found] == [ids[:end] for ids, end in zip(said, ENDS_AT, strict=True)]


def test_the_pipeline_of_segment_and_the_page_ends_them_so(said, second, loaded, encode, train_samples) -> None:
    pipeline = AuroraPipeline(loaded, max_completion_length=LENGTH)
    force(loaded.model, [said[1]])
    sample = train_samples[0]
    answer = pipeline(video=list(sample.frame_paths), audio=sample.audio_path, text=sample.reference)
    [window] = answer.references[0].windows
    assert window.text == loaded.processor.tokenizer.decode(said[1][:3], skip_special_tokens=True)


@pytest.mark.parametrize("masked", [False, True])
def test_rollouts_and_the_trainers_masks_end_them_so(make_grpo, rollout, said, loaded, train_samples, masked) -> None:
    trainer = make_grpo(
        script=None,
        model=loaded.model,
        samples=train_samples[:2],
        max_completion_length=LENGTH,
        mask_truncated_completions=masked,
        mask_loss_on="all",
    )
    force(trainer.model, said)
    assert set(trainer.eos_token_ids) == set(end_token_ids(trainer._tokenizer, loaded.model.generation_config))
    batch = rollout(trainer)
    for ids, end, row, mask in zip(said, ENDS_AT, batch["completion_ids"], batch["completion_mask"], strict=True):
        is_cut_off = end == LENGTH
        assert row[:end].tolist() == ids[:end]
        assert mask.tolist() == ([0] * LENGTH if masked and is_cut_off else [1] * end + [0] * (LENGTH - end))
    assert batch["mask_weights"].tolist() == [1.0, 1.0, 1.0, 0.0 if masked else 1.0]
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [0.25]


def test_a_loaded_model_has_the_rule_in_its_own_config(tiny_checkpoint: str, tmp_path: Path) -> None:
    """As `generate` sees it where it is called by others, and who loads what is saved from it."""
    loaded = load_model(tiny_checkpoint)
    tokenizer = loaded.processor.tokenizer
    loaded.model.generation_config.eos_token_id = tokenizer.pad_token_id
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == tokenizer.pad_token_id
    again = load_model(str(tmp_path)).model.generation_config
    assert again.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]


def test_no_other_file_of_the_package_reads_the_tokenizers_end() -> None:
    """Training targets end with it, tiny models are made with it, and the contract of families asks whether it is free.

    Nothing else decides where a completion ends.
    """
    root = Path(aurora_rl.__file__).parent
    found = {
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if "tokenizer.eos_token" in path.read_text()
    }
    makers = {path for path in found if re.fullmatch(r"models/mllm/\w+/tiny.py", path)}
    assert found - makers == {"models/end_of_turn.py", "models/collate.py", "models/mllm/contract.py"}


@pytest.mark.parametrize("name", ["eos_token_id", "stop_token_ids", "stop", "stop_strings", "ignore_eos"])
def test_options_that_end_completions_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"generation_kwargs has {name}, .*one rule"):
        AuroraGRPOConfig("out", use_cpu=True, bf16=False, generation_kwargs={name: [5]})
