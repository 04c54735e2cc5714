"""Segment a benchmark's references by agents that a chat endpoint plays, and a segmenter that reads noun phrases.

    aurora-rl agents --config recipes/agents/ref_avs.yaml
    aurora-rl agents --data_root data/ref_avs --split test_s --output outputs/agents/test_s.jsonl \\
        --model NAME --base_url http://localhost:8000/v1 --text_segmenter sam3 --text_segmenter_model facebook/sam3
    aurora-rl agents --config recipes/agents/ref_avs.yaml --evidence tracks  # choose among what the segmenter follows

A line of <output> is all that was said about a row: votes, reasonings, phrases, scores and verdicts. Masks are beside
it, in test_s.masks/<row>.npz and, of the first phrase of each row, in test_s.first/, which `aurora-rl evaluate
--predictions` reads. The same command resumes a run that was killed, another one is refused; a row that has no
answer fails, and is never taken for a reference that points at nothing. test_s.agents.json sums up: outcomes, calls,
tokens and price a row, and how many rows the checks mended or broke. The exit status is 1 if a run ended early.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aurora_rl.agents.changes import count_changes
from aurora_rl.agents.investigation import TRACKS, AgentArguments, Findings, investigate
from aurora_rl.agents.roles import Role
from aurora_rl.agents.text_segmenters import SEGMENTERS, TextSegmenter, load_segmenter, read_clip
from aurora_rl.agents.track_choice import choose_track
from aurora_rl.agents.track_pictures import draw_tracks
from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.data.containers import MediaError
from aurora_rl.data.message_parts import MediaArguments, frame_parts, reference_parts, sound_parts
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.client import ChatEndpoint
from aurora_rl.endpoint.replies import Usage
from aurora_rl.endpoint.rows import RowFailedError, RunArguments, RunReport, run_rows
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.journal import Journal, Record, read_rows, row_key
from aurora_rl.files.settings import check_settings
from aurora_rl.logs import setup_logging
from aurora_rl.scripts.asked_rows import data_settings


@dataclasses.dataclass
class SegmenterArguments:
    """The rows that are segmented, and by what.

    Attributes:
        split: split of the rows.
        text_segmenter: key of `agents.text_segmenters.SEGMENTERS`.
        text_segmenter_model: folder or hub name of its checkpoint.
        text_segmenter_device: device that it runs on.
    """

    split: str = dataclasses.field(default="test", metadata={"help": "Split whose rows are segmented."})
    text_segmenter: str = dataclasses.field(
        default="sam3", metadata={"help": f"Segmenter of noun phrases: {', '.join(SEGMENTERS)}."}
    )
    text_segmenter_model: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder or hub name of the segmenter's checkpoint."}
    )
    text_segmenter_device: str = dataclasses.field(
        default="cpu", metadata={"help": "Device that the segmenter runs on."}
    )

    def __post_init__(self) -> None:
        if self.text_segmenter not in SEGMENTERS:
            raise ValueError(f"text_segmenter is {self.text_segmenter!r}: choose from {', '.join(SEGMENTERS)}")


@dataclasses.dataclass
class EndpointVoices:
    """The roles as one endpoint plays them for a row.

    Attributes:
        endpoint: endpoint that is asked.
        sample: the row.
        clip: its media.
        media: media that are sent.
        on_usage: function that is told the tokens of each reply.
        calls: number of questions so far.
    """

    endpoint: ChatEndpoint
    sample: AVSample
    clip: AVClip
    media: MediaArguments
    on_usage: Callable[[Usage], None]
    calls: int = 0

    def __post_init__(self) -> None:
        """Encode the clip, once for all agents and of what is decoded already."""
        sends_frames, hears = self.media.media != "none", self.media.media == "frames+audio"
        self._frames = frame_parts(self.clip.frames, self.sample.fps, self.media) if sends_frames else []
        self._sound = sound_parts(self.clip.waveform) if hears else []
        self._of_reference = reference_parts(self.sample, self.media)

    async def say(
        self,
        role: Role,
        text: str,
        *,
        persona: str = "",
        modality: str = "both",
        masks: np.ndarray | None = None,
        tracks: Sequence[np.ndarray] = (),
    ) -> dict[str, str]:
        """Ask for the reply of an agent, see `agents.investigation.Voices`."""
        self.calls += 1
        parts = await asyncio.to_thread(self._parts, modality == "sound", masks, tracks)
        content: Any = [*parts, {"type": "text", "text": text}] if parts else text
        messages = [{"role": "system", "content": role.system_prompt(persona)}, {"role": "user", "content": content}]
        return await self.endpoint.ask(
            messages, read=role.read, schema=role.schema, schema_name=role.name, on_usage=self.on_usage
        )

    def _parts(self, sound_first: bool, masks: np.ndarray | None, tracks: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        parts = [*self._sound, *self._frames] if sound_first else [*self._frames, *self._sound]
        parts = [*parts, *self._of_reference]
        if tracks and self.media.media != "none":
            parts += self._drawn("The segmenter's tracks are coloured and numbered here.", tracks, numbered=True)
        if masks is not None and self.media.media != "none":
            parts += self._drawn("What the segmenter took for it is coloured here.", [masks], numbered=False)
        return parts

    def _drawn(self, said: str, tracks: Sequence[np.ndarray], *, numbered: bool) -> list[dict[str, Any]]:
        drawn = draw_tracks(self.clip.frames, tracks, numbered=numbered)
        return [{"type": "text", "text": said}, *frame_parts(drawn, self.sample.fps, self.media)]


@dataclasses.dataclass(frozen=True)
class AgentRow:
    """One row for the agents, see `endpoint.rows.RowWork`.

    Attributes:
        sample: the row.
        segmenter: segmenter of phrases.
        agents: numbers of agents, rounds and checks, and their evidence.
        media: media that are sent.
        masks: function that writes a row's masks of the end and of the first phrase.
    """

    sample: AVSample
    segmenter: TextSegmenter
    agents: AgentArguments
    media: MediaArguments
    masks: Callable[[AVSample, Findings, AVClip], None]

    @property
    def uid(self) -> str:
        """The row's uid."""
        return self.sample.uid

    @property
    def row(self) -> int:
        """Number of the row."""
        return self.sample.row

    @property
    def split(self) -> str:
        """Split of the row."""
        return self.sample.split

    async def answer(self, endpoint: ChatEndpoint, on_usage: Callable[[Usage], None]) -> tuple[Record, Sequence[str]]:
        """Let the agents work, and write the masks before the record, so that no record is without them."""
        try:
            clip = await asyncio.to_thread(read_clip, self.sample, self.segmenter)
            voices = await asyncio.to_thread(EndpointVoices, endpoint, self.sample, clip, self.media, on_usage)
            found = await self._find(voices, clip)
        except MediaError as error:
            raise RowFailedError("media", str(error)) from error
        await asyncio.to_thread(self.masks, self.sample, found, clip)
        told = {"uid": self.uid, "row": self.row, "split": self.split, "reference": self.sample.reference}
        return {**told, **found.to_record(), "calls": voices.calls, "model": str(endpoint.args.model)}, ()

    async def _find(self, voices: EndpointVoices, clip: AVClip) -> Findings:
        if self.agents.evidence == TRACKS:
            find_tracks = functools.partial(self.segmenter.tracks, self.sample, clip)
            return await choose_track(self.sample.reference, voices, find_tracks, self.agents)
        segment = functools.partial(self.segmenter, self.sample, clip)
        return await investigate(self.sample.reference, voices, segment, self.agents)


