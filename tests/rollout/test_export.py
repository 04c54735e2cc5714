"""What vLLM loads can be made of every kind of checkpoint, and is a checkpoint itself."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoConfig, AutoTokenizer

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.cli import main
from aurora_rl.models.loading import load_model
from aurora_rl.rollout.export import export_for_vllm
from aurora_rl.tasks.prompts import SEG_TOKEN

SEGMENTER = {"type": "dot", "image_size": 64, "width": 16}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "omni_checkpoint"])
def test_every_layout_gives_the_full_one(kind, request, tmp_path):
    loaded = load_model(request.getfixturevalue(kind), segmenter=SEGMENTER if kind == "omni_checkpoint" else None)
    folder = export_for_vllm(loaded, tmp_path / "engine")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5OmniForConditionalGeneration"]
    assert config["enable_audio_output"] is False and "segmenter" not in config["thinker_config"]
    assert {name.split(".")[0] for name in weights(folder)} == {"thinker"}
    assert not any("seg_head" in name for name in weights(folder))


def test_the_vocabulary_keeps_its_padded_size_and_knows_seg(loaded, tmp_path):
    folder = export_for_vllm(loaded, tmp_path)
    size = loaded.model.config.text_config.vocab_size
    assert AutoConfig.from_pretrained(folder).thinker_config.text_config.vocab_size == size
    assert weights(folder)["thinker.lm_head.weight"].shape[0] == size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(SEG_TOKEN) == loaded.seg_token_id < size
    assert len(tokenizer) <= size


def test_it_loads_again_as_a_plain_model(loaded, tmp_path):
    again = load_model(str(export_for_vllm(loaded, tmp_path)), segmenter=SEGMENTER)
    assert again.seg_token_id == loaded.seg_token_id
    for name, weight in again.model.state_dict().items():
        if not name.startswith("seg_head."):
            assert torch.equal(weight, loaded.model.state_dict()[name]), name


def test_an_adapter_is_merged(loaded, tiny_checkpoint, tmp_path):
    loaded.model.config._name_or_path = tiny_checkpoint
    model = get_peft_model(loaded.model, peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    loaded.processor.save_pretrained(tmp_path / "adapter")
    found = weights(export_for_vllm(load_model(str(tmp_path / "adapter")), tmp_path / "engine"))
    merged = model.merge_and_unload().state_dict()
    assert found.keys() == {f"thinker.{name}" for name in merged if not name.startswith("seg_head.")}
    for name, weight in found.items():
        assert_close(weight, merged[name.removeprefix("thinker.")])


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "omni_checkpoint"])
def test_the_command_exports_any_checkpoint(kind, request, tmp_path, capsys):
    options = ["--to", "vllm", "--output_dir", str(tmp_path / "engine")]
    assert main(["export", "--model", request.getfixturevalue(kind), *options]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "engine")
    assert "thinker.lm_head.weight" in weights(tmp_path / "engine")


def test_the_command_says_what_is_missing(tmp_path, capsys):
    options = ["--to", "vllm", "--output_dir", str(tmp_path / "engine")]
    assert main(["export", "--model", str(tmp_path / "nowhere"), *options]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_weights_may_stay_out(loaded, tmp_path):
    folder = export_for_vllm(loaded, tmp_path, weights=False)
    assert (folder / "config.json").exists() and (folder / "tokenizer.json").exists()
    assert not list(folder.glob("*.safetensors"))
