"""The next batch's media are read and encoded in a thread while the model works on this one's.

One batch ahead and no more, so that memory is bounded. What is taken is the same, in the same order, as if it were
encoded only then; an error of a sample is raised where that sample is taken. The thread makes tensors in main memory
only: what needs a GPU is done by the thread that takes the sample.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import EncodedSample, SampleEncoder


class ReadAhead(contextlib.AbstractContextManager["ReadAhead", None]):
    """Encodes samples before they are asked for; a context manager that leaves no thread behind.

    Args:
        encode: turns a sample into tensors. Samples that were not begun ahead are encoded by it, where they are taken.
    """

    def __init__(self, encode: SampleEncoder) -> None:
        self.encode = encode
        self._encode_there = encode
        self._thread: ThreadPoolExecutor | None = None
        self._begun: dict[AVSample, Future[Callable[[], EncodedSample]]] = {}

    def __exit__(self, *error: object) -> None:
        self.close()

    def take(self, samples: Sequence[AVSample]) -> list[EncodedSample]:
        """The samples encoded, in order; copies of one sample share their tensors.

        Raises:
            MediaError: or whatever else encoding the first bad sample raises.
        """
        encoded: dict[str, EncodedSample] = {}
        for sample in samples:
            if sample.key not in encoded:
                begun = self._begun.pop(sample, None)
                encoded[sample.key] = self.encode(sample) if begun is None else begun.result()()
        return [encoded[sample.key] for sample in samples]

    def begin(self, samples: Iterable[AVSample]) -> None:
        """Begin to encode these, each distinct one once; what was begun before and not taken is dropped."""
        self._drop()
        distinct = dict.fromkeys(samples)
        if not distinct:
            return
        if self._thread is None:
            self._thread, self._encode_there = ThreadPoolExecutor(1, "read ahead"), _for_another_thread(self.encode)
        for sample in distinct:
            self._begun[sample] = self._thread.submit(self._encode_there.prepare, sample)

    def close(self) -> None:
        """End the thread, which finishes the sample at hand. `begin` may be called again."""
        self._drop()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _drop(self) -> None:
        for future in self._begun.values():
            future.cancel()
        self._begun.clear()


def encoded_batches(
    encode: SampleEncoder, batches: Iterable[Sequence[AVSample]]
) -> Generator[list[EncodedSample], None, None]:
    """The batches encoded, in order, each while the one before is worked on.

    Whoever may leave before the end closes the iterator, so that nothing is read any more.
    """
    with ReadAhead(encode) as ahead:
        waiting: Sequence[AVSample] | None = None
        for batch in batches:
            if waiting is not None:
                encoded = ahead.take(waiting)
                ahead.begin(batch)
                yield encoded
            waiting = batch
        if waiting is not None:
            yield ahead.take(waiting)


def _for_another_thread(encode: SampleEncoder) -> SampleEncoder:
    """The encoder with a processor of its own: a tokenizer refuses two threads at once."""
    copied = copy.copy(encode)
    copied.processor = copy.deepcopy(encode.processor)
    return copied
