"""Check by the structure of its bytes whether a sound file is complete.

Decoders continue after damage: they skip to the next frame, repeat the last one, or leave a second out. So the bytes
are checked before they are decoded: every frame must begin where the last one ended, up to the file's end, and all
checksums, numbers and lengths that the format has must be right. Damage without any of them cannot be found: an MP3 or
AAC without a header of its length that is cut between two frames, and a changed bit that still decodes in AAC, in MP3
without LAME's checksum, in MP4 and in WebM.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable
from pathlib import Path

from aurora_rl.data.containers import FilePath, MediaError

Bytes = mmap.mmap | bytes

ID3_HEADER = 10  # bytes
LONGEST_PADDING = 4096
ID3V1 = 128
APE_FOOTER = 32
OGG_HEADER = 27
REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))

# ISO 11172-3 and 13818-3, layer III: kbit/s by index, samples a second by index, for MPEG 1 and for MPEG 2 and 2.5.
MP3_BITRATES = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
LAME_CHECKSUM = 32  # bytes from the encoder's name to the checksum of the music

# RFC 9559: Segment and Cluster, and the elements in a file, in a Segment and in a Cluster.
MATROSKA_OPENED = frozenset({0x18538067, 0x1F43B675})
MATROSKA_PARTS = MATROSKA_OPENED | {
    *(0x1A45DFA3, 0xEC, 0xBF),
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),
    *(0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF),
}


class _Damage(Exception):
    """Damage that was found; the text completes "the audio is ..."."""


def sound_kind(path: FilePath) -> str | None:
    """Return wav, flac, ogg, mp3, aac, mp4 or matroska, by the first bytes; None for other files."""
    with open(path, "rb") as file:
        head = file.read(LONGEST_PADDING)
        if head[:3] == b"ID3":
            file.seek(_id3_length(head))
            head = file.read(LONGEST_PADDING)
    head = head if head[4:8] == b"ftyp" else head.lstrip(b"\0")
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    known = {b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "matroska"}
    if head[:4] in known:
        return known[head[:4]]
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xF6 == 0xF0:
        return "aac"
    return "mp3" if _mp3_frame(head, 0) else None


def check_whole(path: FilePath, kind: str) -> None:
    """Check all bytes of a sound file.

    Raises:
        MediaError: naming the file and the place, if a part of the file is missing or was changed.
    """
    if not Path(path).stat().st_size:
        raise MediaError(f"the audio {path} is empty: replace the file")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            WALKS[kind](data)
        except _Damage as damage:
            raise MediaError(f"the audio {path} is {damage}; replace the file") from None
        except IndexError:
            raise MediaError(f"the audio {path} is cut off; replace the file") from None


def _id3_length(head: Bytes) -> int:
    """Return the bytes of an ID3v2 tag, its header and footer included."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return ID3_HEADER + size + (10 if head[5] & 0x10 else 0)


def _start_of_frames(data: Bytes) -> int:
    place = 0
    while data[place : place + 3] == b"ID3":
        place += _id3_length(data[place : place + ID3_HEADER])
    while place < len(data) and data[place] == 0:
        place += 1
    return place


def _end_of_frames(data: Bytes) -> int:
    """Find the end of the frames, where tags begin: ID3v1, Lyrics3, APE."""
    end = len(data)
    if data[end - ID3V1 : end - ID3V1 + 3] == b"TAG":
        end -= ID3V1
    if data[end - 9 : end] == b"LYRICS200":
        end -= 15 + int(bytes(data[end - 15 : end - 9]))
    if data[end - APE_FOOTER : end - APE_FOOTER + 8] == b"APETAGEX":
        size = int.from_bytes(data[end - 20 : end - 16], "little")
        has_header = data[end - APE_FOOTER + 23] & 0x80
        end -= size + (APE_FOOTER if has_header else 0)
    if data[end - 10 : end - 7] == b"3DI":
        end -= _id3_length(b"ID3" + bytes(data[end - 7 : end])) + 10
    return end


