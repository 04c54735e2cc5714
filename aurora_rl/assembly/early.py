"""Checks of a script's command line before torch is imported: paths, splits, rewards, addresses, numbers.

Recipes and the scripts of `data_prep/` call `check_command_line` before their slow imports; the commands of `aurora-rl`
that take a recipe's options call `check_asked`. No check uses the network: a name on the hub passes.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.data_sets import entry_options, read_entries
from aurora_rl.assembly.known_options import SAVED_MASKS, Asked, check_value, names_of, options_of, read_asked
from aurora_rl.assembly.object_names import check_object
from aurora_rl.assembly.sampling import read_engine_kwargs
from aurora_rl.assembly.trackers import check_trackers
from aurora_rl.data.clip_sources import is_hub_name, is_table
from aurora_rl.data.splits import SPLIT_READERS, list_splits
from aurora_rl.endpoint.addresses import check_address, check_host
from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.files.existing import (
    UnusablePathError,
    check_existing,
    check_file,
    check_folder,
    check_writable_file,
    check_writable_folder,
    did_you_mean,
    entries,
)
from aurora_rl.files.output_lock import check_free
from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.models.expert_targets import expert_targets, refusal
from aurora_rl.models.mllm import MLLM_FAMILIES
from aurora_rl.models.state_layer import check_state_layer, state_layer_of
from aurora_rl.tasks.targets import TARGETS

UNUSABLE = 2  # exit code, the same as argparse's
#: Names of weights' dtypes, as torch has them.
DTYPES = ("auto", "bfloat16", "float16", "float32", "float64", "half", "float", "double")
#: Files that make a folder a model or an adapter.
MODEL_FILES = ("config.json", "adapter_config.json")
TRAIN_SPLIT = {"train_split": DataArguments.train_split}
TRAINING_SPLITS = {**TRAIN_SPLIT, "eval_split": None}
#: Keys that name the splits which a script reads, with their defaults.
SPLIT_KEYS: dict[str, Mapping[str, str | None]] = {
    "recipes/sft.py": TRAINING_SPLITS,
    "recipes/grpo.py": TRAINING_SPLITS,
    "recipes/init_tiny.py": TRAIN_SPLIT,
    "recipes/evaluate.py": {"split": None},
    "recipes/agents.py": {"split": "test"},
    "data_prep/cache_features.py": TRAINING_SPLITS,
    "data_prep/teacher_features.py": TRAINING_SPLITS,
    "data_prep/collect_mistakes.py": TRAIN_SPLIT,
    "data_prep/pass_rates.py": TRAIN_SPLIT,
    "data_prep/generate_cot.py": {"split": "train"},
    "data_prep/tool_table.py": TRAIN_SPLIT,
    "data_prep/tool_table_by_endpoint.py": TRAIN_SPLIT,
    "data_prep/correct_cot.py": {},  # the mistakes name theirs
    "data_prep/to_hf_dataset.py": {"split": None},
    SAVED_MASKS: {},
}
#: Values that a script needs although its parser does not, with what they name.
NEEDED = {
    "recipes/evaluate.py": {"output_dir": "the folder for the results"},
    "data_prep/cache_features.py": {"embedding_cache": "the folder to fill"},
    "data_prep/teacher_features.py": {"teacher_features": "the file to fill", "teacher": "the model that fills it"},
}
#: Scripts that read several data sets, which `data` names.
SEVERAL_SETS = ("recipes/sft.py", "recipes/grpo.py", "recipes/evaluate.py", "data_prep/teacher_features.py")
READ_FILES = ("reflections", "mistakes", "gold")
WRITTEN_FOLDERS = ("output_dir", "embedding_cache", "tower_cache", "mask_cache", "media_cache", "frame_cache")
WRITTEN_FILES = ("teacher_features", "output")
#: Outputs that one run at a time may write: of most scripts, and of those that only read the usual ones' names.
HELD = ("output_dir", "output")
OTHER_HELD = {"data_prep/teacher_features.py": ("teacher_features",)}
POSITIVE = (
    "fps",
    "num_frames",
    "min_pixels",
    "max_pixels",
    "batch_size",
    "max_completion_length",
    "lora_r",
    "memory_limit_gb",
    "teacher_batch_size",
    "num_generations",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "reward_timeout_s",
    "vllm_request_timeout_s",
    "vllm_max_model_length",
    "vllm_gpu_memory_utilization",
    "clips_per_shard",
    "max_rows",
    "max_cost",
    "max_failures_in_a_row",
    "max_step_chars",
    "max_side",
)
SHARES = ("replay_share", "lora_dropout", "vllm_gpu_memory_utilization")  # from 0 to 1


def check_command_line(script: str, words: Sequence[str] | None = None) -> None:
    """Check a script's command line; an error ends the program with a line on stderr and exit code 2.

    Args:
        script: path of the script, such as `recipes/sft.py`.
        words: words of the command line, by default the program's own.
    """
    words = [*_words_of_args_file(), *sys.argv[1:]] if words is None else list(words)
    if {"-h", "--help"} & set(words):
        return  # the parser itself answers
    try:
        check_asked(read_asked(script, words))
    except (OSError, ValueError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other launched processes find the same error
            print(f"{script}: {error}", file=sys.stderr)
        raise SystemExit(UNUSABLE) from None


def check_asked(asked: Asked) -> None:
    """Check everything that a run would read and write; nothing is made and no model is opened.

    Raises:
        ValueError: if a value is invalid; the error names the option or key, the value and what was expected.
        OSError: if a file cannot be read.
    """
    check_numbers(asked)
    _check_addresses(asked)
    check_models(asked)
    _check_data(asked)
    _check_names(asked)
    if asked.get("report_to") is not None:
        check_trackers(asked.get("report_to"), name=asked.called("report_to"))
    _check_resumed(asked)
    _check_outputs(asked)
    if asked.get("use_vllm") and not asked.get("dry_run") and find_spec("vllm") is None:
        raise ValueError(f"{asked.called('use_vllm')}: vLLM is not installed: run `make vllm`, or leave it out")


def check_numbers(asked: Asked) -> None:
    """Check the numbers that are sizes, counts or shares; errors as in `check_asked`."""
    for name in (*POSITIVE, *SHARES):
        value = asked.get(name)
        if value is not None and name in POSITIVE and not value > 0:
            raise ValueError(f"{asked.called(name)} is {value}: it must be above 0")
        if value is not None and name in SHARES and not 0 <= value <= 1:
            raise ValueError(f"{asked.called(name)} is {value}: expected a share from 0 to 1")


def check_models(asked: Asked) -> None:
    """Check the models that are folders; errors as in `check_asked`."""
    for name in ("model", "teacher"):
        if asked.get(name) is not None and not _asks_endpoint(asked):
            check_model(str(asked.get(name)), name=asked.called(name))
    check_family(asked.get("family"), name=asked.called("family"))
    check_dtype(asked.get("dtype", "auto"), name=asked.called("dtype"))
    if asked.get("segmenter") is not None:
        _check_segmenter(asked.get("segmenter"), name=asked.called("segmenter"))
    if asked.get("heads") is not None:
        _check_heads(asked.get("heads"), name=asked.called("heads"))
    if asked.get("use_vllm"):
        _check_vllm(asked, Path(str(asked.get("model"))))
    if asked.get("tower_cache") is not None:
        _check_tower_cache(asked, Path(str(asked.get("model"))))


def _check_tower_cache(asked: Asked, model: Path) -> None:
    """Refuse to keep outputs of towers that are trained, or of a family that has none."""
    name, adapter = asked.called("tower_cache"), _fields(model / "adapter_config.json")
    config = _fields(Path(str(adapter.get("base_model_name_or_path", model))) / "config.json")
    family = MLLM_FAMILIES.get(str(asked.get("family") or config.get("model_type")))
    if family is not None and family.tower_cache_refusal is not None:
        raise ValueError(f"{name}: {family.__name__} {family.tower_cache_refusal}: drop it")
    is_training = asked.script in ("recipes/sft.py", "recipes/grpo.py")
    if is_training and not (adapter or asked.get("use_peft") or asked.get("freeze")):
        raise ValueError(
            f"{name} keeps what frozen towers compute, but freeze is empty, so that they are trained: set "
            "`freeze: [towers]`, or drop tower_cache"
        )


def _check_vllm(asked: Asked, model: Path) -> None:
    """Refuse where vLLM samples a family that it computes otherwise, and LoRA on experts, also of a new adapter."""
    adapter = _fields(model / "adapter_config.json")
    config = _fields(Path(str(adapter.get("base_model_name_or_path", model))) / "config.json")
    family = MLLM_FAMILIES.get(str(asked.get("family") or config.get("model_type")))
    if family is not None and family.engine_refusal is not None:
        raise ValueError(f"{asked.called('use_vllm')}: {family.engine_refusal}: leave it out, the model then samples")
    name = f"{asked.called('model')} {model}"
    if not adapter and asked.get("use_peft"):
        adapter = {"target_modules": family.lora_target_modules} if family else {}
        name = asked.called("use_peft")
    if targets := expert_targets(adapter, config):
        raise ValueError(f"{name} {refusal(targets)}")
    read_engine_kwargs(asked.get("vllm_engine_kwargs"))


def check_model(model: str, *, name: str) -> None:
    """Check that a model exists if its name means a folder, and that an adapter's base model does.

    Args:
        model: folder of the model, or its name on the hub.
        name: name of the option or key, for the error.

    Raises:
        UnusablePathError: if there is no such model; the error names what is there instead.
    """
    if not os.path.isdir(model):
        if not means_folder(model):
            return
        if os.path.exists(model):
            raise UnusablePathError(f"{name} {model} is a file: give the folder of a model")
        try:
            check_folder(model, name=name)
        except UnusablePathError as error:
            raise UnusablePathError(f"{error} (a name on the hub has the form organisation/name)") from None
    if not any(os.path.exists(os.path.join(model, file)) for file in MODEL_FILES):
        raise UnusablePathError(
            f"{name} {model} is no model: it holds neither {' nor '.join(MODEL_FILES)}, but {entries(model)}"
        )
    if base := _base_model(Path(model)):
        check_model(base, name=f"{name} {model} is an adapter of a model whose folder")


def check_family(family: str | None, *, name: str) -> None:
    """Check that a family is one from here, or that its file or module defines it; errors as in `check_asked`."""
    if family is None or family in MLLM_FAMILIES:
        return
    if ":" not in family:
        known = f"choose from {', '.join(MLLM_FAMILIES)}{did_you_mean(family, MLLM_FAMILIES)}"
        raise ValueError(f"{name} is {family!r}: {known}, or write 'path/to/file.py:Name' for one of your own")
    check_object(family, name=name, what="family")


def _check_segmenter(config: Any, *, name: str) -> None:
    if not isinstance(config, dict):
        raise ValueError(f"{name} is {config!r}: expected keys of a YAML file, such as {{type: dot, width: 32}}")
    _check_known(config.get("type"), names_of("segmenter"), name=f"{name}: type")
    check_state_layer(state_layer_of(config), name=name)
    if isinstance(config.get("checkpoint"), str):
        check_model(config["checkpoint"], name=f"{name}: checkpoint")


def _check_heads(configs: Any, *, name: str) -> None:
    if not isinstance(configs, dict) or not all(isinstance(config, dict) for config in configs.values()):
        raise ValueError(
            f"{name} is {configs!r}: expected the config of each head by its name, such as {{boxes: {{type: dot}}}}"
        )
    for head, config in configs.items():
        _check_known(head, names_of("head"), name=name)
        check_state_layer(state_layer_of(config), name=f"{name}: {head}")


def check_dtype(dtype: str, *, name: str) -> None:
    """Check the name of weights' dtype; a ValueError names those that there are."""
    _check_known(str(dtype), DTYPES, name=name)


