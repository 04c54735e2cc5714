"""What counts as a folder, and what the checks leave alone; `tests/paths/test_wrong_input.py` has what they refuse."""

import json

import pytest

from aurora_rl.assembly import early
from aurora_rl.assembly.early import check_asked, check_command_line, check_model, means_folder
from aurora_rl.assembly.known_options import read_asked
from aurora_rl.files.output_lock import OutputInUseError, check_free, hold_output, lock_of


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        ("Qwen/Qwen2.5-Omni-3B", False),
        ("./Qwen", True),
        ("/models/sft", True),
        ("~/sft", True),
        ("outputs/demo/sft", True),
        ("outputs/", True),
        ("sft", True),
        ("outputs/sft", True),  # there is a folder outputs
    ],
)
def test_a_models_name_means_a_folder_by_its_form(tmp_path, monkeypatch, name, is_folder):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert means_folder(name) is is_folder


def test_a_model_on_the_hub_and_one_beneath_an_adapter_pass(tiny_checkpoint, tmp_path):
    check_model("Qwen/Qwen2.5-Omni-3B", name="--model")
    check_model(tiny_checkpoint, name="--model")
    for beneath in ("Qwen/Qwen2.5-Omni-3B", tiny_checkpoint):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": beneath}))
        check_model(str(tmp_path), name="--model")
    (tmp_path / "adapter_config.json").write_text("damaged")
    check_model(str(tmp_path), name="--model")  # loading it says what is wrong


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "[trackio, wandb]"])
def test_a_tracker_that_is_not_installed_is_told_with_what_to_install(
    tiny_checkpoint, tiny_benchmark, tmp_path, monkeypatch, tracker
):
    monkeypatch.setattr("aurora_rl.assembly.trackers._is_installed", lambda library: library == "trackio")
    config = tmp_path / "grpo.yaml"
    words = ["--config", str(config), "--model", tiny_checkpoint, "--data_root", str(tiny_benchmark)]
    config.write_text(f"output_dir: {tmp_path / 'out'}\nreport_to: {tracker}\n")
    with pytest.raises(ValueError, match=r"report_to.* is (wandb|tensorboard), which is not installed: pip install"):
        check_asked(read_asked("recipes/grpo.py", words))
    check_asked(read_asked("recipes/grpo.py", [*words, "--report_to", "trackio"]))


@pytest.mark.parametrize("recipe", ["sft", "grpo", "evaluate"])
def test_what_is_right_passes_and_nothing_is_made(tiny_checkpoint, tiny_benchmark, tmp_path, recipe):
    words = ["--config", f"recipes/synthetic/{recipe}.yaml", "--model", tiny_checkpoint]
    words += ["--data_root", str(tiny_benchmark), "--output_dir", str(tmp_path / "out")]
    check_asked(read_asked(f"recipes/{recipe}.py", words))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cache_features", "--config recipes/synthetic/grpo.yaml --embedding_cache OUT --model MODEL"),
        ("cache_features", "--verify --embedding_cache OUT --model MODEL --data_root gone"),
        (
            "teacher_features",
            "--config recipes/synthetic/sft.yaml --teacher_features OUT --teacher a/b --model MODEL",
        ),
        ("collect_mistakes", "--config recipes/synthetic/mistakes.yaml --output OUT --model MODEL"),
        ("generate_cot", "--output OUT --model any --chains gone.jsonl --reflections gone.jsonl"),
        ("correct_cot", "--output OUT --mistakes DATA/chains.jsonl --gold DATA/chains.jsonl"),
        ("to_hf_dataset", "--config recipes/synthetic/sft.yaml --output_dir OUT --split val test_s"),
    ],
)
def test_what_is_right_passes_in_data_prep(tiny_checkpoint, tiny_benchmark, tmp_path, script, words):
    paths = {"MODEL": tiny_checkpoint, "DATA": str(tiny_benchmark), "OUT": str(tmp_path / "out")}
    for name, path in paths.items():
        words = words.replace(name, path)
    check_asked(read_asked(f"data_prep/{script}.py", ["--data_root", str(tiny_benchmark), *words.split()]))
    assert not any(tmp_path.iterdir())


