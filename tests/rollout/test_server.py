"""A real `vllm serve`, started by the documented command: what it samples is the policy's, and how its death is taken.

A test that kills the server leaves the next one to start it again, so those stand at the end.
"""

import contextlib
import copy
import dataclasses
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from peft import get_peft_model
from trl import TrlParser

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import EncodedPrompt
from aurora_rl.rollout.export import export_for_vllm
from aurora_rl.rollout.weights import engine_weights
from aurora_rl.scripts.grpo import main

if "CI" not in os.environ:  # there, its absence is an error
    pytest.importorskip("vllm")
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from aurora_rl.rollout.chat_request import MEDIA_IO_OPTIONS, chat_request
from aurora_rl.rollout.client import AuroraVLLMClient, ServerCompletions, VLLMServerError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
#: How far vLLM's kernels may be from transformers', in log-probability; wrong media or weights are far beyond.
ROUNDING = 1e-4
STARTUP_S = 400.0


class Server:
    """`vllm serve` of one directory; started when it is needed and not there."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self.process: subprocess.Popen | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, without waiting for it."""
        if self.process is None:
            variables, command = documented_command(self.folder, self.port)
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
                stdout=self.log.open("a"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        give_up = time.monotonic() + STARTUP_S
        while time.monotonic() < give_up and self.process is not None and self.process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.url}/health", timeout=10).ok:
                    return
            time.sleep(0.5)
        pytest.fail(f"vllm serve did not start:\n{self.log.read_text()[-10_000:]}")

    def signal(self, number: int) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it and its workers the hard way."""
        with contextlib.suppress(ProcessLookupError):  # somebody has done it already
            self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.process = None


def documented_command(folder: Path, port: int) -> tuple[dict[str, str], list[str]]:
    """Environment and command of docs/vllm.md for a CPU, with this directory, port and interpreter."""
    text = (ROOT / "docs/vllm.md").read_text()
    block = re.search(r"<!-- run by: tests/rollout/test_server.py -->\n```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    words = shlex.split(block[1].replace("\\\n", " "))
    start = words.index("vllm")
    command = [str(folder) if word == "outputs/engine" else str(port) if word == "8000" else word for word in words]
    vllm = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    return dict(word.split("=", 1) for word in words[:start]), vllm + command[start + 1 :]


@pytest.fixture(scope="module")
def the_server(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = export_for_vllm(load_model(tiny_checkpoint), tmp_path_factory.mktemp("engine"))
    server = Server(folder, tmp_path_factory.mktemp("log") / "server.log")
    yield server
    server.kill()


@pytest.fixture
def server(the_server: Server) -> Iterator[Server]:
    """A server that runs; what it logs during the test is shown where the test fails."""
    the_server.start()
    the_server.wait()
    size = the_server.log.stat().st_size
    yield the_server
    print(the_server.log.read_bytes()[size:].decode(errors="replace")[-10_000:])


def connect(server: Server, **options: Any) -> AuroraVLLMClient:
    options = {"request_timeout_s": 120.0, "max_retries": 2, "backoff_s": 0.1, "group_port": 0, **options}
    return AuroraVLLMClient(base_url=server.url, connection_timeout=STARTUP_S, **options)


@pytest.fixture
def prompts(encode: SampleEncoder, loaded: LoadedModel, train_samples: list[AVSample]) -> dict[str, EncodedPrompt]:
    """Clips whose sound is an audio part, ones where it lies between the frames or is missing, and text alone."""
    separate = [encode(sample).prompt for sample in train_samples[:3]]
    between = [encode(dataclasses.replace(sample, use_audio_in_video=True)).prompt for sample in train_samples[:3]]
    silent = [encode(dataclasses.replace(sample, audio_path=None)).prompt for sample in train_samples[:3]]
    question = [{"role": "user", "content": [{"type": "text", "text": "the left one"}]}]
    text = loaded.family.encode(loaded.processor, question, waveform=None, fps=2.0)
    return (
        {f"separate {i}": p for i, p in enumerate(separate)}
        | {f"between {i}": p for i, p in enumerate(between)}
        | {f"silent {i}": p for i, p in enumerate(silent)}
        | {"text": text}
    )


@pytest.fixture
def sampling(loaded: LoadedModel) -> dict[str, Any]:
    suppressed = loaded.family.multimodal_token_ids(loaded.model.config)
    return {"max_tokens": 12, "temperature": 1.0, "logprobs": 0, "logit_bias": dict.fromkeys(suppressed, -100.0)}


def generate(client: AuroraVLLMClient, prompts: dict[str, EncodedPrompt], sampling: dict, n: int = 2):
    seeds = [100 * index for index in range(len(prompts))]
    return client.generate_prompts([p.engine for p in prompts.values()], n=n, sampling=sampling, seeds=seeds)


def differences(
    completions: ServerCompletions, loaded: LoadedModel, prompts: dict[str, EncodedPrompt]
) -> dict[str, float]:
    """By prompt: the largest difference of the server's log-probabilities to the model's."""
    n = len(completions.completion_ids) // len(prompts)
    found = {}
    for index, (name, prompt) in enumerate(prompts.items()):
        rows = range(index * n, (index + 1) * n)
        pairs = [(completions.completion_ids[row], completions.logprobs[row]) for row in rows]
        found[name] = max(difference(loaded, prompt, ids, logprobs) for ids, logprobs in pairs)
    return found


def difference(loaded: LoadedModel, prompt: EncodedPrompt, ids: list[int], logprobs: list[list[float]]) -> float:
    sequence = torch.tensor([prompt.prompt_ids + ids])
    with torch.no_grad():
        output = loaded.model(input_ids=sequence, attention_mask=torch.ones_like(sequence), **prompt.features)
    expected = output.logits[0, len(prompt.prompt_ids) - 1 : -1].float().log_softmax(-1)
    expected = expected.gather(1, torch.tensor(ids)[:, None])[:, 0]
    return (expected - torch.tensor([token[0] for token in logprobs])).abs().max().item()


def change_weights(loaded: LoadedModel, *, towers: bool) -> None:
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if towers or not name.startswith(loaded.family.tower_names):
                parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))


def push(client: AuroraVLLMClient, loaded: LoadedModel, *, towers: bool) -> None:
    client.update_named_params(metadata(loaded, towers=towers), weights(loaded, towers=towers))
    client.reset_prefix_cache()


def weights(loaded: LoadedModel, *, towers: bool) -> Iterator[tuple[str, torch.Tensor]]:
    return engine_weights(loaded.model, loaded.family, towers=towers)


def metadata(loaded: LoadedModel, *, towers: bool) -> list[tuple[str, str, list[int]]]:
    return [(name, str(w.dtype).removeprefix("torch."), list(w.shape)) for name, w in weights(loaded, towers=towers)]


@pytest.mark.parametrize("num_samples", [1_000, 20_001, 160_000])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 40])
def test_vllm_decodes_what_was_sent_bit_for_bit(prompts, num_frames, num_samples):
    rng = np.random.default_rng(num_frames)
    frames = rng.integers(0, 256, (num_frames, 62, 90, 3), dtype=np.uint8)
    waveform = rng.uniform(-1, 1, num_samples).astype(np.float32)
    for name in ("separate 0", "between 0"):
        media = {"video": [(frames, {})], "audio": [(waveform, 16_000)]}
        engine = dataclasses.replace(prompts[name].engine, media=media)
        parts = [part for message in chat_request(engine)["messages"] for part in message["content"]]
        urls = {part["type"]: part[part["type"]]["url"] for part in parts if part["type"] != "text"}
        video = urls["video_url"].removeprefix("data:").split(";base64,", 1)
        decoded, _ = VideoMediaIO(ImageMediaIO(), **MEDIA_IO_OPTIONS["video"]).load_base64(*video).media
        assert np.array_equal(decoded, frames)
        sound = urls.get("audio_url", urls["video_url"]).removeprefix("data:").split(";base64,", 1)
        samples, rate = AudioMediaIO().load_base64(*sound)
        assert rate == 16_000 and np.array_equal(samples, waveform)


def test_of_a_tied_model_the_server_samples_from_the_policy(server, loaded, prompts, sampling, tmp_path):
    for config in (loaded.model.config, loaded.model.config.text_config):
        config.tie_word_embeddings = True
    loaded.model.tie_weights()
    # What is served is then the very same: head and embeddings stand apart in every export.
    exported = export_for_vllm(loaded, tmp_path / "engine") / "config.json"
    assert json.loads(exported.read_text()) == json.loads((server.folder / "config.json").read_text())
    adapter = peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded)
    adapter.modules_to_save = ["seg_head", "lm_head"]
    policy = dataclasses.replace(loaded, model=get_peft_model(copy.deepcopy(loaded.model), adapter).eval())
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lm_head.modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    client = connect(server)
    client.init_communicator("cpu")
    push(client, policy, towers=True)
    completions = generate(client, prompts, sampling)
    assert max(differences(completions, policy, prompts).values()) < ROUNDING
    assert max(differences(completions, loaded, prompts).values()) > 100 * ROUNDING  # control: one tensor for both


def test_the_server_reads_the_prompts_and_has_the_log_probs_of_the_policy(server, loaded, prompts, sampling):
    client = connect(server)
    client.init_communicator("cpu")
    push(client, loaded, towers=True)
    completions = generate(client, prompts, sampling)
    assert completions.prompt_ids == [prompt.prompt_ids for prompt in prompts.values()]
    assert max(differences(completions, loaded, prompts).values()) < ROUNDING

    # The control: another clip under the same text.
    media = {
        name: dataclasses.replace(p, engine=dataclasses.replace(p.engine, media=prompts[f"{name[:-1]}2"].engine.media))
        for name, p in prompts.items()
        if name.endswith("0")
    }
    swapped = generate(client, media, sampling)
    assert swapped.prompt_ids == [prompt.prompt_ids for prompt in media.values()]
    assert min(differences(swapped, loaded, media).values()) > 100 * ROUNDING


def test_a_seed_decides_what_is_sampled(server, prompts, sampling):
    client = connect(server)
    engine = prompts["separate 0"].engine

    def sample(*seeds: int) -> list[list[int]]:
        return client.generate_prompts([engine] * len(seeds), n=2, sampling=sampling, seeds=seeds).completion_ids

    first, second = sample(1, 50), sample(1, 50)
    assert first == second
    assert len({tuple(ids) for ids in first}) == 4
    assert sample(50)[0] == first[2]  # whatever else is asked for at the same time
    assert sample(1)[1] == sample(2)[0]  # the second completion of a seed is the first of the next


def test_suppressed_tokens_are_never_sampled(server, loaded, prompts, sampling):
    client = connect(server)
    free = generate(client, prompts, sampling, n=8).completion_ids
    frequent = {ids[0] for ids in free}
    suppressed = sampling | {"logit_bias": dict.fromkeys(frequent, -100.0)}
    found = generate(client, prompts, suppressed, n=8).completion_ids
    assert not frequent & {token for ids in found for token in ids}


def test_pushed_weights_are_the_ones_that_sample(server, loaded, prompts, sampling):
    client = connect(server)
    client.init_communicator("cpu")
    for towers in (True, False):  # as a run does: all of them the first time
        change_weights(loaded, towers=towers)
        before = differences(generate(client, prompts, sampling), loaded, prompts)
        assert min(before.values()) > 100 * ROUNDING
        size = server.log.stat().st_size
        push(client, loaded, towers=towers)
        assert max(differences(generate(client, prompts, sampling), loaded, prompts).values()) < ROUNDING
        without = set(re.findall(r"(\w+): Failed to load weights", server.log.read_bytes()[size:].decode()))
        assert not without - {"SinusoidsPositionEmbedding", "MRotaryEmbedding", "RotaryEmbedding"}  # they have none


@pytest.mark.parametrize("broken_off", ["between tensors", "before the first"])
def test_a_broken_off_update_changes_nothing_and_the_next_trainer_takes_over(
    broken_off, server, loaded, prompts, sampling
):
    client = connect(server)
    client.init_communicator("cpu")
    push(client, loaded, towers=True)
    before = generate(client, prompts, sampling)
    change_weights(loaded, towers=False)
    if broken_off == "between tensors":
        half = iter(list(weights(loaded, towers=False))[:20])
        with pytest.raises(VLLMServerError):  # the server misses the rest
            client.update_named_params(metadata(loaded, towers=False), ends_with_an_error(half))
    else:
        client._start_weight_update()
        client.close_communicator()
    assert generate(client, prompts, sampling) == before

    successor = connect(server)
    successor.init_communicator("cpu")
    push(successor, loaded, towers=False)
    assert max(differences(generate(successor, prompts, sampling), loaded, prompts).values()) < ROUNDING


def ends_with_an_error(tensors: Iterator[Any]) -> Iterator[Any]:
    yield from tensors
    raise ConnectionError("the trainer has lost its other processes")


def test_a_refused_request_shows_what_the_server_says(server, prompts, sampling):
    with pytest.raises(VLLMServerError, match="status 400.*temperature"):
        generate(connect(server), prompts, sampling | {"temperature": -1.0})


def test_a_server_that_is_stuck_is_given_up_and_used_again_when_it_goes_on(server, prompts, sampling):
    client = connect(server, request_timeout_s=2.0)
    server.signal(signal.SIGSTOP)
    with pytest.raises(VLLMServerError, match="no answer within 2 s"):
        generate(client, prompts, sampling)
    server.signal(signal.SIGCONT)
    assert len(generate(connect(server), prompts, sampling).completion_ids) == 2 * len(prompts)


#: Kills the server in the second step, if it is told which.
DEADLY_REWARD = """
import os, signal

