"""`aurora-rl completion`: a script that completes commands, options and names in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial

from aurora_rl.assembly.known_options import options_of
from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.console import CLEAN
from aurora_rl.files.packaged import launch_names, recipe_names, script_names

DESCRIPTION = """Print a script that completes commands, options and the names of recipes.

  source <(aurora-rl completion bash)            # in ~/.bashrc, for all further shells
  source <(aurora-rl completion zsh)             # in ~/.zshrc
  aurora-rl completion fish | source             # in ~/.config/fish/config.fish

The script is complete in itself: Tab starts no Python."""

#: Commands that take a recipe's keys as options.
RECIPES = {"sft": "recipes/sft.py", "grpo": "recipes/grpo.py", "evaluate": "recipes/evaluate.py"}

BASH = """_aurora_rl() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"
    elif [[ $word == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{options}
        esac
    else
        case "${{COMP_WORDS[1]}} $before" in
{values}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -o bashdefault -F _aurora_rl aurora-rl
"""
ZSH = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("completion", help="print a script for the shell's Tab key", description=DESCRIPTION)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="shell that reads the script")
    parser.set_defaults(run=partial(run, commands))


def run(commands: Commands, args: argparse.Namespace) -> int:
    """Print the script and return the exit code."""
    parsers: Mapping[str, argparse.ArgumentParser] = commands.choices
    options = {name: _options(name, parser) for name, parser in parsers.items()}
    values = {name: _values(name, parser) for name, parser in parsers.items()}
    script = _fish(options, values) if args.shell == "fish" else _bash(options, values)
    print(f"{ZSH if args.shell == 'zsh' else ''}{script}", end="")
    return CLEAN


def _options(name: str, parser: argparse.ArgumentParser) -> list[str]:
    own = {option for action in parser._actions if action.help != argparse.SUPPRESS for option in action.option_strings}
    keys = {f"--{key}" for key in options_of(RECIPES[name])} if name in RECIPES else set()
    return sorted(option for option in own | keys if option.startswith("--") and "-" not in option[2:])


def _values(name: str, parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """Return the words that may follow an option, or, under the command's own name, the command."""
    known = {"--config": recipe_names(), "--launch": launch_names(), "run": script_names()}
    keys = options_of(RECIPES[name]) if name in RECIPES else {}
    words = {f"--{key}": list(option["choices"]) for key, option in keys.items() if option.get("choices")}
    words |= {"--config": recipe_names()} if keys else {}
    for action in parser._actions:
        for option in action.option_strings or [parser.prog.split()[-1]]:
            if found := known.get(option) or [str(choice) for choice in action.choices or ()]:
                words[option] = found
            if isinstance(action, argparse._SubParsersAction):  # such as `recipes show NAME`
                words |= {verb: recipe_names() for verb in ("show", "copy") if verb in action.choices}
    return words


def _bash(options: Mapping[str, list[str]], values: Mapping[str, dict[str, list[str]]]) -> str:
    of_options = [f'        {name}) words="{" ".join(known)}" ;;' for name, known in options.items()]
    of_values = [
        f'        "{name} {before}") words="{" ".join(known)}" ;;'
        for name, known_of in values.items()
        for before, known in known_of.items()
    ]
    return BASH.format(commands=" ".join(options), options="\n".join(of_options), values="\n".join(of_values))


def _fish(options: Mapping[str, list[str]], values: Mapping[str, dict[str, list[str]]]) -> str:
    lines = [f"complete -c aurora-rl -n __fish_use_subcommand -a '{' '.join(options)}'"]
    for name, known in options.items():
        within = f"complete -c aurora-rl -n '__fish_seen_subcommand_from {name}'"
        for option in known:
            words = values[name].get(option)
            lines.append(f"{within} -l {option[2:]}" + ("" if words is None else f" -r -a '{' '.join(words)}'"))
        lines += [f"{within} -a '{' '.join(words)}'" for before, words in values[name].items() if before[:2] != "--"]
    return "\n".join(lines) + "\n"