def test_help_is_left_to_the_parser():
    check_command_line("recipes/sft.py", ["--help"])


def test_of_launched_processes_one_speaks(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as left:
            check_command_line("recipes/sft.py", ["--config", "nowhere.yaml"])
        assert left.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_words_of_an_args_file_count(monkeypatch, tmp_path, capsys):
    """transformers' parser reads them from a file beside the script."""
    (tmp_path / "sft.args").write_text("--model nowhere/at/all --data_root data")
    monkeypatch.setattr(early.sys, "argv", [str(tmp_path / "sft.py")])
    with pytest.raises(SystemExit):
        check_command_line("recipes/sft.py")
    assert "--model nowhere/at/all does not exist" in capsys.readouterr().err


def test_an_output_is_free_unless_another_run_holds_it(tmp_path):
    check_free(tmp_path / "out", is_folder=True)
    assert not (tmp_path / "out").exists()
    with hold_output(tmp_path / "out", is_folder=True):
        check_free(tmp_path / "out", is_folder=True)  # by this run itself
    lock = lock_of(tmp_path / "out", is_folder=True)
    lock.touch()  # left by a run that was killed
    check_free(tmp_path / "out", is_folder=True)
    assert lock.exists()


def test_only_the_main_process_looks_whether_an_output_is_free(tiny_checkpoint, tiny_benchmark, tmp_path, monkeypatch):
    words = ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", str(tmp_path / "out")]
    asked = read_asked("recipes/sft.py", words)

    def refuse(*_args, **_options):
        raise OutputInUseError("taken")

    monkeypatch.setattr(early, "check_free", refuse)
    with pytest.raises(OutputInUseError):
        check_asked(asked)
    monkeypatch.setenv("RANK", "1")
    check_asked(asked)


ON_EXPERTS = ({"target_parameters": ["mlp.experts.gate_up_proj"]}, {"target_modules": ["q_proj", "up_proj"]})
ON_ATTENTION = {"target_modules": r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)", "target_parameters": []}


@pytest.mark.parametrize("targets", [*ON_EXPERTS, {"target_modules": r"model\.layers\.\d+\.(.*)_proj"}])
def test_lora_on_experts_is_refused_where_vllm_samples(targets, tiny_benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(early, "find_spec", lambda name: name)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    words = ["--config", "recipes/synthetic/grpo.yaml", "--model", str(adapter), "--data_root", str(tiny_benchmark)]
    words += ["--output_dir", str(tmp_path / "out")]

    def check(targets, *, use_vllm, num_experts):
        text_config = {"thinker_config": {"text_config": {"num_experts": num_experts}}}
        (base / "config.json").write_text(json.dumps({"model_type": "qwen3_omni_moe", **text_config}))
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), **targets}))
        check_asked(read_asked("recipes/grpo.py", [*words, "--use_vllm", use_vllm]))

    with pytest.raises(
        ValueError, match=r"adapts experts \(.*_proj\).*: train LoRA on the attention .*set use_vllm to"
    ):
        check(targets, use_vllm="true", num_experts=8)
    check(targets, use_vllm="false", num_experts=8)
    check(ON_ATTENTION, use_vllm="true", num_experts=8)
    if "target_modules" in targets:  # linear layers in a model without experts
        check(targets, use_vllm="true", num_experts=None)


def test_vllm_must_be_installed_where_it_samples_unless_the_run_is_only_tried(
    tiny_checkpoint, tiny_benchmark, tmp_path, monkeypatch
):
    words = ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", str(tmp_path / "out")]

    def check(*more):
        check_asked(read_asked("recipes/evaluate.py", [*words, *more]))

    monkeypatch.setattr(early, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--use_vllm: vLLM is not installed: run `make vllm`, or leave it out"):
        check("--use_vllm", "true")
    check("--use_vllm", "true", "--dry_run")
    check("--use_vllm", "false")
    monkeypatch.setattr(early, "find_spec", lambda name: name)
    check("--use_vllm", "true")
