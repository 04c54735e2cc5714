import logging

import pytest

from tools.script_parser import script_parser


@pytest.mark.parametrize("script", ["benchmarks/step_cost.py", "benchmarks/gpu_step.py"])
def test_a_script_that_makes_itself_quiet_leaves_others_loud(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = [logging.getLogger(name) for name in ("aurora_rl", "transformers")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    script_parser.__wrapped__(script)
    assert [logger.level for logger in loggers] == [logging.INFO, logging.INFO]
