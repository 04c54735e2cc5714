"""Every kind of wrong input is told in one line, with exit code 2, before torch or another slow library is imported.

All command lines run in one fresh interpreter (`tests/early_run.py`), in a folder with a model, a benchmark and a clip.
"""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aurora_rl.files.output_lock import hold_output

ROOT = Path(__file__).resolve().parents[2]
SEGMENT = ["aurora-rl", "segment", "clip.mp4", "the drum", "--output_dir", "out", "--model", "models/good"]
SERVE = ["aurora-rl", "serve", "--model", "models/good"]
EXPORT = ["aurora-rl", "export", "--model", "models/good", "--to", "hf", "--output_dir", "out"]
MASKS = ["aurora-rl", "evaluate", "--predictions", "masks", "--data_root", "data", "--output_dir", "out"]
MODEL = ["aurora-rl", "evaluate", "--model", "models/good", "--data_root", "data", "--output_dir", "out"]
FOOTPRINT = ["aurora-rl", "footprint", "grpo", "--config", "grpo.yaml"]
COMPARE = ["aurora-rl", "compare", "gone", "masks"]
SFT = ["recipes/sft.py", "--config", "sft.yaml"]
GRPO = ["recipes/grpo.py", "--config", "grpo.yaml"]
EVALUATE = ["recipes/evaluate.py", "--config", "evaluate.yaml"]
INIT = ["recipes/init_tiny.py", "--data_root", "data", "--output_dir", "new"]
ENDPOINT = ["--data_root", "data", "--output", "new.jsonl", "--model", "any/name"]
GENERATE = ["data_prep/generate_cot.py", *ENDPOINT]
CORRECT = ["data_prep/correct_cot.py", *ENDPOINT, "--mistakes", "data/chains.jsonl"]
COLLECT = ["data_prep/collect_mistakes.py", "--config", "evaluate.yaml", "--output", "new.jsonl"]
TABLE = ["--data_root", "data", "--output", "table.jsonl", "--model", "models/good", "--train_split", "tran"]
CACHE = ["data_prep/cache_features.py", "--config", "cache.yaml"]
FEATURES = ["data_prep/teacher_features.py", *SFT[1:], "--teacher", "models/good", "--teacher_features", "new.st"]
SYNTHETIC = ["data_prep/make_synthetic.py", "--output_dir"]
TO_HF = ["data_prep/to_hf_dataset.py", "--config", "grpo.yaml", "--split", "val"]
CLIPS = ["--benchmark", "clips", "--data_root", "clips.csv"]
SPLITS = "test_n, test_s, test_u, train, val"

