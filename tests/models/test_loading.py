"""What is saved comes back bit by bit, whatever lies beneath, and nothing but safetensors is read."""

import dataclasses
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.files.plain import NotPlainFileError
from aurora_rl.inference.predictor import Predictor
from aurora_rl.models.checkpoint_files import CheckpointError
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.heads.segmenters.sam import SamSegmenter
from aurora_rl.models.loading import (
    LoadedModel,
    freeze,
    load_model,
    read_segmenter_config,
    saved_clip_options,
)
from aurora_rl.tasks.targets import gold_chain

SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}


@pytest.fixture
def sam_segmenter(sam_checkpoint) -> dict:
    """Config of a new `sam` mask decoder, as a recipe would give it."""
    config = SamSegmenter.from_checkpoint(sam_checkpoint).config
    return {name: config[name] for name in ("type", "image_size", "checkpoint", "sam_config")}


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Move all that is trained, and the head's buffers, away from what loading alone would give."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    for name, buffer in model.named_buffers():
        if "seg_head" in name and "original_module" not in name:
            buffer.add_(torch.randn_like(buffer) * 0.05)


def with_lora(loaded: LoadedModel, **arguments) -> PeftModel:
    return get_peft_model(loaded.model, peft_config(ModelArguments(model="", use_peft=True, **arguments), loaded))


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    expected, found = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def save(loaded: LoadedModel, model: nn.Module, folder: Path) -> str:
    """As a trainer does."""
    model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


def forward(loaded: LoadedModel, encode, sample) -> tuple[torch.Tensor, torch.Tensor]:
    batch = SFTCollator(encode, loaded.seg_token_id, gold_chain)([sample.to_row()])
    inputs = {name: batch[name] for name in batch if name not in ("labels", "gt_masks", "seg_weights")}
    with torch.no_grad():
        outputs = loaded.model.eval()(**inputs)
    return outputs.logits, outputs.mask_logits


# Whole models


def test_saved_model_comes_back_bit_by_bit(loaded, encode, train_samples, tmp_path):
    perturb(loaded.model)
    again = load_model(save(loaded, loaded.model, tmp_path))
    assert_same_weights(loaded.model, again.model)
    assert again.seg_token_id == loaded.seg_token_id
    assert again.segmenter_config == SEGMENTER
    expected, found = (forward(each, encode, train_samples[0]) for each in (loaded, again))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_saved_bfloat16_model_comes_back_in_bfloat16(loaded, tmp_path):
    perturb(loaded.model.to(torch.bfloat16))
    again = load_model(save(loaded, loaded.model, tmp_path))
    assert again.model.dtype == torch.bfloat16
    assert_same_weights(loaded.model, again.model)
    assert load_model(str(tmp_path), dtype="float32").model.dtype == torch.float32


def test_new_head_is_in_float32_beside_a_model_in_bfloat16(omni_checkpoint, sam_checkpoint):
    segmenter = {"type": "sam", "checkpoint": sam_checkpoint, "image_size": 64}
    head = load_model(omni_checkpoint, segmenter=segmenter, dtype=torch.bfloat16).model.seg_head
    assert {tensor.dtype for tensor in (*head.parameters(), *head.buffers())} == {torch.float32}
    pretrained = SamSegmenter.from_checkpoint(sam_checkpoint, image_size=64).state_dict()
    found = head.mask_decoder.state_dict()
    assert all(torch.equal(found[name], pretrained[name]) for name in pretrained)  # not rounded


def test_head_stays_in_float32_when_the_model_is_loaded_in_bfloat16(tiny_checkpoint, encode, train_samples):
    loaded = load_model(tiny_checkpoint, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.model.seg_head.parameters()} == {torch.float32}
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16
    predictor = Predictor(loaded.model, encode, loaded.seg_token_id, max_completion_length=2)
    [(_, [completion])] = predictor.predict(train_samples[:1])  # the states at [SEG] are bfloat16
    assert completion.mask_probs is None or completion.mask_probs.dtype == torch.float32


def test_loaded_model_is_in_eval_mode(loaded):
    assert not any(module.training for module in loaded.model.modules())


def test_trained_model_may_be_asked_for_its_own_mask_decoder(tiny_checkpoint):
    assert load_model(tiny_checkpoint, segmenter=SEGMENTER).segmenter_config == SEGMENTER
    assert load_model(tiny_checkpoint, segmenter={"type": "dot"}).segmenter_config == SEGMENTER


def test_trained_model_with_another_mask_decoder_is_an_error(tiny_checkpoint):
    with pytest.raises(ValueError, match="was trained with .*'width': 8.* but .*'width': 16.* is asked for: drop it"):
        load_model(tiny_checkpoint, segmenter={**SEGMENTER, "width": 16})