def write_masks(args: RunArguments, sample: AVSample, found: Findings, clip: AVClip) -> None:
    """Write a row's masks of the end, and of its first phrase; a reference to nothing has empty ones."""
    empty = np.zeros(clip.frames.shape[:3], dtype=bool)  # (F, H, W)
    for kind, masks in (("masks", found.masks), ("first", found.first_masks)):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, masks=empty if masks is None else masks)
        write_whole(args.path(kind) / f"{sample.row}.npz", buffer.getvalue())


def summarise(args: RunArguments, report: RunReport, samples: Sequence[AVSample]) -> dict[str, Any]:
    """Count how the rows of an output ended and what they took, write it beside the output, and return it.

    Tokens and price are those of all runs into the output: failed rows, and rows that a kill has cut off, are paid for
    by those that have a record.
    """
    rows = read_rows(Path(args.output))
    answered = {row_key(row) for row in rows}  # a kill may leave the masks of a row that has no record
    counts = Counter(row["outcome"] for row in rows)

    def mean(values: Sequence[float]) -> float | None:
        return round(sum(values) / len(values), 4) if values else None

    def a_row(total: float | None) -> float | None:
        return round(total / len(rows), 6) if rows and total is not None else None

    usage = report.total_usage
    summary = {
        "rows": len(rows),
        "outcomes": dict(sorted(counts.items())),
        "changes": count_changes(
            (sample for sample in samples if (sample.uid, sample.row) in answered),
            first=args.path("first"),
            last=args.path("masks"),
        ),
        "agreement": mean([row["agreement"] for row in rows]),
        "rounds_a_row": mean([len(row["votes"]) for row in rows]),
        "phrases_a_row": mean([len(row["attempts"]) for row in rows]),
        "calls_a_row": mean([row["calls"] for row in rows]),
        "tokens_a_row": a_row(usage.prompt_tokens + usage.completion_tokens),
        "price_a_row": a_row(report.total_cost),
    }
    write_whole(args.path("agents.json"), json.dumps(summary, indent=2) + "\n")
    return summary