def _check_known(value: Any, known: Iterable[str], *, name: str) -> None:
    if value not in (known := list(known)):
        raise ValueError(f"{name} is {value!r}: choose from {', '.join(known)}{did_you_mean(str(value), known)}")


def means_folder(model: str) -> bool:
    """Return whether a model's name means a folder, by its form: names on the hub are organisation/name.

    >>> means_folder("./sft"), means_folder("outputs/demo/sft"), means_folder("facebook/sam2")
    (True, True, False)
    """
    has_form_of_hub = model.count("/") == 1 and not model.startswith(("/", ".", "~")) and not model.endswith("/")
    return not has_form_of_hub or os.path.isdir(os.path.dirname(model))


def _base_model(folder: Path) -> str | None:
    """Return an adapter's base model; None for another model."""
    base = _fields(folder / "adapter_config.json").get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _fields(path: Path) -> dict[str, Any]:
    """Read the fields of a model's config; empty without one. Loading reports a damaged file later."""
    try:
        fields = parse_json(read_text_file(path))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def check_benchmark(benchmark: str, *, name: str) -> None:
    """Check that a benchmark is one from here, or that its file or module defines the loader; errors as above."""
    if ":" in benchmark:
        check_object(benchmark, name=name, what="loader")
    elif benchmark not in SPLIT_READERS:
        known = f"choose from {', '.join(SPLIT_READERS)}{did_you_mean(benchmark, SPLIT_READERS)}"
        raise ValueError(f"{name} is {benchmark!r}: {known}, or write 'path/to/mine.py:load' for a loader of your own")


