"""A real `vllm serve` of a random model of bytes, held to the schema by structured outputs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aurora_rl.scripts.generate_cot import main

if "CI" not in os.environ:  # there, its absence is an error
    pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

STARTUP_S = 400.0
#: A random model may write what it likes, as long as it needs no judgement: letters, and what JSON is made of.
ALPHABET = 'abcdefghijklmnopqrstuvwxyz {}":,_-'
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, in the alphabet of GPT-2's byte-pair encoding, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def url(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, log = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("log") / "server.log"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--served-model-name", "random"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "8192", "--max-num-seqs", "4"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(server: subprocess.Popen, health: str, log: Path) -> None:
    give_up = time.monotonic() + STARTUP_S
    while time.monotonic() < give_up and server.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(health, timeout=10).ok:
                return
        time.sleep(0.5)
    pytest.fail(f"vllm serve did not start:\n{log.read_text()[-10_000:]}")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(url: str, root: Path, out: Path, tokenizer: PreTrainedTokenizerFast, *options: str) -> int:
    allowed = [*tokenizer(ALPHABET)["input_ids"], tokenizer.eos_token_id]
    common = ["--data_root", str(root), "--num_frames", "1", "--output", str(out)]
    common += ["--model", "random", "--base_url", url]
    common += ["--media", "none", "--allow_unnamed", "--max_step_chars", "40", "--max_tokens", "600"]
    return main([*common, "--extra_body", json.dumps({"allowed_token_ids": allowed}), *options])


def test_a_real_server_is_held_to_the_schema_and_its_chains_are_kept(url, make_rows, tokenizer, tmp_path):
    # The first row alone: its category is the only one that the schema allows, so a random model answers right.
    assert generate(url, make_rows(9), tmp_path / "chains.jsonl", tokenizer, "--max_rows", "1") == 0
    (record,) = read_lines(tmp_path / "chains.jsonl")
    assert (record["row"], record["category"], record["generator"]) == (0, "drum", "random")
    assert record["answer"] == "the target is the drum. It is [SEG]."
    assert sorted(record["steps"]) == ["listen", "look", "read"]
    assert all(0 < len(text) <= 40 and set(text) <= set(ALPHABET) for text in record["steps"].values())
    report = json.loads((tmp_path / "chains.report.json").read_text())
    assert report["usage"]["prompt_tokens"] > 1000  # a token a byte, and the instructions are long
    assert report["usage"]["completion_tokens"] > 0


def test_what_a_random_model_gets_wrong_is_told_by_category_and_never_kept(url, make_rows, tokenizer, tmp_path):
    root, out = make_rows(9), tmp_path / "chains.jsonl"
    generate(url, root, out, tokenizer, "--max_attempts", "2")
    records, failures = read_lines(out), read_lines(tmp_path / "chains.failures.jsonl")
    assert sorted(record["row"] for record in [*records, *failures]) == list(range(9))
    assert {failure["reason"] for failure in failures} <= {"wrong_category", "missing_step"}  # a step without a letter
    report = json.loads((tmp_path / "chains.report.json").read_text())
    assert report["failed_attempts"]["wrong_category"] > 0  # one of three categories is right