# MP3


def _mp3_frame(data: Bytes, place: int) -> tuple[int, int] | None:
    """Return the bytes of the frame at a place and of the headers before its data; None where there is no frame."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # sync and layer III
        return None
    version, index, rate_index = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or rate_index == 3 or index in (0, 15):
        return None
    is_first = version == 3
    rate = MP3_BITRATES[1 if is_first else 2][index] * 1000
    length = (144 if is_first else 72) * rate // MP3_RATES[version][rate_index] + (head[2] >> 1 & 1)
    is_mono = head[3] >> 6 == 3
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return length, 4 + side


def _walk_mp3(data: Bytes) -> None:
    place, end = _start_of_frames(data), _end_of_frames(data)
    starts: list[int] = []
    while place < end:
        frame = _mp3_frame(data, place)
        if frame is None:
            raise _Damage(f"damaged: no frame begins at byte {place}, where the one before it ends")
        starts.append(place)
        place += frame[0]
    if place > end:
        raise _Damage(f"cut off: its last frame ends {place - end} bytes behind the file's end")
    if not starts:
        raise _Damage("empty: it has no frames")
    _check_xing(data, starts, min(place, end))


def _check_xing(data: Bytes, starts: list[int], end: int) -> None:
    """Compare the frames with the header of lengths and the music's checksum, which most encoders write."""
    frame = _mp3_frame(data, starts[0])
    assert frame is not None
    tag = starts[0] + frame[1]
    if data[tag : tag + 4] not in (b"Xing", b"Info"):
        return
    flags, place = int.from_bytes(data[tag + 4 : tag + 8], "big"), tag + 8
    if flags & 1:
        promised = int.from_bytes(data[place : place + 4], "big")
        if promised and promised not in (len(starts) - 1, len(starts)):  # some writers count the header's own frame
            raise _Damage(f"cut off or damaged: {len(starts) - 1} frames of {promised}")
        place += 4
    place += (4 if flags & 2 else 0) + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    checksum = place + LAME_CHECKSUM
    music = int.from_bytes(data[checksum : checksum + 2], "big")
    if data[place : place + 3] not in (b"LAM", b"Lav") or not music:  # LAME and FFmpeg write a checksum, others do not
        return
    if len(starts) > 1 and _crc16(data[starts[1] : end]) != music:
        raise _Damage("damaged, or made louder by a tool: it does not match the checksum of its encoder")


def _crc16(data: Bytes) -> int:
    """Compute LAME's CRC-16: 0x8005 reflected, from 0."""
    crc, table = 0, CRC16_TABLE
    for byte in bytes(data):
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def _crc16_table() -> tuple[int, ...]:
    values = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
        values.append(value)
    return tuple(values)


CRC16_TABLE = _crc16_table()


# AAC


def _walk_aac(data: Bytes) -> None:
    place, end, number = _start_of_frames(data), _end_of_frames(data), 0
    while place < end:
        if data[place] != 0xFF or data[place + 1] & 0xF6 != 0xF0:
            raise _Damage(f"damaged: no frame begins at byte {place}, where the one before it ends")
        length = (data[place + 3] & 3) << 11 | data[place + 4] << 3 | data[place + 5] >> 5
        if length < 7:
            raise _Damage(f"damaged: its frame at byte {place} has a length of {length} bytes")
        place += length
        number += 1
    if place > end:
        raise _Damage(f"cut off: its last frame ends {place - end} bytes behind the file's end")
    if not number:
        raise _Damage("empty: it has no frames")


# OGG