def check_splits(
    benchmark: str,
    root: str | Path,
    splits: Sequence[str],
    *,
    name: str,
    columns: Mapping[str, str] | None = None,
) -> None:
    """Check that a benchmark's folder has some splits.

    Args:
        benchmark: name of the benchmark, a key of `data.splits.SPLIT_READERS`.
        root: folder of the benchmark.
        splits: names of the splits.
        name: name of the option or key, for the error.
        columns: a manifest's own names of columns by the usual ones.

    Raises:
        ValueError: if a split is missing; the error names the existing ones.
    """
    there = list_splits(benchmark, root, columns)
    for split in splits:
        if split not in there:
            hint = did_you_mean(split, there)
            raise ValueError(f"{name}: {root} has no split {split!r}: choose from {', '.join(there)}{hint}")


def _check_columns(asked: Asked) -> None:
    columns = asked.get("columns")
    if columns is None:
        return
    if not isinstance(columns, dict) or not all(isinstance(text, str) for pair in columns.items() for text in pair):
        raise ValueError(
            f"{asked.called('columns')} is {columns!r}: expected names of a manifest's columns by their names here, "
            "in YAML as columns: {reference: caption}"
        )


def _check_data(asked: Asked) -> None:
    """Check the data set of a run, or each of several; errors as in `check_asked`."""
    if asked.get("data") is None:
        _check_data_set(asked)
        return
    if asked.script not in SEVERAL_SETS:
        raise ValueError(f"{asked.called('data')}: {asked.script} reads one data set: give its benchmark and data_root")
    for number, entry in enumerate(read_entries(asked.get("data"), name=asked.called("data"))):
        place = f"{asked.called('data')}[{number}]"
        known = {name: option for name, option in options_of(asked.script).items() if name in entry}
        for name, option in known.items():
            check_value(entry[name], option, name=f"{place}: {name}")
        own = {name: value for name, value in entry.items() if name in ("split", "target", "preset")}
        values = {**asked.values, **entry_options(entry, asked.values), **own}
        of_entry = dataclasses.replace(asked, values=values, from_config=asked.from_config | set(entry), config=place)
        check_numbers(of_entry)
        _check_data_set(of_entry)
        check_object(str(of_entry.get("task", DataArguments.task)), name=f"{place}: task", what="task")
        for name in set(WRITTEN_FOLDERS) - {"output_dir"}:
            if entry.get(name) is not None:
                check_writable_folder(entry[name], name=f"{place}: {name}")


