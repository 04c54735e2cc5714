"""The page: its elements and events. Gradio draws it; `request` and `examples` do the work."""

from __future__ import annotations

import html
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from aurora_rl.serve.examples import SyntheticExamples
from aurora_rl.serve.request import FAILED, RequestAnswerer, RequestError, error_card

logger = logging.getLogger(__name__)

#: Requests that may wait while one is answered; further ones get the message that the page is busy.
MAX_WAITING = 8
#: Seconds after which uploads and answers are removed, and seconds between two sweeps.
KEPT_SECONDS, SWEEP_SECONDS = 3600, 60

INTRODUCTION = """# Aurora-RL
What in this clip does a sentence mean? Describe an object by how it looks, by how it sounds, or by both."""
REFERENCE_HINT = "The object making a sound before the man\nThe drum on the left"
START, BUSY = "Find it", "Still computing…"


def keep_to_folder(video: gr.Video, folder: Path) -> gr.Video:
    """Let a component accept and serve files of this folder only.

    If a request names an address in place of an upload, Gradio would fetch it; and as part of another application it
    would copy any file of this machine to the served folder. The method is changed on the component, not in a subclass:
    Gradio writes a stub beside every module that derives from its classes.
    """
    move = video.async_move_resource_to_block_cache

    async def move_own(path: str | Path | None) -> str | None:
        if path is not None and not Path(path).resolve().is_relative_to(folder):
            raise gr.Error("The clip was not uploaded to this page: upload it.", print_exception=False)
        return await move(path)

    video.async_move_resource_to_block_cache = move_own
    return video


def tell_every_error(page: gr.Blocks) -> None:
    """Let the page answer every error with a text.

    Gradio shows visitors the text of its own errors only. For others, such as a request that no browser would send, it
    answers `{"error": null}`. Their text stays in the log, as it may hold details of the server.
    """
    process = page.process_api

    async def process_and_tell(*args: Any, **kwargs: Any) -> Any:
        try:
            return await process(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            logger.exception("a request failed")
            raise gr.Error(FAILED, print_exception=False) from error

    page.process_api = process_and_tell


def build_page(answerer: RequestAnswerer, examples: SyntheticExamples, *, about: str) -> gr.Blocks:
    """Lay out the page and connect its buttons with their functions.

    Args:
        answerer: what answers requests.
        examples: what makes the examples.
        about: which model answers and what it can know, in plain text.
    """
    with gr.Blocks(title="Aurora-RL", analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(INTRODUCTION, elem_id="intro")
        gr.HTML(f"<p>{html.escape(about)}</p>", elem_id="about")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                clip = gr.Video(label="Clip", sources=["upload", "webcam"], include_audio=True, elem_id="clip")
                references = gr.Textbox(
                    label="References, one a line", lines=3, placeholder=REFERENCE_HINT, elem_id="references"
                )
                start = gr.Button(START, variant="primary", elem_id="start")
                another = gr.Button("Load a synthetic example", elem_id="example")
                gr.Markdown(_limits_text(answerer), elem_id="limits")
            with gr.Column(scale=3, min_width=320):
                overlay = gr.Video(
                    label="Masks", interactive=False, height=380, loop=True, autoplay=True, elem_id="overlay"
                )
                waveform = gr.HTML(elem_id="waveform")
                chains = gr.HTML(elem_id="chains")
        for video in (clip, overlay):
            keep_to_folder(video, answerer.folder)

        # An error is shown in place of the answer, and stays; after it the button is active again.
        def answer(path: str | None, text: str) -> tuple[str | None, str, str]:
            try:
                shown = answerer.answer(None if path is None else Path(path), text)
            except RequestError as error:
                return None, "", error_card(error)
            return str(shown.overlay), shown.waveform, shown.chains

        def load_example() -> tuple[str, str]:
            path, sentences = examples.write_next()
            return str(path), "\n".join(sentences)

        pressed = start.click(
            lambda: gr.Button(BUSY, interactive=False), outputs=start, concurrency_limit=None, show_progress="hidden"
        )
        answered = pressed.then(
            answer,
            inputs=[clip, references],
            outputs=[overlay, waveform, chains],
            concurrency_limit=1,
            show_progress_on=overlay,
        )
        for event in (answered.success, answered.failure, pressed.failure):
            event(
                lambda: gr.Button(START, interactive=True),
                outputs=start,
                concurrency_limit=None,
                show_progress="hidden",
            )
        another.click(load_example, outputs=[clip, references], concurrency_limit=1)
    tell_every_error(page)
    page.queue(max_size=MAX_WAITING, api_open=False)
    return page


def page_looks() -> dict[str, Any]:
    """Return theme, style sheet and script, as arguments of Gradio's `mount_gradio_app`."""
    templates = files("aurora_rl.serve") / "templates"
    script = (templates / "serve.js").read_text(encoding="utf-8")
    # System fonts only: the browser would download others.
    theme = gr.themes.Default(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return {
        "theme": theme.set(body_text_color_subdued="#5d636e", body_text_color_subdued_dark="#a9afba"),
        "css": (templates / "serve.css").read_text(encoding="utf-8"),
        "head": f'<script type="module">\n{script}</script>',
    }


def _limits_text(answerer: RequestAnswerer) -> str:
    limits = answerer.limits
    return (
        f"At most {limits.max_seconds:g} s and {limits.max_mb} MB. Clips are answered one after the other, on the "
        "computer that serves this page, and removed after an hour."
    )
