"""docs/app.md: its commands and its Python run as they stand there; its figures are the code's."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette

import ccsnet
from ccsnet import cli
from ccsnet.app import jobs, launch, results, server, why
from ccsnet.app.settings import AppSettings
from ccsnet.checkpoint import save_checkpoint
from ccsnet.inference import TOGETHER
from tests.shapes import tiny_model

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "app.md").read_text("utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(run, other, tmp_path, monkeypatch):
    """A folder with all that the page names."""
    for name in ("demo", "photos-ccs"):
        shutil.copytree(run.out, tmp_path / "runs" / name)
    shutil.copytree(run.data / "images" / "val", tmp_path / "archive")
    save_checkpoint(
        tmp_path / "runs" / "photos-segformer" / "best.safetensors",
        other.model.state_dict(),
        replace(run.config, model=tiny_model("fcn")),
        other.info,
        step=1,
    )
    monkeypatch.chdir(tmp_path)


def test_commands_run(place, monkeypatch, capsys):
    served = []
    monkeypatch.setattr(launch, "serve", lambda app, *_, **__: served.append(app.state.app))
    commands = [shlex.split(line, comments=True) for line in blocks("bash")[0].splitlines()]
    for program, *arguments in commands:
        if program == "ccsnet":
            assert cli.run(arguments) == 0, capsys.readouterr().err
    assert [app.names for app in served] == [
        ("demo",),
        ("photos-ccs",),
        ("photos-ccs", "photos-segformer"),
        ("photos-ccs",),
    ]
    assert len(served[3].folder) == 4


def test_python_runs(place):
    (text,) = blocks("python")
    names: dict = {}
    exec(compile(text, "docs/app.md", "exec"), names)
    assert isinstance(names["page"], Starlette)


def test_options_exist(capsys):
    with pytest.raises(SystemExit):
        ccsnet.arguments.parse(ccsnet.cli_app.AppArguments, "app", ["--help"])
    told = capsys.readouterr().out
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - {"--steps", "--save"}
    assert len(options) > 8
    for option in options:
        assert option in told, option


def test_figures_are_those_of_the_code():
    defaults = AppSettings()
    for text in (
        f"| megapixels of an image | {defaults.max_megapixels:g} |",
        f"| MiB of its file | {defaults.max_megabytes:g} |",
        f"the oldest go first | {defaults.keep_megabytes:g} |",
        f"| images waiting | {jobs.MAX_WAITING} |",
        f"| images of `--images` | {launch.MAX_FOLDER:,} |".replace(",", " "),
        f"at once at more than {TOGETHER / 1e6:.1f} megapixels",
        f"in windows of {results.LARGE_WINDOW};",
        f"to windows of {results.WINDOW} pixels",
        f"than {why.MAX_PIXELS / 1e6:.1f} megapixels",
        f"above {results.CONFIDENCE_PIXELS / 1e6:.0f} megapixel",
        "Up to 2000 are shown",
    ):
        assert " ".join(text.split()) in " ".join(PAGE.split()), text
    assert "MOST = 2000;" in (server.STATIC / "gallery.js").read_text("utf-8")
    size = sum(path.stat().st_size for path in server.STATIC.iterdir())
    said = re.search(r"instead: (\d+) KB of HTML", PAGE)
    assert said is not None
    assert abs(size / 1000 - int(said[1])) < 4


def test_keys_are_those_of_the_page():
    script = (server.STATIC / "main.js").read_text("utf-8")
    table = PAGE[PAGE.index("| key |") : PAGE.index("## How images are seen")]
    for key in re.findall(r"`([^`]+)`", table):
        name = "Escape" if key == "Esc" else key
        assert re.search(rf'^  "?{re.escape(name)}"?[:(]', script, re.MULTILINE), key


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", PAGE):
        assert (DOCS / target).exists(), target
