"""`aurora-rl serve`: a page in the browser to try a trained model on clips."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from pathlib import Path

from aurora_rl.cli.arguments import Commands, positive
from aurora_rl.cli.checks import check_pipeline_arguments
from aurora_rl.cli.console import CLEAN, refuse
from aurora_rl.cli.pipeline_arguments import add_pipeline_arguments, load_pipeline
from aurora_rl.endpoint.addresses import check_host, check_port
from aurora_rl.first_clip import MODEL, knowledge_of
from aurora_rl.serve.folder import own_folder
from aurora_rl.serve.listening import is_loopback, listening

DESCRIPTION = """Try a trained model in the browser: upload or record a clip, say what to find, see masks and reasoning.

aurora-rl serve --model outputs/demo/grpo
aurora-rl serve --model outputs/demo/grpo --port 8000 --max_seconds 20 --max_mb 50

The page is served to this machine only, until Ctrl-C. Uploads lie in a temporary folder that is removed at the end.
Needs Gradio: pip install 'aurora-rl[serve]'. See docs/inference.md.
Exit code 0: served until it was ended, 2: unusable arguments or model."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("serve", help="try a model in the browser", description=DESCRIPTION)
    add_pipeline_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; all but this lets others in")
    parser.add_argument("--port", type=positive, default=7860, help="port to listen on")
    parser.add_argument(
        "--max_seconds", type=_positive_seconds, default=60.0, help="largest length of a clip, in seconds"
    )
    parser.add_argument("--max_mb", type=positive, default=100, help="largest size of a clip's file, in MB")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until the end and return the exit code."""
    try:
        _check(args)
        with own_folder() as folder:
            _serve(args, folder)
    except KeyboardInterrupt:
        return CLEAN  # before the page was there
    except (OSError, ValueError) as error:
        return refuse("serve", error)
    return CLEAN


def _check(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'aurora-rl[serve]'")
    check_host(args.host, name="--host")
    check_port(args.port, name="--port")
    with listening(args.host, args.port):
        pass  # a port that is taken is told before the model is loaded
    check_pipeline_arguments(args)


def _serve(args: argparse.Namespace, folder: Path) -> None:
    # Here, because these import torch, transformers and Gradio, which take seconds.
    from aurora_rl.serve.request import Limits
    from aurora_rl.serve.server import serve

    if not is_loopback(args.host):
        print(
            f"aurora-rl serve: {args.host} is no loopback address: whoever reaches this machine can use the page and "
            "the model, without a password and without encryption",
            file=sys.stderr,
        )
    serve(
        load_pipeline(args),
        folder,
        host=args.host,
        port=args.port,
        limits=Limits(max_seconds=args.max_seconds, max_mb=args.max_mb),
        ready=lambda address: print(f"{args.model} answers at {address} until Ctrl-C", flush=True),
        about=about_model(args.model),
    )


def about_model(model: str) -> str:
    """Say which model a page runs and, if its card says that, what it can know; the folders above it stay unsaid."""
    if Path(model).resolve() == MODEL:
        name = "the small model that comes with Aurora-RL"
    else:
        name = Path(model).resolve().name if Path(model).is_dir() else model
    return " ".join(filter(None, [f"Model: {name}.", knowledge_of(model)]))


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no positive number of seconds")
    return seconds
