"""Pictures of a data set: RGB of the model's size, or refused by their row; nothing outside its folder is read."""

import contextlib
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from sysdpo.components.image.pixels import to_pixels
from sysdpo.data.sources import Recorded
from sysdpo.errors import SettingError
from tests.image_systems import make_llm_diffusion

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
WANT = torch.from_numpy(np.asarray(RGB).copy()).permute(2, 0, 1).float() / 255
SYSTEM = make_llm_diffusion()


def encoded(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"", before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_every_lossless_kind_of_one_picture() -> None:
    opaque = RGB.copy()
    opaque.putalpha(255)
    palette = RGB.quantize(64)
    for content in (
        encoded(RGB),
        encoded(RGB, "BMP"),
        encoded(RGB, "TIFF"),
        encoded(RGB, "WEBP", lossless=True),
        encoded(opaque),
    ):
        assert torch.equal(to_pixels(content, 8), WANT)
    for content in (encoded(palette), encoded(palette, "GIF")):
        assert torch.equal(to_pixels(content, 8), to_pixels(palette.convert("RGB"), 8))
    grey = RGB.convert("L")
    assert torch.equal(to_pixels(encoded(grey), 8), to_pixels(grey, 8))
    assert torch.equal(to_pixels(grey, 8)[0], to_pixels(grey, 8)[2])
    assert (to_pixels(encoded(RGB, "JPEG", quality=95), 8) - WANT).abs().mean() < 0.2


def test_what_is_transparent_stands_on_white() -> None:
    half = RGB.copy()
    half.putalpha(Image.fromarray(np.repeat([[0, 255]], 8, 0).repeat(4, 1).astype(np.uint8)))
    pixels = to_pixels(encoded(half), 8)
    assert torch.equal(pixels[:, :, 4:], WANT[:, :, 4:])
    assert torch.equal(pixels[:, :, :4], torch.ones(3, 8, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    """By the EXIF table: what the viewer must do to the stored rows and columns."""
    exif = Image.Exif()
    exif[274] = orientation
    upright = {
        1: WANT,
        2: WANT.flip(2),
        3: WANT.flip(1, 2),
        4: WANT.flip(1),
        5: WANT.transpose(1, 2),
        6: WANT.rot90(-1, (1, 2)),
        7: WANT.flip(1, 2).transpose(1, 2),
        8: WANT.rot90(1, (1, 2)),
    }[orientation]
    assert torch.equal(to_pixels(encoded(RGB, exif=exif), 8), upright)


def _text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a" * 3_000_000, zip=True)
    return encoded(RGB, pnginfo=info)


REFUSED = {
    "16-bit grey": (encoded(Image.fromarray(np.zeros((8, 8), np.uint16))), "more than 8 bits"),
    "16-bit colour": (png(8, 8, 16, 2, (b"\0" + b"\1" * 48) * 8), "more than 8 bits"),
    "16-bit with alpha": (png(8, 8, 16, 6, (b"\0" + b"\1" * 64) * 8), "more than 8 bits"),
    "32-bit": (encoded(Image.new("F", (8, 8)), "TIFF"), "more than 8 bits"),
    "CMYK": (encoded(RGB.convert("CMYK"), "JPEG"), "mode 'CMYK'"),
    "truncated PNG": (encoded(RGB)[:-60], "cannot be read"),
    "truncated JPEG": (encoded(RGB, "JPEG")[:-150], "cannot be read"),
    "no picture": (b"GIF89a", "cannot be read"),
    "empty": (b"", "cannot be read"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot be read"),
    "wrong size": (encoded(RGB.resize((9, 8))), "8 x 9 pixels where the model has 8 x 8"),
    "bomb": (png(60_000, 60_000, rows=b"\0" * 1000), "cannot be read|pixels where the model"),
    "small bomb": (png(12_000, 12_000, rows=b"\0" * 1000), "cannot be read|pixels where the model"),
    "oversized text": (_text_bomb(), "cannot be read"),
    "animation": (encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]), "2 frames"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_8_bit_picture_of_the_size_is_one_line(name: str) -> None:
    content, part = REFUSED[name]
    with pytest.raises(SettingError, match=part) as error:
        to_pixels(content, 8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_files_are_read_or_refused(seed: int) -> None:
    """Bytes changed at random, in every kind of file: a picture of the size, or one line."""
    random = np.random.default_rng(seed)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        content = bytearray(encoded(RGB.quantize(16) if kind == "GIF" else RGB, kind))
        for position in random.integers(0, len(content), 3):
            content[position] = random.integers(0, 256)
        with contextlib.suppress(SettingError):
            assert to_pixels(bytes(content), 8).shape == (3, 8, 8)


# ---- where pictures lie ----------------------------------------------------------------------------------------------


def rows_of(names: list[str]) -> str:
    side = {"y": "abc", "captions": ["a", "b", "c"]}
    rows = [
        {"x": f"p{i}", "chosen": {**side, "z": ["a.png"] * 3}, "rejected": {**side, "z": [name] * 3}}
        for i, name in enumerate(names)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_named_pictures_of_the_data_set_s_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(RGB))
    (folder / "more" / "b.png").write_bytes(encoded(RGB.rotate(90)))
    (folder / "rows.jsonl").write_text(rows_of(["more/b.png", str(folder / "more" / ".." / "more" / "b.png")]))
    pairs = Recorded(str(folder / "rows.jsonl")).read(SYSTEM, True).pairs
    assert [torch.equal(to_pixels(p.chosen["z"][0], 8), WANT) for p in pairs] == [True, True]
    SYSTEM.check_rows([p.row("rejected") for p in pairs])


def test_nothing_outside_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(RGB))
    (folder / "a.png").write_bytes(encoded(RGB))
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    os.mkfifo(folder / "pipe.png")
    outside = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "/etc/passwd",
        "~/x.png",
        "more/../../secret.png",
    ]
    for name in [*outside, "pipe.png", "gone.png", "a\0b.png", "x" * 5_000, "http://127.0.0.1/a.png", "."]:
        (folder / "rows.jsonl").write_text(rows_of(["a.png", name]).replace('"p0"', '"p"'))
        with pytest.raises(SettingError, match=r"row 2, z: .*(lies outside|there is no file)"):
            Recorded(str(folder / "rows.jsonl")).read(SYSTEM, True)


def test_stored_paths_of_a_datasets_folder_stay_inside(tmp_path: Path) -> None:
    """An image column may hold a path in place of bytes: it counts only inside the folder."""
    import pyarrow.parquet

    (tmp_path / "secret.png").write_bytes(encoded(RGB))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(RGB))
    side = {"y": "abc", "captions": ["a", "b", "c"]}

    def stored(path: str | None, content: bytes | None) -> dict[str, Any]:
        return {**side, "z": [{"bytes": content, "path": path}] * 3}

    for path, part in (
        ("../secret.png", "lies outside"),
        (str(tmp_path / "secret.png"), "lies outside"),
        ("b.png", "no file"),
    ):
        row = {"x": "p", "chosen": stored(None, encoded(RGB)), "rejected": stored(path, None)}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "rows.parquet")
        with pytest.raises(SettingError, match=rf"row 1, z: .*{part}"):
            Recorded(str(folder / "rows.parquet")).read(SYSTEM, True)
    row = {"x": "p", "chosen": stored("a.png", None), "rejected": stored("/gone", encoded(RGB.rotate(90)))}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "rows.parquet")
    (pair,) = Recorded(str(folder / "rows.parquet")).read(SYSTEM, True).pairs
    assert torch.equal(to_pixels(pair.chosen["z"][0], 8), WANT)


