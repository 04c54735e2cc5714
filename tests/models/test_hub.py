"""A hub out of reach is found out once, within seconds, and told with what to do."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from aurora_rl.models import hub
from aurora_rl.models.checkpoint_files import check_checkpoint_files
from aurora_rl.models.hub import HubError, check_hub, hub_problem
from aurora_rl.models.loading import load_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a process that has not asked the hub yet; no proxy stands between."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hub_problem.cache_clear()
    yield tmp_path / "cache"
    hub_problem.cache_clear()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose port nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.mark.usefixtures("refused")
def test_a_model_that_is_nowhere_is_told_at_once_with_what_to_do() -> None:
    with pytest.raises(HubError, match=r"(?s)org/model is no folder here.*cannot be reached.*hf download org/model"):
        load_model("org/model")
    with pytest.raises(HubError, match="org/other"):
        check_checkpoint_files("org/other")
    assert hub_problem.cache_info().misses == 1  # huggingface_hub asks five times a file, with waits between


def test_a_path_that_is_not_there_is_no_name_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"nowhere is no folder here, and no name that the hub knows: check the path"):
        check_checkpoint_files(str(tmp_path / "nowhere"))
    assert hub_problem.cache_info().misses == 0


@pytest.mark.usefixtures("refused")
def test_what_is_in_the_cache_is_read_without_asking_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = cache / "models--org--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    check_hub("org/model")
    check_hub("org/model")
    assert constants.HF_HUB_OFFLINE and len(caplog.records) == 1 and "in the cache is read" in caplog.text


def test_a_hub_that_never_answers_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub_problem() is not None


def test_a_hub_that_answers_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Session:
        def head(self, url: str, *, timeout: float) -> None:
            asked.append(url)

    monkeypatch.setattr(hub, "get_session", Session)
    check_hub("org/model")
    check_hub("org/other")
    assert asked == [constants.ENDPOINT] and not constants.HF_HUB_OFFLINE


def test_a_process_that_is_told_to_be_offline_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE keeps it from being fetched"):
        check_hub("org/model")