#: A name, the command line, and what its error says.
CASES = {
    "no sub-command": (["aurora-rl", "--json", "x"], "invalid choice: 'x'"),
    "unknown sub-command": (["aurora-rl", "segmnt"], "invalid choice: 'segmnt'"),
    "unknown option": ([*SEGMENT, "--outptu", "x"], "unrecognized arguments: --outptu x"),
    "former option": ([*MASKS[:4], "--dataset", "data"], "--dataset has another name now: --data_root"),
    "missing option": (["aurora-rl", "segment", "clip.mp4", "x"], "arguments are required: --model"),
    "an option for a model": ([*MASKS, "--batch_size", "2"], "--batch_size is an option for a model"),
    # trainings, before a process is launched
    "launched: unknown recipe": (["aurora-rl", "grpo", "--config", "ref_avs/grpo"], "did you mean 'ref_avs/grpo_"),
    "launched: unknown option": (
        ["aurora-rl", "grpo", "--config", "grpo.yaml", "--lerning_rate", "1"],
        "--lerning_rate 1, did you mean '--learning_rate'?",
    ),
    "launched: missing model": (
        ["aurora-rl", "sft", "--config", "sft.yaml", "--model", "models/gud"],
        "models/gud does",
    ),
    "launched: unset key": (["aurora-rl", "sft", "--config", "sft.yaml", "--model", "null"], "required: --model"),
    "launched: unknown launch": (
        ["aurora-rl", "sft", "--config", "sft.yaml", "--chains", "null", "--launch", "zero4"],
        "--launch is 'zero4': choose from cpu,",
    ),
    "launched: config of no launch": (
        ["aurora-rl", "grpo", "--config", "grpo.yaml", "--launch", "sft.yaml"],
        "sft.yaml is no config of accelerate",
    ),
    "launched: report": ([*MODEL, "--launch", "cpu", "--report", "r.html"], "--report is written by one process"),
    "launched: masks": ([*MASKS, "--split", "test_s", "--num_processes", "2"], "--num_processes is for a model"),
    "stages: missing file": (["aurora-rl", "stages", "--config", "stges.yaml"], "stges.yaml is no file of stages"),
    "recipes: unknown name": (["aurora-rl", "recipes", "show", "grpo7b"], "there is no recipe 'grpo7b'"),
    "recipes: file that exists": (
        ["aurora-rl", "recipes", "copy", "synthetic/sft", "sft.yaml"],
        "sft.yaml is there already",
    ),
    "run: unknown script": (["aurora-rl", "run", "data_prep/generate.py"], "did you mean 'data_prep/generate_cot.py'?"),
    # models
    "missing model": ([*SEGMENT[:-1], "models/goood"], "--model models/goood does not exist: models holds good/"),
    "missing model without a slash": ([*SEGMENT[:-1], "gud"], "the form organisation/name"),
    "missing model by a path": ([*SERVE[:-1], "./models/x"], "--model ./models/x does not exist: models holds"),
    "model that is a file": ([*EXPORT[:3], "data/metadata.csv", *EXPORT[4:]], "data/metadata.csv is a file"),
    "folder without a model": ([*SERVE[:-1], "data"], "data is no model: it holds neither config.json nor"),
    "adapter of a missing model": ([*SEGMENT[:-1], "models/adapter"], "an adapter of a model whose folder models/gone"),
    "missing model to score": ([*MODEL[:3], "models/gud", *MODEL[4:]], "--model models/gud does not exist"),
    "missing model to estimate": ([*FOOTPRINT, "--model", "a/b/c"], "--model a/b/c does not exist: this folder holds"),
    # configs
    "missing config": (
        [*SEGMENT, "--config", "sftt.yaml"],
        "--config sftt.yaml does not exist: this folder holds sft.",
    ),
    "config of a folder": ([*SERVE, "--config", "data"], "--config: data is no plain file but a folder"),
    "unknown key": (
        [*MODEL, "--config", "typo.yaml"],
        "typo.yaml has the unknown key 'num_frmes', did you mean 'num_f",
    ),
    "unknown key to segment": ([*SEGMENT, "--config", "typo.yaml"], "unknown key 'num_frmes'"),
    "unknown key to estimate": ([*FOOTPRINT[:-1], "typo.yaml"], "unknown key 'num_frmes'"),
    "no YAML": ([*SERVE, "--config", "broken.yaml"], "broken.yaml is no YAML"),
    "unknown option of a recipe": ([*MODEL, "--batchsize", "2"], "--batchsize 2, did you mean '--batch_size'?"),
    "no accelerate config": ([*FOOTPRINT, "--launch", "typo.yaml"], "no config of accelerate: it has no num_processes"),
    "missing accelerate config": ([*FOOTPRINT, "--launch", "x.yaml"], "--launch x.yaml does not exist"),
    # clips
    "missing clip": (
        ["aurora-rl", "segment", "clp.mp4", *SEGMENT[3:]],
        "the clip clp.mp4 does not exist: this folder holds clip.mp4",
    ),
    "clip that is none": (["aurora-rl", "segment", "sft.yaml", *SEGMENT[3:]], "cannot read the video sft.yaml"),
    "missing sound": ([*SEGMENT, "--audio", "x.wav"], "--audio x.wav does not exist"),
    "sound that is none": ([*SEGMENT, "--audio", "sft.yaml"], "cannot read the audio sft.yaml"),
    "missing frames": ([*SEGMENT, "--frames", "fames"], "--frames fames does not exist"),
    "folder without frames": ([*SEGMENT, "--frames", "data"], "data holds no image files"),
    "no reference": (["aurora-rl", "segment", "clip.mp4", *SEGMENT[4:]], "there is no reference"),
    "empty reference": ([*SEGMENT[:3], " ", *SEGMENT[4:]], "none of them may be empty"),
    # data
    "missing data root": ([*MASKS[:5], "dta", *MASKS[6:]], "--data_root dta does not exist: this folder holds data/"),
    "missing data root to score": ([*MODEL[:5], "dta", *MODEL[6:]], "--data_root dta does not exist"),
    "folder of no benchmark": (
        [*MASKS[:5], "models", *MASKS[6:], "--split", "val"],
        "no models/metadata.csv: root mus",
    ),
    "unknown split": (
        [*MASKS, "--split", "test_z"],
        f"--split: data has no split 'test_z': choose from {SPLITS}",
    ),
    "unknown split of a model": ([*MODEL, "--split", "tset_s"], "did you mean 'test_s'?"),
    "unknown split of a tool table": (["data_prep/tool_table.py", *TABLE], "did you mean 'train'?"),
    "unknown split of an endpoint's": (["data_prep/tool_table_by_endpoint.py", *TABLE], "did you mean 'train'?"),
    "unknown benchmark": ([*MODEL, "--benchmark", "refavs"], "--benchmark is 'refavs': choose from ref_avs, "),
    "missing predictions": ([*MASKS[:3], "mask", *MASKS[4:]], "--predictions mask does not exist"),
    "missing results": (["aurora-rl", "evaluate", "--results", "x.jsonl", *MASKS[4:]], "--results x.jsonl does not"),
    "missing chains": ([*MASKS, "--chains", "x.jsonl"], "--chains x.jsonl does not exist"),
    "missing dataset": (["aurora-rl", "doctor", "dta"], "the folder dta does not exist: this folder holds data/"),
    "unknown split to check": (["aurora-rl", "doctor", "data", "--split", "x"], "x"),
    "missing scores": (COMPARE, "the first evaluation gone does not exist: this folder holds"),
    "missing rows": (["aurora-rl", "compare", "masks", "masks"], "there is no masks/results.jsonl"),
    "missing scores for the card": ([*EXPORT, "--scores", "a.json"], "--scores a.json does not exist"),
    # outputs
    "taken folder": ([*SEGMENT[:5], "taken", *SEGMENT[6:]], "taken holds answer.json of an earlier run"),
    "taken export": ([*EXPORT[:-1], "taken"], "taken is not an empty folder"),
    "output of no kind": ([*COMPARE, "--output", "out.txt"], "'out.txt' does not end in .json"),
    "former output": ([*MASKS[:-2], "--output", "out.json"], "it is --output_dir now, a folder"),
    "unknown preset": ([*MASKS, "--preset", "sam"], "there is no evaluation preset 'sam': use one of refavs"),
    "unknown preset of a model": ([*MODEL, "--preset", "sam"], "there is no evaluation preset 'sam'"),
    "file in the way": ([*SEGMENT[:5], "sft.yaml/out", *SEGMENT[6:]], "sft.yaml is a file, give another folder"),
    "file in the way of scores": ([*MASKS[:-1], "sft.yaml/out"], "sft.yaml is a file"),
    "folder in the way": ([*MASKS, "--report", "data"], "--report data is a folder: give the name of a file"),
    "output of the former kind": ([*MASKS[:-2], "--output", "out.json"], "it is --output_dir now"),
    "output of a running run": ([*MODEL[:-1], "busy"], "another run writes to busy: process"),
    # addresses
    "address as a host": ([*SERVE, "--host", "http://localhost"], "--host is 'http://localhost': expected the name"),
    "port that is none": ([*SERVE, "--port", "70000"], "--port is 70000: expected the number of a port"),
    "port in words": ([*SERVE, "--port", "http"], "invalid positive value: 'http'"),
    "port that is taken": ([*SERVE, "--port", "TAKEN"], "cannot listen on 127.0.0.1, port"),
    "device that is none": ([*SERVE, "--device", "gpu"], "--device is 'gpu': expected a device such as cpu"),
    # numbers
    "number in words": ([*SEGMENT, "--max_side", "many"], "invalid positive value: 'many'"),
    "number below 1": ([*SERVE, "--batch_size", "0"], "0 is not positive"),
    "rate that is none": ([*SEGMENT, "--window", "nan"], "--window is nan: it must be a number above 0"),
    "negative length": ([*SEGMENT, "--stride", "-1"], "--stride is -1.0: it must be a number above 0"),
    "memory below 0": ([*FOOTPRINT, "--gpu_memory_gb", "-1"], "--gpu_memory_gb is -1.0: it must be a number above 0"),
    "share above 1": ([*FOOTPRINT, "--utilisation", "2"], "--utilisation is 2.0: expected a share"),
    "recipe's number": ([*MODEL, "--batch_size", "0"], "--batch_size is 0: it must be above 0"),
    "recipe's number in words": ([*FOOTPRINT, "--learning_rate", "x"], "invalid float value: 'x'"),
    "dtype": ([*EXPORT, "--dtype", "bf16"], "--dtype is 'bf16': choose from auto, bfloat16"),
    "option of the hub": ([*EXPORT[:5], "vllm", *EXPORT[6:], "--license", "mit"], "--license is an option of --to hf"),
    # recipes
    "recipe: unknown key": (
        ["recipes/sft.py", "--config", "typo.yaml"],
        "unknown key 'num_frmes', did you mean 'num_frames'?",
    ),
    "recipe: unknown option": ([*GRPO, "--betta", "1"], "unrecognized arguments: --betta 1, did you mean '--beta'?"),
    "recipe: missing config": (["recipes/sft.py", "--config", "sfd.yaml"], "did you mean 'sft.yaml'?"),
    "recipe: missing option": (["recipes/init_tiny.py", "--output_dir", "new"], "are required: --data_root"),
    "recipe: missing model": ([*SFT, "--model", "models/gud"], "--model models/gud does not exist: models holds"),
    "recipe: missing data": ([*SFT, "--data_root", "dta"], "--data_root dta does not exist: this folder holds data/"),
    "recipe: missing data in the config": (
        ["recipes/init_tiny.py", "--config", "init.yaml"],
        "init.yaml: data_root gone",
    ),
    "recipe: missing chains": (
        [*SFT, "--chains", "c.jsonl"],
        "--chains data/c.jsonl does not exist: data holds chains",
    ),
    "recipe: missing reflections": ([*SFT, "--reflections", "r.jsonl"], "--reflections r.jsonl does not exist"),
    "recipe: unknown split": ([*GRPO, "--train_split", "trian"], "--train_split: data has no split 'trian'"),
    "recipe: no manifest": ([*SFT, *CLIPS, "--data_root", "models"], "models holds no manifest: expected a manifest"),
    "recipe: unknown split of clips": ([*SFT, *CLIPS, "--train_split", "trian"], "clips.csv has no split 'trian'"),
    "recipe: manifest of another separator": ([*SFT, *CLIPS, "--data_root", "semi.csv"], "its columns by semicolons"),
    "recipe: missing manifest": ([*SFT, *CLIPS, "--data_root", "clip.csv"], "clip.csv does not exist"),
    "recipe: columns that are no names": (
        ["recipes/sft.py", "--config", "columns.yaml", *CLIPS],
        "expected names of a manifest's",
    ),
    "recipe: unknown split to compare on": ([*SFT, "--eval_split", "vall"], "did you mean 'val'?"),
    "recipe: unknown split to score": ([*EVALUATE, "--split", "x"], f"choose from {SPLITS}"),
    "recipe: unknown split to begin with": ([*INIT, "--train_split", "x"], f"choose from {SPLITS}"),
    "recipe: unknown target": ([*SFT, "--target", "chian"], "--target is 'chian': choose from teacher, chain"),
    "recipe: missing teacher": ([*SFT, "--teacher", "models/t"], "--teacher models/t does not exist"),
    "recipe: missing reward file": ([*GRPO, "--reward_funcs", "mine.py:f"], "the reward file mine.py does not exist"),
    "recipe: missing reward module": ([*GRPO, "--reward_funcs", "a.b:f"], "there is no module 'a' (of 'a.b')"),
    "recipe: missing reward": (
        [*GRPO, "--reward_funcs", "reward_fns.format:format_rewrad"],
        "did you mean 'format_reward",
    ),
    "recipe: missing environment": (
        [*GRPO, "--environment_factory", "aurora_rl.rollout.clip_tools:ClipTool"],
        "did you mean 'ClipTools'",
    ),
    "recipe: tools and a server": (
        [*GRPO, "--environment_factory", "a.py:B", "--use_vllm", "true", "--vllm_mode", "server"],
        "set vllm_mode to colocate",
    ),
    "recipe: no reward": ([*GRPO, "--reward_funcs", "format"], "write 'package.module:function'"),
    "recipe: file in the way": ([*GRPO, "--output_dir", "sft.yaml"], "sft.yaml is a file, give another folder"),
    "recipe: output of a running run": ([*GRPO, "--output_dir", "busy"], "another run writes to busy: process"),
    "recipe: no output": (EVALUATE, "there is no output_dir: name the folder for the results"),
    "recipe: address": (
        [*GRPO, "--vllm_server_base_url", "localhost"],
        "--vllm_server_base_url is 'localhost': expected htt",
    ),
    "recipe: secret in an address": (
        [*GRPO, "--vllm_server_base_url", "http://a:b@c"],
        "keys come from the environment",
    ),
    "recipe: host": ([*GRPO, "--vllm_server_host", "http://x"], "--vllm_server_host is 'http://x': expected the name"),
    "recipe: missing checkpoint": (
        [*GRPO, "--resume_from_checkpoint", "gone"],
        "--resume_from_checkpoint gone does not",
    ),
    "recipe: number": ([*GRPO, "--num_generations", "0"], "--num_generations is 0: it must be above 0"),
    "recipe: share": ([*SFT, "--replay_share", "2"], "--replay_share is 2.0: expected a share from 0 to 1"),
    "recipe: share of vLLM": (
        [*EVALUATE, "--vllm_gpu_memory_utilization", "2"],
        "--vllm_gpu_memory_utilization is 2.0: expected a share from 0 to 1",
    ),
    "recipe: room of vLLM": ([*GRPO, "--vllm_max_model_length", "0"], "length is 0: it must be above 0"),
    "recipe: a family that vLLM computes otherwise": (
        [*EVALUATE, "--use_vllm", "true", "--family", "gemma4_unified"],
        "--use_vllm: vLLM 0.31 on a CPU lets the tokens of a frame see only those before them",
    ),
    "recipe: arguments of vLLM": (
        [*EVALUATE, "--use_vllm", "true", "--vllm_engine_kwargs", "{a: 1}"],
        "vllm_engine_kwargs is '{a: 1}', which is no JSON",
    ),
    "recipe: segmenter": ([*GRPO[:2], "sam.yaml"], "sam.yaml: segmenter: checkpoint models/sam does not exist"),
    "recipe: type of a segmenter": (
        [*GRPO[:2], "sm.yaml"],
        "sm.yaml: segmenter: type is 'sm': choose from dot, edgetam, ",
    ),
    "recipe: segmenter in words": ([*INIT[:1], "--config", "dot.yaml"], "dot.yaml: segmenter is 'dot': expected keys"),
    "recipe: ablation": ([*EVALUATE, "--ablations", "muted"], "--ablations is 'muted': choose from audio_muted, "),
    "recipe: features of no teacher": ([*SFT, "--teacher_features", "new.st"], "name it by `teacher`"),
    "recipe: kept outputs of trained towers": ([*SFT, "--tower_cache", "new"], "freeze is empty, so that they are"),
    "recipe: kept outputs of no towers": (
        [*SFT, "--tower_cache", "new", "--family", "gemma4_unified"],
        "--tower_cache: Gemma4UnifiedFamily has no towers",
    ),
    # data_prep
    "data_prep: unknown option": ([*COLLECT, "--min_iuo", "1"], "--min_iuo 1, did you mean '--min_iou'?"),
    "data_prep: unknown key": ([*CACHE[:2], "typo.yaml"], "unknown key 'num_frmes', did you mean 'num_frames'?"),
    "data_prep: a training's key": ([*COLLECT[:2], "grpo.yaml"], "grpo.yaml has the unknown key 'output_dir'"),
    "data_prep: missing config": ([*TO_HF[:2], "gone.yaml"], "--config gone.yaml does not exist: this folder holds"),
    "data_prep: missing model": (
        [*COLLECT, "--model", "models/gud"],
        "--model models/gud does not exist: models holds",
    ),
    "data_prep: missing teacher": ([*FEATURES, "--teacher", "models/t"], "--teacher models/t does not exist"),
    "data_prep: no teacher": ([FEATURES[0], *SFT[1:]], "there is no teacher_features: name the file to fill"),
    "data_prep: no cache": ([*CACHE[:2], "evaluate.yaml"], "there is no embedding_cache: name the folder to fill"),
    "data_prep: missing data": ([*CACHE, "--data_root", "dta"], "--data_root dta does not exist: this folder holds"),
    "data_prep: missing chains": (
        [*FEATURES, "--chains", "c.jsonl"],
        "--chains data/c.jsonl does not exist: data holds chains",
    ),
    "data_prep: missing mistakes": ([*CORRECT[:-1], "m.jsonl"], "--mistakes m.jsonl does not exist: this folder holds"),
    "data_prep: missing gold": ([*CORRECT, "--gold", "data/g.jsonl"], "--gold data/g.jsonl does not exist: data holds"),
    "data_prep: missing file to verify": (
        ["data_prep/verify_cot.py", "data/c.jsonl", "--output", "sft.yaml"],
        "the file data/c.jsonl does not exist: data holds chains",
    ),
    "data_prep: unknown split": ([*GENERATE, "--split", "trian"], "did you mean 'train'?"),
    "data_prep: unknown split to cache": ([*CACHE, "--split", "train", "x"], f"no split 'x': choose from {SPLITS}"),
    "data_prep: unknown split to write": ([*TO_HF[:-1], "x"], f"--split: data has no split 'x': choose from {SPLITS}"),
    "data_prep: address": ([*GENERATE, "--base_url", "localhost"], "base_url is 'localhost': expected http"),
    "data_prep: secret in an address": ([*CORRECT, "--base_url", "http://a:b@c"], "keys come from the environment"),
    "data_prep: no model to ask": (GENERATE[:-2], "no model is named: say by `model` which one"),
    "data_prep: media": ([*GENERATE, "--media", "sound"], "invalid choice: 'sound'"),
    "data_prep: number": ([*GENERATE, "--max_rows", "0"], "--max_rows is 0: it must be above 0"),
    "data_prep: number for an endpoint": ([*CORRECT, "--concurrency", "0"], "concurrency is 0: it must be above 0"),
    "data_prep: number for a scene": ([*SYNTHETIC, "new", "--frames", "x"], "invalid int value: 'x'"),
    "data_prep: taken folder": ([*TO_HF, "--output_dir", "taken"], "taken is there already: name another folder"),
    "data_prep: folder of a running run": ([*TO_HF, "--output_dir", "busy"], "another run writes to busy: process"),
    "data_prep: file of a running run": ([*COLLECT[:-1], "busy.jsonl"], "another run writes to busy.jsonl: process"),
    "data_prep: folder in the way": ([*COLLECT[:-1], "data"], "--output data is a folder: give the name of a file"),
    "data_prep: file in the way": ([*SYNTHETIC, "sft.yaml/new"], "sft.yaml is a file, give another folder"),
}


