"""A config may tune libraries by `env`, and not decide which code is loaded or where keys go."""

import os
from pathlib import Path

import pytest

from aurora_rl.assembly.environment import set_environment
from aurora_rl.scripts import generate_cot


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "PATH", "TORCH_EXTENSIONS_DIR", "HF_HOME"]
    + ["OPENAI_BASE_URL", "OPENAI_API_KEY", "HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "omp_num_threads", ""],
)
def test_no_variable_is_set_where_one_of_them_may_not_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with pytest.raises(ValueError, match=r"c\.yaml: env sets .*, which a config may not"):
        set_environment({"OMP_NUM_THREADS": 1, name: "x"}, config="c.yaml")
    assert dict(os.environ) == before


def test_what_tunes_a_library_is_set_and_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    set_environment({"NCCL_DEBUG": "INFO"}, config="c.yaml")
    assert os.environ["NCCL_DEBUG"] == "INFO" and "c.yaml sets NCCL_DEBUG=INFO" in caplog.text


def test_env_must_be_a_mapping() -> None:
    with pytest.raises(ValueError, match="expected names of variables"):
        set_environment(["A=1"], config="c.yaml")


def test_a_program_refuses_such_a_config_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("env: {OPENAI_BASE_URL: 'http://elsewhere.invalid/v1', AURORA_CASE: '1'}\n")
    with pytest.raises(SystemExit):
        generate_cot.main(["--config", str(config), "--data_root", "nowhere", "--output", str(tmp_path / "o.jsonl")])
    assert "env sets OPENAI_BASE_URL, AURORA_CASE" in capsys.readouterr().err
    assert "AURORA_CASE" not in os.environ
