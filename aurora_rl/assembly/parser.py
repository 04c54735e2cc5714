"""A recipe's YAML and command line: what they leave open of how clips are put to a model is as its checkpoint says."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from trl import TrlParser

from aurora_rl.assembly.environment import set_environment
from aurora_rl.files.plain import read_text_file
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.loading import saved_clip_options

logger = logging.getLogger(__name__)


class ConfigParser(TrlParser):
    """TRL's, whose YAML files may set no other environment variables by `env` than those of `yaml_environment`."""

    def parse_args_and_config(self, args: Iterable[str] | None = None, *options: Any, **more: Any) -> tuple[Any, ...]:
        """As TRL's.

        Raises:
            ValueError: also if `env` sets what it may not; no variable is set then.
        """
        words = list(sys.argv[1:] if args is None else args)
        for flag, path in zip(words, words[1:], strict=False):
            if flag == "--config":
                content = yaml.safe_load(read_text_file(path))
                if isinstance(content, dict) and "env" in content:
                    set_environment(content["env"], config=path)
        return super().parse_args_and_config(words, *options, **more)


class RecipeParser(ConfigParser):
    """Reads `ModelArguments` and `DataArguments` among others.

    A value that YAML or the command line sets wins over the checkpoint's, with a warning where the two differ. What
    neither sets and the checkpoint does not tell has the default of `DataArguments`.
    """

    def __init__(self, dataclass_types: Iterable[Any]) -> None:
        super().__init__(tuple(dataclass_types))
        actions = [action for action in self._actions if action.dest in ClipOptions().to_arguments()]
        self.usual_clips = {action.dest: action.default for action in actions}
        for action in actions:
            action.default = argparse.SUPPRESS  # so that only what YAML or the command line sets is found

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As of `argparse`; every way of parsing comes through here."""
        found, rest = super().parse_known_args(args, namespace)
        options = saved_clip_options(found.model)
        saved = options.to_arguments() if options else {}
        for name, value in (self.usual_clips | saved).items():
            own = vars(found).setdefault(name, value)
            if own != value and name in saved:
                logger.warning("%s was trained with %s %r, here it is %r", found.model, name, value, own)
        return found, rest