@pytest.fixture(scope="module")
def said(tiny_checkpoint, tiny_benchmark, tmp_path_factory) -> dict[str, dict]:
    """What each command of `CASES` said."""
    folder = tmp_path_factory.mktemp("wrong_input")
    (folder / "models").mkdir()
    shutil.copytree(tiny_checkpoint, folder / "models" / "good")
    shutil.copytree(tiny_benchmark, folder / "data")
    (folder / "models" / "adapter").mkdir()
    (folder / "models" / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "models/gone"}')
    for name in ("masks", "taken"):
        (folder / name).mkdir()
    (folder / "taken" / "answer.json").touch()
    common = "model: models/good\ndata_root: data\n"
    texts = {
        "sft.yaml": f"{common}output_dir: new\nchains: chains.jsonl\n",
        "grpo.yaml": f"{common}output_dir: new\nuse_cpu: true\n",
        "evaluate.yaml": common,
        "init.yaml": "data_root: gone\noutput_dir: new\n",
        "sam.yaml": f"{common}segmenter: {{type: sam, checkpoint: models/sam}}\n",
        "sm.yaml": f"{common}segmenter: {{type: sm}}\n",
        "dot.yaml": "data_root: data\noutput_dir: new\nsegmenter: dot\n",
        "cache.yaml": f"{common}embedding_cache: new\nnum_generations: 4\n",
        "typo.yaml": f"{common}num_frmes: 4\n",
        "broken.yaml": "a: [\n",
        "columns.yaml": f"{common}output_dir: new\ncolumns: [reference]\n",
        "clips.csv": "video,reference,split\nclip.mp4,the drum,train\n",
        "semi.csv": "video;reference\nclip.mp4;the drum\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    write_film(folder / "clip.mp4")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        hold_output(folder / "busy", is_folder=True),
        hold_output(folder / "busy.jsonl", is_folder=False),
    ):
        port = str(taken.getsockname()[1])
        commands = [[port if word == "TAKEN" else word for word in words] for words, _ in CASES.values()]
        process = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "early_run.py")],
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=280,
        )
    assert process.returncode == 0, process.stderr
    made = {"out", "new", "out.json", "new.jsonl", "new.st"} & {path.name for path in folder.iterdir()}
    assert not made, "a command that was refused has left something behind"
    return dict(zip(CASES, json.loads(process.stdout), strict=True))


def write_film(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_told_at_once(said, case):
    words, told = CASES[case]
    result = said[case]
    assert "Traceback" not in result["err"], result["err"]
    assert result["code"] == 2, result
    assert told in result["err"], result["err"]
    assert result["out"] == ""
    assert result["err"].splitlines()[-1].startswith((words[0], Path(words[0]).name))  # argparse shows the name alone


def test_errors_of_a_clip_speak_of_no_row(said):
    for case in ("missing clip", "clip that is none", "missing sound", "sound that is none"):
        assert "row" not in said[case]["err"]