def _walk_ogg(data: Bytes) -> None:
    place, has_sound = 0, False
    numbers: dict[int, int] = {}
    ended: dict[int, bool] = {}
    while place < len(data):
        if data[place : place + 4] != b"OggS":
            raise _Damage(f"damaged: no page begins at byte {place}, where the one before it ends")
        header = OGG_HEADER + data[place + 26]
        length = header + sum(data[place + OGG_HEADER : place + header])
        if place + length > len(data):
            raise _Damage(f"cut off: its last page ends {place + length - len(data)} bytes behind the file's end")
        page = bytes(data[place : place + length])
        serial, number = int.from_bytes(page[14:18], "little"), int.from_bytes(page[18:22], "little")
        if _ogg_crc(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
            raise _Damage(f"damaged: the checksum of its page at byte {place} is wrong")
        is_first = bool(page[5] & 2)
        if is_first and has_sound:
            raise _Damage("several sounds one behind the other: join them by an encoder")
        has_sound = has_sound or not is_first
        if serial in numbers and number != numbers[serial] + 1:
            raise _Damage(f"damaged: pages are missing between number {numbers[serial]} and {number}")
        numbers[serial] = number
        ended[serial] = bool(page[5] & 4)
        place += length
    if not ended:
        raise _Damage("empty: it has no pages")
    if not all(ended.values()):
        raise _Damage("cut off: its last page is not marked as such")


def _ogg_crc(page: bytes) -> int:
    """Compute CRC-32 of 0x04C11DB7 from 0, bits in order; zlib takes the bits of a byte in the other direction."""
    crc = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(REVERSED_BITS), "big")


# FLAC, MP4, Matroska: the decoder checks the frames, and the reader checks their number.


def _walk_flac(data: Bytes) -> None:
    place = _start_of_frames(data) + 4
    is_last = False
    while not is_last:
        is_last = bool(data[place] & 0x80)
        place += 4 + int.from_bytes(data[place + 1 : place + 4], "big")
    if place >= len(data):
        raise _Damage("cut off: it ends before its first frame")


def flac_samples(path: FilePath) -> int:
    """Return the number of samples in a FLAC file's header; 0 where the header has none."""
    with open(path, "rb") as file:
        head = file.read(ID3_HEADER)
        file.seek(_id3_length(head) if head[:3] == b"ID3" else 0)
        header = file.read(4 + 4 + 34)
    return int.from_bytes(header[21:26], "big") & 0xFFFFFFFFF


def _walk_mp4(data: Bytes) -> None:
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size == 0:  # the part ends with the file
            return
        if size < 8:
            raise _Damage(f"damaged: its part at byte {place} has a length of {size} bytes")
        place += size
    if place > len(data):
        raise _Damage(f"cut off: {place - len(data)} bytes are missing at its end")


def _walk_matroska(data: Bytes) -> None:
    """Step from part to part, and into the segment and its clusters, whose lengths a recorder leaves open."""
    place, end = 0, 0
    while place < len(data):
        start = place
        place, name = _ebml_number(data, place, keeps_marker=True)
        place, size = _ebml_number(data, place, keeps_marker=False)
        if name not in MATROSKA_PARTS or (size is None and name not in MATROSKA_OPENED):
            raise _Damage(f"damaged: no part begins at byte {start}, where the one before it ends")
        end = max(end, place + (size or 0))
        if name not in MATROSKA_OPENED:
            place += size or 0
    if end > len(data):
        raise _Damage(f"cut off: {end - len(data)} bytes are missing at its end")


def _ebml_number(data: Bytes, place: int, *, keeps_marker: bool) -> tuple[int, int | None]:
    """Read a number of variable length: the place behind it, and the number, None where all its bits are set."""
    length = 9 - data[place].bit_length()
    if length > 8 or place + length > len(data):
        raise _Damage(f"damaged at byte {place}")
    value = int.from_bytes(data[place : place + length], "big")
    if keeps_marker:
        return place + length, value
    value &= (1 << 7 * length) - 1
    return place + length, None if value == (1 << 7 * length) - 1 else value


WALKS: dict[str, Callable[[Bytes], None]] = {
    "mp3": _walk_mp3,
    "aac": _walk_aac,
    "ogg": _walk_ogg,
    "flac": _walk_flac,
    "mp4": _walk_mp4,
    "matroska": _walk_matroska,
}