def test_a_text_variable_that_names_a_file_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows_of(["a.png"]).replace('"abc"', '"a.png"'))
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    with pytest.raises(SettingError, match="no pair to learn from"):
        Recorded(str(tmp_path / "rows.jsonl")).read(SYSTEM, True)  # both sides name one picture
    (tmp_path / "b.png").write_bytes(encoded(RGB.rotate(90)))
    (tmp_path / "rows.jsonl").write_text(rows_of(["b.png"]).replace('"abc"', '"a.png"'))
    (pair,) = Recorded(str(tmp_path / "rows.jsonl")).read(SYSTEM, True).pairs
    assert pair.chosen["y"] == "a.png"


CASES = {
    **dict.fromkeys(("rgb", "rgba", "palette", "gray", "jpeg", "webp", "gif", "exif", "missing"), None),
    "sixteen": "more than 8 bits",
    "cmyk": "mode 'CMYK'",
    "truncated": "cannot be read",
    "big": "64 x 64 pixels",
}
"""`missing` names photo.png, and holds its bytes too."""


@pytest.mark.parametrize("name", CASES)
def test_the_shared_cases(shared_data: Path, name: str) -> None:
    folder = shared_data / "cases" / "images" / name
    if not folder.is_dir():
        pytest.skip("the image cases of ../shared/data/cases are not here")
    system = of_32_pixels()
    refusal = CASES[name]
    if refusal is None:
        assert len(Recorded(str(folder)).read(system, True).pairs) == 4
        return
    with pytest.raises(SettingError, match=rf"^row 3, z: .*{refusal}"):
        Recorded(str(folder)).read(system, True)


def of_32_pixels() -> Any:
    system = make_llm_diffusion()
    codec: Any = system.component("diffusion").codec  # type: ignore[union-attr]
    codec.image_size = 32
    return system


@pytest.mark.parametrize(
    ("name", "part"),
    [("names", "row 1, z: there is no file 'a.png'"), ("text_captions", "row 1"), ("null", "dataset.path")],
)
def test_the_shared_cases_without_pictures(shared_data: Path, name: str, part: str) -> None:
    path = shared_data / "cases" / "images" / ("null" if name == "null" else f"{name}.jsonl")
    if not path.exists():
        pytest.skip("the image cases of ../shared/data/cases are not here")
    with pytest.raises(SettingError) as error:
        Recorded(str(path)).read(of_32_pixels(), True)
    assert part in str(error.value)
