"""What is released: one version everywhere, and a wheel that works alone, far from the checkout."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import ccsnet
from tests.shapes import OPTIONS, make_shapes

ROOT = Path(ccsnet.__file__).parents[1]
RELEASE = ROOT / ".venv" / "release" / "bin"
MAX_LINES = 60  # Of CONTRIBUTING.md.
CFF_VERSION = "1.2.0"


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


# One version, one paper


def test_the_version_stands_in_one_place():
    found = project()
    assert "version" not in found["project"]
    assert found["project"]["dynamic"] == ["version"]
    assert found["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ccsnet.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", ccsnet.__version__)
    assert citation()["version"] == ccsnet.__version__


def test_the_changelog():
    """In the form of Keep a Changelog: newest first, dated, and kinds of changes by their names."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    heads = re.findall(r"^## \[(.+?)\](?: - (.+))?$", text, re.MULTILINE)
    versions = [(name, date) for name, date in heads if name != "Unreleased"]
    assert versions[0][0] == ccsnet.__version__
    for _, date in versions:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d|not yet released", date)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation():
    """What the schema of CFF 1.2.0 requires, and the paper as the README cites it."""
    found = citation()
    assert found["cff-version"] == CFF_VERSION
    assert {"message", "title", "authors"} <= set(found)
    assert found["license"] == project()["project"]["license"]
    paper = found["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    names = (f"{one['family-names']}, {one['given-names'][0]}." for one in paper["authors"])
    for part in (
        paper["title"],
        " and ".join(names),
        f"{paper['start']}--{paper['end']}",
        paper["volume"],
        str(paper["year"]),
    ):
        assert part in readme, part
    assert project()["project"]["urls"]["Paper"].endswith(paper["doi"])


def test_contributing_is_short():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert len(text.splitlines()) < MAX_LINES
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make ((?:[a-z]+ ?)+)", text, re.MULTILINE):
        for one in target.split():
            assert re.search(rf"^{one}:", makefile, re.MULTILINE), one


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text("utf-8")):
        assert (ROOT / target).exists(), target


def test_extras_are_in_dev():
    """So that the tests of each run; the documentation has an environment of its own."""
    extras = project()["project"]["optional-dependencies"]
    for extra, packages in extras.items():
        assert extra in ("dev", "docs") or set(packages) <= set(extras["dev"]), extra


# The distributions


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The wheel and the source distribution, of a copy of the checkout."""
    if not RELEASE.is_dir():
        pytest.skip("nothing to build with: make .venv/release/installed")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    built = _run(RELEASE / "python", "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    assert "Warning" not in built, built
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return source, wheel, archive


@pytest.fixture(scope="module")
def fresh(made, tmp_path_factory):
    """An environment with the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    _run(folder / "bin/pip", "install", "--no-deps", "--no-index", made[1])
    return folder


@pytest.fixture
def full(fresh):
    """The same, with the packages of this environment within reach, but not with this ccsnet."""
    (packages,) = (p for p in sys.path if p.endswith("site-packages"))
    (inside,) = fresh.glob("lib/python*/site-packages")
    (inside / "others.pth").write_text(f"{packages}\n")  # What .pth files there say is not done.
    yield fresh
    (inside / "others.pth").unlink()


def _run(*words, cwd=None, status=0):
    """What a program prints, of which nothing here is on the path."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**own, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_distributions_are_sound(made):
    source, wheel, archive = made
    assert wheel.name == f"ccsnet-{ccsnet.__version__}-py3-none-any.whl"
    assert _run(RELEASE / "twine", "check", "--strict", wheel, archive).count("PASSED") == 2
    assert "valid" in _run(RELEASE / "cffconvert", "--validate", "-i", source / "CITATION.cff")


@pytest.mark.slow
def test_the_wheel_holds_all_of_the_package(made):
    source, wheel, archive = made
    ours = {str(p.relative_to(source)) for p in (source / "ccsnet").rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {name for name in names if name.startswith("ccsnet/")} == ours
    assert "ccsnet/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert ours <= inside
    assert {"README.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "tests/shapes.py"} <= inside


@pytest.mark.slow
def test_without_any_other_package(fresh, tmp_path):
    """What is missing is said, by the command that is for it too."""
    program = fresh / "bin/ccsnet"
    assert _run(program, "--version", cwd=tmp_path) == f"ccsnet {ccsnet.__version__}\n"
    assert "train" in _run(program, cwd=tmp_path)
    assert "--save" in _run(program, "predict", "--help", cwd=tmp_path)
    told = _run(program, "doctor", "--json", "doctor.json", cwd=tmp_path, status=1)
    assert "pip install 'torch>=" in told
    assert (tmp_path / "doctor.json").is_file()
    assert "pip install ccsnet" in _run(program, "train", "photos", cwd=tmp_path, status=2)


@pytest.mark.slow
def test_from_data_to_predictions(full, tmp_path):
    program = full / "bin/ccsnet"
    where = "import ccsnet; print(ccsnet.__file__)"
    assert str(full) in _run(full / "bin/python", "-c", where, cwd=tmp_path)
    make_shapes(tmp_path / "shapes", train=4, val=2)
    assert "ccs" in _run(program, "list", "heads", cwd=tmp_path)
    assert "#compdef ccsnet" in _run(program, "completion", "zsh", cwd=tmp_path)
    assert str(full) in _run(program, "doctor", cwd=tmp_path)
    _run(program, "data", "browse", "shapes", cwd=tmp_path)
    for seed in (0, 1):
        out = ("--out", f"runs/{seed}", "--seed", seed)
        _run(program, "train", "shapes", *OPTIONS, "--steps", 2, *out, cwd=tmp_path)
    _run(program, "evaluate", "runs/0", "--out", "figures", "--cpu", cwd=tmp_path)
    compared = ("compare", "runs/0", "runs/1", "--out", "why.html", "--cpu")
    _run(program, *compared, cwd=tmp_path)
    _run(program, "predict", "runs/0", "shapes/images/val", "--save", "overlay", cwd=tmp_path)
    for file in ("shapes.html", "runs/0/report.html", "figures/evaluation.html", "why.html"):
        assert (tmp_path / file).stat().st_size > 1000
    assert len([*(tmp_path / "predictions/overlay").iterdir()]) == 2
    assert "2 runs" in _run(full / "bin/python", "-m", "ccsnet", "runs", cwd=tmp_path)
