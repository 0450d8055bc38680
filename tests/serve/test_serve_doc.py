"""docs/serve.md: its commands and its Python run as they stand there, against a server."""

import io
import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccsnet.cli_serve import ServeArguments
from ccsnet.predict import load
from ccsnet.serve.settings import ServeSettings
from tests import pages
from tests.serve.live import serving
from tests.shapes import CLASSES

PAGE = "docs/serve.md"
URL = "http://127.0.0.1:8000"


@pytest.fixture
def place(run, tmp_path, monkeypatch):
    """A folder with all that the page names."""
    shutil.copytree(run.out, tmp_path / "runs" / "photos-ccs")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    Image.fromarray(pixels[:60]).save(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands are curl's")
def test_the_page_about_serving(place, capsys):
    commands = pages.commands(PAGE)
    starts = [words for words in commands if words[:2] == ["ccsnet", "serve"]]
    assert starts == [["ccsnet", "serve", "runs/photos-ccs"]]
    predictor = load("runs/photos-ccs", "cpu")
    expected = predictor.predict("photo.jpg")
    printed = []
    with serving(place / "runs" / "photos-ccs") as live:
        for words in commands:
            if words[0] != "curl":
                continue
            done = subprocess.run(
                [word.replace(URL, live.url) for word in words], capture_output=True, check=True
            )
            printed.append(done.stdout)
        for block in pages.blocks(PAGE, "python"):
            pages.execute(block._replace(text=block.text.replace(URL, live.url)))
    np.testing.assert_array_equal(picture("label.png"), expected.label)
    assert Path("overlay.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    _, _, areas, batch, _ = printed
    shares = {one["name"]: one["share"] for one in json.loads(areas)["areas"]}
    assert shares == expected.area
    names = [one["name"] for one in json.loads(batch)["images"]]
    assert names == ["photo.jpg", "street.png"]
    with zipfile.ZipFile("maps.zip") as archive:
        found = Image.open(io.BytesIO(archive.read("0000_photo.png")))
        assert len(archive.namelist()) == 3
    np.testing.assert_array_equal(np.asarray(found), expected.label)
    assert any(name in capsys.readouterr().out for name in CLASSES)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page's command is openssl's")
def test_the_token_of_the_page(tmp_path):
    from ccsnet.cli_serve import read_token

    (block,) = [b for b in pages.blocks(PAGE, "bash") if "openssl" in b.text]
    subprocess.run(["bash", "-ec", block.text], cwd=tmp_path, check=True)
    assert re.fullmatch(r"[0-9a-f]{64}", read_token(tmp_path / "token"))
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_the_limits_of_the_page():
    """Its table has the defaults that hold."""
    text = pages.text_of(PAGE)
    settings = ServeSettings()
    for option, value in {
        "--max-bytes": f"{settings.max_bytes // 2**20} MiB",
        "--max-pixels": f"{settings.max_pixels // 10**6} million",
        "--max-files": f"{settings.max_files} a batch",
        "--queue": f"{settings.queue} images",
        "--timeout": f"{settings.timeout:g} s",
        "--grace": f"{settings.grace:g} s",
    }.items():
        assert f"| `{option}` | {value}" in text
    assert f"`--max-wait-ms` ({settings.max_wait_ms:g})" in text
    assert f"`--batch-size` ({ServeArguments().how.batch_size})" in text
    named = set(re.findall(r"`--([a-z-]+)`", text))
    known = {field.name for kind in (ServeArguments, ServeSettings) for field in fields(kind)}
    assert named <= {name.replace("_", "-") for name in known} | {"batch-size"}
    assert f"client_max_body_size {settings.max_batch_bytes // 2**20 + 1}m" in text


def test_the_page_names_every_route():
    from ccsnet.serve.service import create_app
    from tests.serve.engines import TameEngine

    text = Path(pages.ROOT / PAGE).read_text("utf-8")
    for path in create_app(TameEngine()).openapi()["paths"]:
        assert f" {path}`" in text