# Hub checkpoints


def test_whole_omni_checkpoint_loads_with_a_new_head(omni_checkpoint, loaded):
    new = load_model(omni_checkpoint, segmenter=SEGMENTER)
    expected, found = loaded.model.state_dict(), new.model.state_dict()
    assert found.keys() == expected.keys()  # no talker, no vocoder
    seg = loaded.seg_token_id
    for name in expected:
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(found[name][:seg], expected[name][:seg]), name
            assert torch.allclose(found[name][seg], expected[name][:seg].mean(0)), name
        elif not name.startswith("seg_head."):
            assert torch.equal(found[name], expected[name]), name
    assert new.model.seg_head.projector[0].weight.std().item() == pytest.approx(0.072, abs=0.005)  # as Linear draws
    assert new.seg_token_id == seg == len(new.processor.tokenizer) - 1


def test_new_sam_head_starts_from_the_pretrained_decoder(omni_checkpoint, sam_checkpoint, sam_segmenter):
    asked = dict(sam_segmenter)
    new = load_model(omni_checkpoint, segmenter=sam_segmenter)
    assert_same_weights(SamSegmenter.from_checkpoint(sam_checkpoint), new.model.seg_head.mask_decoder)
    assert len(new.segmenter_config["encoder_hash"]) == 64
    assert sam_segmenter == asked  # the caller's own config is left alone


def test_trained_sam_head_needs_no_sam_checkpoint(omni_checkpoint, sam_checkpoint, sam_segmenter, tmp_path):
    sam_segmenter["checkpoint"] = str(shutil.copytree(sam_checkpoint, tmp_path / "sam"))
    new = load_model(omni_checkpoint, segmenter=sam_segmenter)
    perturb(new.model)
    folder = save(new, new.model, tmp_path / "model")
    shutil.rmtree(tmp_path / "sam")
    again = load_model(folder, segmenter=sam_segmenter)  # the recipe may still name it
    assert_same_weights(new.model, again.model)
    assert again.segmenter_config == new.segmenter_config


def test_plain_model_without_the_head_that_a_task_needs_is_an_error(omni_checkpoint):
    with pytest.raises(ValueError, match="has no mask decoder yet: give `segmenter`"):
        load_model(omni_checkpoint, needs="masks")


def test_plain_model_loads_without_heads(omni_checkpoint):
    loaded = load_model(omni_checkpoint)
    assert loaded.heads == loaded.head_token_ids == {}
    assert not any("head" in name.split(".")[0] for name in loaded.model.state_dict() if "lm_head" not in name)
    with pytest.raises(ValueError, match="has no mask decoder"):
        _ = loaded.segmenter_config


def test_unknown_model_type_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="no family for model_type 'llama'.*'qwen2_5_omni'"):
        load_model(str(tmp_path), segmenter=SEGMENTER)


def test_vocabulary_without_room_for_seg_is_an_error(omni_checkpoint, tmp_path):
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(omni_checkpoint)
    processor = AutoProcessor.from_pretrained(omni_checkpoint)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use a checkpoint whose vocabulary is padded"):
        load_model(str(tmp_path), segmenter=SEGMENTER)


# LoRA


def test_lora_comes_back_bit_by_bit(tiny_checkpoint, loaded, encode, train_samples, tmp_path):
    model = with_lora(loaded)
    perturb(model)
    expected = forward(dataclasses.replace(loaded, model=model), encode, train_samples[0])
    again = load_model(save(loaded, model, tmp_path))
    assert isinstance(again.model, PeftModel)
    assert again.segmenter_config == SEGMENTER
    assert_same_weights(model, again.model)
    found = forward(again, encode, train_samples[0])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    with again.model.disable_adapter():
        before_training = forward(again, encode, train_samples[0])
    untouched = forward(load_model(tiny_checkpoint), encode, train_samples[0])
    assert torch.equal(before_training[0], untouched[0])
    assert torch.equal(before_training[1], untouched[1])
    assert not torch.allclose(found[0], untouched[0])
    assert not torch.allclose(found[1], untouched[1])


def test_lora_saves_the_head_and_the_vocabulary_and_nothing_frozen(loaded, tmp_path):
    model = with_lora(loaded)
    trained = {name.split(".default")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in trained if "visual" in name or "audio_tower" in name or "mlp" in name]
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in trained if ".lora_" in name}
    whole = {name.split(".modules_to_save")[0].split(".")[-1] for name in trained if ".modules_to_save" in name}
    assert adapted == {"q_proj", "v_proj"}
    assert whole == {"seg_head", "lm_head", "embed_tokens"}


