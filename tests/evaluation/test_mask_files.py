"""Masks that other systems saved: what is read, and what is refused in words that name the file."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_rl.evaluation.mask_files import list_predictions
from aurora_rl.evaluation.predictions import PredictionError
from tests.saved_predictions import write_npzs, write_pngs

LEVELS = np.arange(3 * 10 * 9, dtype=np.uint8).reshape(3, 10, 9)
PROBS = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)


def read(folder: Path, row: int = 7) -> torch.Tensor:
    return list_predictions(folder).rows[row].read().mask_probs


def png(image: Image.Image, folder: Path, name: str = "0.png", row: str = "7") -> Path:
    (folder / row).mkdir(parents=True, exist_ok=True)
    image.save(folder / row / name)
    return folder


# ---- what is read -----------------------------------------------------------------------------------------------


def test_grey_levels_are_probabilities_of_255(tmp_path: Path):
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    probs = read(write_pngs(tmp_path, {7: every}))
    assert probs.dtype == torch.float32
    assert np.array_equal(probs.numpy().ravel(), np.array([np.float32(level / 255) for level in range(256)]))


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path):
    frames = np.repeat(np.arange(12, dtype=np.uint8), 4).reshape(12, 2, 2)
    assert np.array_equal(read(write_pngs(tmp_path, {7: frames})).numpy() * 255, frames)  # 10.png after 9.png


def test_zero_padded_names_are_read(tmp_path: Path):
    for index in range(3):
        png(Image.fromarray(LEVELS[index]), tmp_path, f"{index:05d}.png", row="007")
    assert torch.equal(read(tmp_path), torch.from_numpy(LEVELS / np.float32(255)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_probabilities_of_every_float_type_are_read(tmp_path: Path, dtype: str):
    found = read(write_npzs(tmp_path, {7: PROBS.astype(dtype)}))
    assert torch.equal(found, torch.from_numpy(PROBS.astype(dtype).astype(np.float32)))


def test_logits_become_probabilities_and_are_kept(tmp_path: Path):
    logits = np.array([[[-2.0, 0.0, 3.0, np.inf, -np.inf]]])
    masks = list_predictions(write_npzs(tmp_path, {7: logits}, name="logits")).rows[7].read()
    assert masks.mask_probs.flatten().tolist() == pytest.approx([0.1192029, 0.5, 0.9525741, 1.0, 0.0])
    assert masks.mask_logits.flatten().tolist() == logits.flatten().tolist()


def test_fortran_order_is_read(tmp_path: Path):
    assert torch.equal(read(write_npzs(tmp_path, {7: np.asfortranarray(PROBS)})), torch.from_numpy(PROBS))


def test_other_files_are_listed_as_ignored(tmp_path: Path):
    write_pngs(tmp_path, {7: LEVELS})
    for name in ("README.md", "12", "3.npy", "7/notes.txt", "7/.0.png.swp", "9.npz/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = list_predictions(tmp_path)
    assert list(found.rows) == [7]
    ignored = {os.path.relpath(path, tmp_path) for path in found.ignored}
    assert ignored == {"README.md", "12", "3.npy", "7/notes.txt", "7/.0.png.swp", "9.npz"}


def test_fingerprint_changes_with_a_frame(tmp_path: Path):
    write_pngs(tmp_path, {7: LEVELS})
    before = list_predictions(tmp_path).rows[7].fingerprint
    assert before == list_predictions(tmp_path).rows[7].fingerprint
    path = tmp_path / "7" / "1.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert list_predictions(tmp_path).rows[7].fingerprint != before


# ---- what is refused --------------------------------------------------------------------------------------------


def test_row_with_two_predictions_is_refused(tmp_path: Path):
    write_npzs(write_pngs(tmp_path, {7: LEVELS}), {7: PROBS})
    write_npzs(tmp_path, {8: PROBS})
    found = list_predictions(tmp_path).rows
    with pytest.raises(PredictionError, match=r"row 7 has two predictions, .*7 and .*7\.npz"):
        found[7].read()
    assert torch.equal(found[8].read().mask_probs, torch.from_numpy(PROBS))


def test_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(PredictionError, match="no folder"):
        list_predictions(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(np.zeros((4, 4), dtype=np.uint16)), r"0\.png has mode I;16"),
        (Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)), r"0\.png has mode RGB"),
    ],
    ids=["16 bits", "colour"],
)
def test_png_of_another_kind_is_refused(tmp_path: Path, image: Image.Image, words: str):
    with pytest.raises(PredictionError, match=words):
        read(png(image, tmp_path))


def test_frames_of_different_sizes_are_refused(tmp_path: Path):
    png(Image.new("L", (4, 4)), tmp_path)
    with pytest.raises(PredictionError, match=r"1\.png has 5x4"):
        read(png(Image.new("L", (5, 4)), tmp_path, "1.png"))


def test_gap_in_the_frames_is_refused(tmp_path: Path):
    png(Image.new("L", (4, 4)), tmp_path, "1.png")
    with pytest.raises(PredictionError, match=r"7 has 1 frames but no 0\.png: count them from 0"):
        read(tmp_path)


def test_frame_given_twice_is_refused(tmp_path: Path):
    png(Image.new("L", (4, 4)), tmp_path, "0.png")
    with pytest.raises(PredictionError, match=r"frame 0 twice"):
        read(png(Image.new("L", (4, 4)), tmp_path, "00.png"))


def test_png_that_is_no_frame_is_refused(tmp_path: Path):
    with pytest.raises(PredictionError, match=r"overlay\.png is no frame"):
        read(png(Image.new("L", (4, 4)), tmp_path, "overlay.png"))


def test_empty_folder_is_refused(tmp_path: Path):
    (tmp_path / "7").mkdir()
    with pytest.raises(PredictionError, match=r"7 holds no <frame>\.png"):
        read(tmp_path)


def test_file_that_is_no_png_is_refused(tmp_path: Path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "0.png").write_bytes(b"GIF89a")
    with pytest.raises(PredictionError, match=r"cannot read the image .*0\.png"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (PROBS[0], r"7\.npz: probs has shape \(4, 5\), expected \(F, H, W\)"),
        (PROBS[None], r"shape \(1, 3, 4, 5\)"),
        (PROBS[:0], "at least one value"),
        (np.full((2, 2, 2), np.nan), r"7\.npz: probs hold nan, first in frame 0"),
        (np.array([[[0.5]], [[1.5]]]), r"probs hold 1\.5, first in frame 1.*named logits"),
        (np.array([[[-0.25]]]), r"probs hold -0\.25"),
        (np.zeros((1, 2, 2), dtype=np.uint8), "probs is uint8, expected float16"),
        (np.zeros((1, 2, 2), dtype=bool), "probs is bool"),
        (np.full((1, 1, 1), None, dtype=object), "probs is object"),
    ],
    ids=["2 axes", "4 axes", "no frames", "NaN", "above 1", "below 0", "integers", "bool", "objects"],
)
def test_array_of_another_kind_is_refused(tmp_path: Path, values: np.ndarray, words: str):
    with pytest.raises(PredictionError, match=words):
        read(write_npzs(tmp_path, {7: values}))


def test_nan_among_logits_is_refused(tmp_path: Path):
    with pytest.raises(PredictionError, match="logits hold NaN, first in frame 1"):
        read(write_npzs(tmp_path, {7: np.array([[[0.0]], [[np.nan]]])}, name="logits"))


def test_npz_without_the_array_or_with_both_is_refused(tmp_path: Path):
    with pytest.raises(PredictionError, match=r"7\.npz holds mask\.npy: expected one array, probs, logits or masks"):
        read(write_npzs(tmp_path, {7: PROBS}, name="mask"))
    np.savez(tmp_path / "7.npz", probs=PROBS, logits=PROBS)
    with pytest.raises(PredictionError, match=r"probs\.npy, logits\.npy: expected one"):
        read(tmp_path)


def test_damaged_npz_is_refused(tmp_path: Path):
    path = write_npzs(tmp_path, {7: PROBS}) / "7.npz"
    whole = path.read_bytes()
    for content in (b"", b"nothing", whole[:60], whole[:-30], whole.replace(whole[60:64], b"\xff\xff\xff\xff")):
        path.write_bytes(content)
        with pytest.raises(PredictionError, match=r"7\.npz"):
            read(tmp_path)


def test_pickle_is_never_opened(tmp_path: Path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("x",))

    np.savez(tmp_path / "7.npz", probs=np.array([Evil()], dtype=object))
    with pytest.raises(PredictionError, match="object"):
        read(tmp_path)
    assert not marker.exists()


def zip_with_header(path: Path, shape: tuple[int, ...], data: bytes) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probs.npy", header.getvalue() + data)


def zip_with_text(path: Path, text: bytes, *, version: int = 1, length: int | None = None) -> None:
    """An array whose header is this text."""
    size = (len(text) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probs.npy", b"\x93NUMPY" + bytes([version, 0]) + size + text + bytes(16))


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 2)}"
HEADERS = {
    "minus signs": b"-" * 9000 + b"1",
    "brackets": b"[" * 4000 + b"]" * 4000,
    "sums": b"+".join([b"1"] * 4500),
    "attributes": b"a" + b".a" * 4000,
    "keys of two types": b"{'descr': '<f4', 1: False, 'shape': (1, 2, 2)}",
    "unhashable key": b"{[]: 1}",
    "negative shape": HEADER.replace(b"(1, 2, 2)", b"(-1, -2, 2)"),
    "endless shape": HEADER.replace(b"(1, 2, 2)", b"(" + b"9" * 4000 + b", 1, 1)"),
    "shape of texts": HEADER.replace(b"(1, 2, 2)", b"('a', 2, 2)"),
    "no such type": HEADER.replace(b"<f4", b"<q99"),
    "deep type": HEADER.replace(b"'<f4'", b"[('a', " * 500 + b"'<f4'" + b")]" * 500),
    "type of 16 bytes": HEADER.replace(b"<f4", b"<f16").replace(b"(1, 2, 2)", b"(1, 1, 1)"),
    "no UTF-8": b"\xff" * 60,
    "empty": b"",
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_header_of_another_kind_is_refused(tmp_path: Path, text: bytes, version: int):
    zip_with_text(tmp_path / "7.npz", text, version=version)
    with pytest.raises(PredictionError, match=r"7\.npz"):
        read(tmp_path)


def test_header_that_would_inflate_to_gigabytes_is_not_read(tmp_path: Path):
    zip_with_text(tmp_path / "7.npz", HEADER + b" " * 3_000_000, version=2)
    with pytest.raises(PredictionError, match="a header of 3000060 bytes"):
        read(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_each_changed_byte_of_an_npz_is_refused_or_harmless(tmp_path: Path, method: int):
    data = io.BytesIO()
    np.save(data, PROBS)
    path = tmp_path / "7.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("probs.npy", data.getvalue())
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert read(tmp_path).shape == PROBS.shape
        except PredictionError as error:
            assert "7.npz" in str(error)


def test_each_changed_byte_of_a_png_is_refused_or_harmless(tmp_path: Path):
    path = png(Image.fromarray(LEVELS[0]), tmp_path) / "7" / "0.png"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            path.write_bytes(content)
            try:
                assert read(tmp_path).ndim == 3
            except PredictionError as error:
                assert "0.png" in str(error)


def test_array_that_claims_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path):
    zip_with_header(tmp_path / "7.npz", (10, 100_000, 100_000), b"")
    with pytest.raises(PredictionError, match="at most 128000000"):
        read(tmp_path)


def test_array_with_more_or_less_data_than_its_shape_is_refused(tmp_path: Path):
    for data in (b"\0" * 15, b"\0" * 10**6):
        zip_with_header(tmp_path / "7.npz", (1, 2, 2), data)
        with pytest.raises(PredictionError, match="its size does not fit its shape"):
            read(tmp_path)