def deadly_reward(prompts, completions, completion_ids, trainer_state, **columns):
    if trainer_state.global_step == 1 and "SERVER_TO_KILL" in os.environ:
        os.killpg(int(os.environ["SERVER_TO_KILL"]), signal.SIGKILL)
    return [float(ids[0] % 7) for ids in completion_ids]
"""


def run_recipe(
    server: Server, model: str, data_root: Path, reward: Path, output_dir: Path, *options: str
) -> list[dict]:
    """Three steps of recipes/grpo.py in this process; what it logged."""
    types = typing.get_type_hints(main)
    types.pop("return")
    words = ["--config", str(ROOT / "recipes/synthetic/grpo.yaml"), "--model", model, "--data_root", str(data_root)]
    words += ["--output_dir", str(output_dir), "--reward_funcs", f"{reward}:deadly_reward", "--reward_weights", "1.0"]
    words += shlex.split(
        "--max_steps 3 --save_strategy steps --save_steps 1 --eval_strategy no --per_device_train_batch_size 4 "
        "--num_generations 2 --max_completion_length 6 --warmup_steps 0 --learning_rate 1e-3 --use_vllm true "
        f"--vllm_mode server --vllm_server_base_url {server.url} --vllm_group_port 0 --vllm_request_timeout_s 120"
    )
    main(*TrlParser(types.values()).parse_args_and_config([*words, *options]))
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return [line for line in state["log_history"] if "loss" in line]


def test_a_run_one_step_off_policy_learns_from_what_the_policy_before_has_sampled(
    server, tiny_checkpoint, tiny_benchmark, tmp_path
):
    reward = tmp_path / "letters.py"
    reward.write_text(DEADLY_REWARD)
    ahead = "--one_step_off_policy true --vllm_importance_sampling_mode token_truncate --profile_steps 1"
    log = run_recipe(server, tiny_checkpoint, tiny_benchmark, reward, tmp_path / "run", *ahead.split())
    assert [line["sampling/lag_steps"] for line in log] == [0, 1, 1]
    differences = [line["sampling/sampling_logp_difference/max"] for line in log]
    assert differences[0] < 10 * ROUNDING < differences[2]  # groups of equal rewards may teach the first step nothing
    parts = (tmp_path / "run/profile/parts.md").read_text()
    assert float(re.search(r"weight sync \| ([\d.]+)", parts)[1]) > 0


def test_a_run_ends_with_its_server_and_goes_on_with_the_next(
    server, tiny_checkpoint, tiny_benchmark, tmp_path, monkeypatch
):
    reward = tmp_path / "deadly.py"
    reward.write_text(DEADLY_REWARD)
    arguments = (server, tiny_checkpoint, tiny_benchmark, reward)
    unbroken = run_recipe(*arguments, tmp_path / "unbroken")

    monkeypatch.setenv("SERVER_TO_KILL", str(server.process.pid))
    with pytest.raises(VLLMServerError, match=f"{server.url}.*--resume_from_checkpoint true"):
        run_recipe(*arguments, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]

    monkeypatch.delenv("SERVER_TO_KILL")
    server.kill()
    server.start()
    server.wait()
    resumed = run_recipe(*arguments, tmp_path / "run", "--resume_from_checkpoint", "true")
    assert [line["step"] for line in resumed] == [1, 2, 3]
    for line, expected in zip(resumed, unbroken, strict=True):
        assert line["reward"] == expected["reward"]
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3, abs=1e-6)
    assert len({line["reward"] for line in unbroken}) > 1


def test_a_server_that_dies_ends_the_wait_for_completions_and_for_weights(server, loaded, prompts, sampling):
    client = connect(server)
    client.init_communicator("cpu")
    long = sampling | {"max_tokens": 700, "ignore_eos": True}

    def deadly() -> Iterator[tuple[str, torch.Tensor]]:
        for index, item in enumerate(weights(loaded, towers=True)):
            if index == 10:
                server.kill()
            yield item

    with ThreadPoolExecutor(1) as executor:
        sampled = executor.submit(generate, connect(server), prompts, long, n=16)
        while not requests_running(server):
            time.sleep(0.01)
        with pytest.raises(VLLMServerError, match="/update_weights.*--resume_from_checkpoint true"):
            client.update_named_params(metadata(loaded, towers=True), deadly())
        with pytest.raises(VLLMServerError, match="no connection.*3 attempts in.*--resume_from_checkpoint true"):
            sampled.result()


def requests_running(server: Server) -> bool:
    metrics = requests.get(f"{server.url}/metrics", timeout=10).text
    return re.search(r"^vllm:num_requests_running\{.*\} [1-9]", metrics, re.MULTILINE) is not None


#: Six rows a process and groups of four: the second of three prompts belongs to both processes.
TWO_RANKS = shlex.split(
    "-m accelerate.commands.launch --config_file accelerate_configs/zero3.yaml --num_processes 2 --mixed_precision no "
    "--main_process_port 0 tests/rollout/deadly_server_grpo.py"
)
TWO_RANKS_OPTIONS = shlex.split(
    "--config recipes/synthetic/grpo.yaml --seed 1 --max_steps 5 --eval_strategy no --warmup_steps 0 --use_peft true "
    "--learning_rate 1e-2 --per_device_train_batch_size 6 --num_generations 4 --max_completion_length 12 "
    "--reward_funcs tests/trainers/faulty_grpo.py:letters_reward --reward_weights 1 --use_cpu false "
    "--ddp_backend gloo --bf16 false --use_vllm true --vllm_mode server --vllm_group_port 0"
)


@pytest.mark.multiprocess
def test_two_ranks_share_a_server_and_both_end_by_its_death(the_server, tiny_checkpoint, tiny_benchmark, tmp_path):
    the_server.start()  # and is waited for by the trainer
    command = [sys.executable, *TWO_RANKS, str(the_server.process.pid), *TWO_RANKS_OPTIONS]
    command += ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", str(tmp_path)]
    command += ["--vllm_server_base_url", the_server.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environment["OMP_NUM_THREADS"] = "1"
    with (tmp_path / "stderr").open("w") as stderr:
        launched = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr)
    try:
        while the_server.process.poll() is None and launched.poll() is None:
            time.sleep(0.2)
        launched.wait(timeout=240)
    finally:
        launched.terminate()
        the_server.kill()
    last_words = (tmp_path / "stderr").read_text()[-20000:]
    assert launched.returncode == 1, last_words
    log = [line for line in json.loads((tmp_path / "log.json").read_text()) if "loss" in line]
    assert [line["step"] for line in log] == [1, 2]
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-3 for line in log)
    assert log[0]["grad_norm"] > 0  # the second update brought other weights than the first

    for what, message in (("update", "/update_weights"), ("completions", "no connection.*6 attempts")):
        said = [(tmp_path / f"{what}_{rank}").read_text() for rank in (0, 1)]
        assert said[0] == said[1]
        assert re.search(rf"{message}.*--resume_from_checkpoint true", said[0])
    assert said[0] in last_words.rpartition("Root Cause")[2]
