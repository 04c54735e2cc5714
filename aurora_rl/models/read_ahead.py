"""A thread reads and encodes the media of the next batch while the model works on the current one.

It stays one batch ahead, so that memory is bounded. The result and its order are the same as without the thread, and a
sample's error is raised where that sample is taken. The thread makes tensors in main memory only; the thread that takes
the sample does the work that needs a GPU.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import with_shared_media
from aurora_rl.models.encoding import EncodedSample, SampleEncoder


class ReadAhead(contextlib.AbstractContextManager["ReadAhead", None]):
    """Encodes samples before they are needed; a context manager that ends its thread.

    Args:
        encode: encoder that turns a sample into tensors. It also encodes samples that are taken without `begin`.
    """

    def __init__(self, encode: SampleEncoder) -> None:
        self.encode = encode
        self._encode_there = encode
        self._thread: ThreadPoolExecutor | None = None
        self._begun: dict[AVSample, Future[Callable[[], EncodedSample]]] = {}

    def __exit__(self, *error: object) -> None:
        self.close()

    def take(self, samples: Sequence[AVSample]) -> list[EncodedSample]:
        """Return the samples encoded, in order; copies of a sample share their tensors, and rows on a clip its media.

        Raises:
            MediaError: or another error of the first sample that cannot be encoded.
        """
        encoded: dict[str, EncodedSample] = {}
        for sample in samples:
            if sample.key not in encoded:
                begun = self._begun.pop(sample, None)
                encoded[sample.key] = self.encode(sample) if begun is None else begun.result()()
        shared = dict(zip(encoded, with_shared_media(list(encoded.values())), strict=True))
        return [shared[sample.key] for sample in samples]

    def begin(self, samples: Iterable[AVSample]) -> None:
        """Begin to encode these samples, each distinct one once; earlier samples that were not taken are dropped."""
        self._drop()
        distinct = dict.fromkeys(samples)
        if not distinct:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "read ahead")
            self._encode_there = copy.copy(self.encode)
            # The thread has its own processor, because a tokenizer refuses two threads at once.
            self._encode_there.processor = copy.deepcopy(self.encode.processor)
        for sample in distinct:
            self._begun[sample] = self._thread.submit(self._encode_there.prepare, sample)

    def close(self) -> None:
        """End the thread after its current sample; `begin` may be called again."""
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
    """Yield the batches encoded, in order; each is encoded while the caller works on the one before.

    A caller that may stop before the end closes the iterator, which stops the reading.
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