def _check_data_set(asked: Asked) -> None:
    root = str(asked.get("data_root"))
    benchmark = asked.get("benchmark", DataArguments.benchmark)
    check_benchmark(benchmark, name=asked.called("benchmark"))
    if asked.get("verify") and not asked.get("drop_damaged"):
        return  # of a cache alone
    if ":" not in benchmark:  # a loader of one's own is handed whatever it understands, and names its own splits
        is_of_hub = benchmark == "clips" and is_hub_name(root)
        if not is_of_hub:
            may_be_file = benchmark == "clips" or (benchmark == "ref_avs" and root.endswith(".csv"))
            (check_existing if may_be_file else check_folder)(root, name=asked.called("data_root"))
        _check_columns(asked)
    # The splits of a data set of `datasets` are told when it is opened, which takes seconds, or the network.
    if ":" not in benchmark and not (benchmark == "clips" and is_table(root)):
        keys = SPLIT_KEYS[asked.script]
        for name, default in ({"split": None} if asked.get("split") else keys).items():
            splits = _as_list(asked.get(name, default))
            check_splits(benchmark, root, splits, name=asked.called(name), columns=asked.get("columns"))
    makes_chains = _asks_endpoint(asked)  # a stage's config may name the very files that are made
    if asked.get("chains") is not None and not makes_chains:
        folder = Path(root).parent if os.path.isfile(root) else Path(root)
        check_file(folder / asked.get("chains"), name=asked.called("chains"))
    for name in READ_FILES:
        if asked.get(name) is not None and not (makes_chains and name == "reflections"):
            check_file(asked.get(name), name=asked.called(name))