def begin_output(args: RunArguments, settings: Mapping[str, Any]) -> None:
    """Check that an output which is resumed holds the agents' records, made with the same settings.

    Raises:
        ValueError: if it does not.
    """
    output, records = Path(args.output), []
    if output.exists():
        with Journal(output) as log:
            records = log.records
    if strange := next((record for record in records if "outcome" not in record), None):
        raise ValueError(
            f"{output} holds records of something else, such as {str(strange)[:80]}: name another `output`"
        )
    check_settings(args.path("settings.json"), settings, of=output, is_empty=not records)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, let the agents work, and report."""
    setup_logging()
    kinds = (DataArguments, SegmenterArguments, AgentArguments, RunArguments, MediaArguments, EndpointArguments)
    parser = ConfigParser(kinds, description=__doc__)
    try:
        data_args, of_segmenter, agents, run_args, media, endpoint_args = parser.parse_args_and_config(argv)
        all_samples = load_split(data_args, of_segmenter.split)
        samples = all_samples[: run_args.max_rows]
        if silent := next((sample for sample in samples if not sample.num_frames), None):
            raise ValueError(f"sample {silent.key} has no frames, in which a segmenter could find anything")
        segmenter = load_segmenter(
            of_segmenter.text_segmenter,
            of_segmenter.text_segmenter_model,
            device=of_segmenter.text_segmenter_device,
            rows=all_samples,
            needs_tracks=agents.evidence == TRACKS,
        )
        asked = {name: getattr(endpoint_args, name) for name in ("model", "temperature", "extra_body")}
        by = {name: value for name, value in vars(of_segmenter).items() if name != "text_segmenter_device"}
        begin_output(run_args, {**asked, **by, **vars(agents), **vars(media), **data_settings(data_args)})
        writer = functools.partial(write_masks, run_args)
        rows = [AgentRow(sample, segmenter, agents, media, writer) for sample in samples]
        report = run_rows(rows, endpoint_args, run_args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    summary = summarise(run_args, report, samples)
    print(", ".join(f"{count} {outcome}" for outcome, count in summary["outcomes"].items()))
    return report.exit_status