@pytest.mark.parametrize("is_trainable", [True, False])
def test_lora_is_loaded_for_training_or_not(loaded, tmp_path, is_trainable):
    folder = save(loaded, with_lora(loaded), tmp_path)
    again = load_model(folder, is_trainable=is_trainable)
    assert any(parameter.requires_grad for parameter in again.model.parameters()) is is_trainable


def test_lora_over_a_plain_model_knows_its_sam_head(omni_checkpoint, sam_checkpoint, sam_segmenter, tmp_path):
    """Neither the recipe's `segmenter` nor the SAM checkpoint is needed to load it."""
    sam_segmenter["checkpoint"] = str(shutil.copytree(sam_checkpoint, tmp_path / "sam"))
    new = load_model(omni_checkpoint, segmenter=sam_segmenter)
    model = with_lora(new)
    perturb(model)
    folder = save(new, model, tmp_path / "adapter")
    shutil.rmtree(tmp_path / "sam")
    again = load_model(folder)
    assert again.segmenter_config == new.segmenter_config == read_segmenter_config(folder, None)
    found, expected = again.model.get_base_model(), model.get_base_model()
    assert_same_weights(expected.seg_head.modules_to_save, found.seg_head.modules_to_save)
    assert_same_weights(expected.model, found.model)
    assert_same_weights(expected.lm_head, found.lm_head)


def test_mask_decoder_is_told_without_reading_weights(omni_checkpoint, tiny_checkpoint, sam_checkpoint):
    asked = {"type": "sam", "image_size": 128, "checkpoint": sam_checkpoint}
    loaded = load_model(omni_checkpoint, segmenter=asked).segmenter_config
    told = read_segmenter_config(omni_checkpoint, asked)
    assert told == {name: value for name, value in loaded.items() if name != "encoder_hash"}
    assert read_segmenter_config(tiny_checkpoint, None) == SEGMENTER
    with pytest.raises(ValueError, match="has no mask decoder yet"):
        read_segmenter_config(omni_checkpoint, None)


def test_adapter_saved_again_still_knows_its_head(omni_checkpoint, tmp_path):
    new = load_model(omni_checkpoint, segmenter=SEGMENTER)
    first = load_model(save(new, with_lora(new), tmp_path / "first"))
    perturb(first.model)
    second = load_model(save(first, first.model, tmp_path / "second"))
    assert second.segmenter_config == SEGMENTER
    expected, found = first.model.get_base_model(), second.model.get_base_model()
    assert_same_weights(expected.seg_head.modules_to_save, found.seg_head.modules_to_save)


def test_adapter_with_another_mask_decoder_is_an_error(omni_checkpoint, tmp_path):
    new = load_model(omni_checkpoint, segmenter=SEGMENTER)
    folder = save(new, with_lora(new), tmp_path)
    with pytest.raises(ValueError, match="'width': 8.* but .*'width': 16"):
        load_model(folder, segmenter={**SEGMENTER, "width": 16})


def test_adapter_that_lacks_the_heads_weights_is_an_error(omni_checkpoint, tmp_path):
    new = load_model(omni_checkpoint, segmenter=SEGMENTER)
    folder = save(new, with_lora(new, lora_modules_to_save=["lm_head"]), tmp_path)
    with pytest.raises(ValueError, match="holds the weights of a mask decoder"):
        load_model(folder)