def _check_names(asked: Asked) -> None:
    task = str(asked.get("task", DataArguments.task))
    check_object(task, name=asked.called("task"), what="task")
    if asked.get("target") is not None and task == DataArguments.task:  # another task's class is not run for a check
        _check_known(asked.get("target"), TARGETS, name=asked.called("target"))
    if asked.get("teacher_features") is not None and asked.get("teacher") is None:
        raise ValueError(f"{asked.called('teacher_features')} is a file of a teacher's features: name it by `teacher`")
    for ablation in _as_list(asked.get("ablations")):
        _check_known(ablation, names_of("ablations"), name=asked.called("ablations"))
    for spec in _as_list(asked.get("reward_funcs")):
        check_object(str(spec), name=asked.called("reward_funcs"), what="reward")
    if asked.get("environment_factory") is not None:
        name = asked.called("environment_factory")
        if asked.get("use_vllm") and asked.get("vllm_mode") == "server":
            raise ValueError(f"{name} calls tools, whose answers a vLLM server is not sent: set vllm_mode to colocate")
        check_object(str(asked.get("environment_factory")), name=name, what="environment")


def _check_resumed(asked: Asked) -> None:
    checkpoint = asked.get("resume_from_checkpoint")
    if checkpoint is not None and str(checkpoint).lower() not in ("true", "false"):
        check_folder(str(checkpoint), name=asked.called("resume_from_checkpoint"))


def _check_addresses(asked: Asked) -> None:
    check_address(asked.get("vllm_server_base_url"), name=asked.called("vllm_server_base_url"))
    check_host(asked.get("vllm_server_host"), name=asked.called("vllm_server_host"))
    if _asks_endpoint(asked):
        names = [field.name for field in dataclasses.fields(EndpointArguments)]
        EndpointArguments(**{name: asked.get(name) for name in names if asked.get(name) is not None})
        if asked.get("model") is None and asked.get("gold") is None:
            raise ValueError("no model is named: say by `model` which one the endpoint shall answer with")


def _check_outputs(asked: Asked) -> None:
    for name, what in NEEDED.get(asked.script, {}).items():
        if asked.get(name) is None:
            raise ValueError(f"there is no {name}: name {what}")
    for name in WRITTEN_FOLDERS:
        if asked.get(name) is not None:
            check_writable_folder(asked.get(name), name=asked.called(name))
    for name in WRITTEN_FILES:
        if asked.get(name) is not None:
            check_writable_file(asked.get(name), name=asked.called(name))
    if os.environ.get("RANK", "0") != "0":
        return  # the main process may hold the output already, for all of them
    for name in OTHER_HELD.get(asked.script, HELD):
        if asked.get(name) is not None:
            check_free(asked.get(name), is_folder=name == "output_dir")
    if asked.script == "data_prep/to_hf_dataset.py" and os.path.exists(asked.get("output_dir")):
        raise ValueError(f"{asked.get('output_dir')} is there already: name another folder, or delete it")


def _asks_endpoint(asked: Asked) -> bool:
    """Whether a script asks an endpoint for chains: `model` is a name there, and chains are made, not read."""
    return "base_url" in options_of(asked.script)


def _as_list(value: Any) -> list[Any]:
    """Return a list of the values of a YAML key that holds one value or several."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _words_of_args_file() -> list[str]:
    """Read the words that transformers' parser adds from the file with the script's name and suffix `.args`."""
    file = Path(sys.argv[0]).with_suffix(".args")
    return file.read_text().split() if file.is_file() else []