# A checkpoint that lacks weights, or holds others


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of a safetensors file."""
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights.pop(next(name for name in weights if part in name))


def reshaped(part: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights.update({next(name for name in weights if part in name): torch.zeros(3, 5)})


PARTS_OF_A_MODEL = ["seg_head.projector", "seg_head.mask_decoder", "lm_head", "embed_tokens", "visual.", "mlp.up_proj"]


@pytest.mark.parametrize("is_sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("part", PARTS_OF_A_MODEL)
def test_model_that_lacks_a_weight_or_has_it_in_another_shape_is_refused_by_name(loaded, tmp_path, part, is_sharded):
    loaded.model.save_pretrained(tmp_path, max_shard_size="100KB" if is_sharded else "1GB")
    loaded.processor.save_pretrained(tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) is is_sharded
    file = next(file for file in files if any(part in name for name in load_file(file)))
    whole = file.read_bytes()
    rewrite(file, reshaped(part))
    with pytest.raises(CheckpointError, match=rf"{re.escape(part)}.* of shape \(3, 5\), expected \("):
        load_model(str(tmp_path))
    file.write_bytes(whole)
    rewrite(file, without(part))
    with pytest.raises(CheckpointError, match=f"{tmp_path} lacks the weight .*{re.escape(part)}"):
        load_model(str(tmp_path))


def test_new_head_excuses_no_weight_but_its_own(omni_checkpoint, tmp_path):
    folder = Path(shutil.copytree(omni_checkpoint, tmp_path / "model"))
    rewrite(folder / "model.safetensors", without("mlp.up_proj"))
    with pytest.raises(CheckpointError, match=r"lacks the weight .*mlp\.up_proj"):
        load_model(str(folder), segmenter=SEGMENTER)


@pytest.mark.parametrize("part", ["seg_head.projector", "lm_head", "embed_tokens", "lora_A", "lora_B"])
def test_adapter_that_lacks_a_weight_or_has_it_in_another_shape_is_refused_by_name(loaded, tmp_path, part):
    folder = Path(save(loaded, with_lora(loaded), tmp_path))
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    rewrite(file, reshaped(part))
    with pytest.raises(CheckpointError, match=rf"holds the weight .*{part}.*\[3, 5\]"):
        load_model(str(folder))
    file.write_bytes(whole)
    rewrite(file, without(part))
    with pytest.raises(CheckpointError, match=f"{folder} lacks the weight .*{part}"):
        load_model(str(folder))


def test_damaged_weights_are_told_with_the_checkpoint(loaded, tmp_path):
    folder = Path(save(loaded, loaded.model, tmp_path))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"a file of weights in {folder} is damaged"):
        load_model(str(folder))


def test_index_that_names_a_file_elsewhere_is_refused(loaded, tmp_path):
    loaded.model.save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["lm_head.weight"] = "../other.safetensors"
    index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"names '\.\./other\.safetensors', which is not in its folder"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 5000 + "]" * 5000, '{"base_model_name_or_path": 7}'])
def test_adapter_config_of_another_form_is_refused(loaded, tmp_path, content):
    folder = Path(save(loaded, with_lora(loaded), tmp_path))
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "adapter_config.json"])
@pytest.mark.parametrize("read", [load_model, read_segmenter_config, saved_clip_options])
def test_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tiny_checkpoint, tmp_path, read, name):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(NotPlainFileError, match=f"{name} is no plain file but a pipe"):
        read(str(folder), segmenter=None) if read in (load_model, read_segmenter_config) else read(str(folder))


# Nothing runs that a checkpoint brings along


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "unpickled")


@pytest.fixture
def bomb(tmp_path) -> Bomb:
    return Bomb(tmp_path / "unpickled")


def test_pickled_weights_are_refused(omni_checkpoint, bomb, tmp_path):
    folder = Path(shutil.copytree(omni_checkpoint, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(bomb))
    with pytest.raises(OSError, match="safetensors"):
        load_model(str(folder), segmenter=SEGMENTER)
    assert not bomb.path.exists()


def test_pickled_adapter_is_refused(loaded, bomb, tmp_path):
    folder = Path(save(loaded, with_lora(loaded), tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(bomb))
    with pytest.raises(OSError, match="adapter_model.safetensors"):
        load_model(str(folder))
    assert not bomb.path.exists()


def test_code_in_a_checkpoint_is_not_run(omni_checkpoint, tmp_path):
    folder = Path(shutil.copytree(omni_checkpoint, tmp_path / "model"))
    marker = tmp_path / "imported"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    auto_map = {name: "evil.Evil" for name in ("AutoConfig", "AutoProcessor", "AutoModel", "AutoTokenizer")}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**fields, "auto_map": auto_map}))
    try:
        load_model(str(folder), segmenter=SEGMENTER)
    except ValueError as error:  # transformers refuses what it has no class of its own for
        assert "trust_remote_code" in str(error)
    assert not marker.exists()


# Freezing


def test_freeze_by_name(loaded):
    freeze(loaded.model, ["visual", "audio_tower"])
    frozen = {name for name, parameter in loaded.model.named_parameters() if not parameter.requires_grad}
    expected = {name for name, _ in loaded.model.named_parameters() if name.startswith(("visual.", "audio_tower."))}
    assert frozen == expected


def test_freeze_takes_whole_parts_of_a_name(loaded):
    freeze(loaded.model, ["mask_decoder"])  # deeper down
    frozen = {name for name, parameter in loaded.model.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.startswith("seg_head.mask_decoder.") for name in frozen)
    with pytest.raises(ValueError, match="'seg_hea'"):
        freeze(loaded.model, ["seg_hea"])


def test_freeze_works_beneath_lora(loaded):
    model = with_lora(loaded)
    freeze(model, ["seg_head"])
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".seg_head." in name)
    assert any(p.requires_grad for name, p in model.named_parameters() if ".lm_head." in name)


def test_unknown_name_to_freeze_is_an_error(loaded):
    with pytest.raises(ValueError, match="nothing to freeze is named 'vision_tower': write towers, or"):
        freeze(loaded.model, ["visual", "vision_tower"])
