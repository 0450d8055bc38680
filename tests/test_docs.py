"""README and docs: every block is run or says why not, every link leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ccsnet.loss import parse_loss
from ccsnet.recipes import RECIPES
from docs._site import options
from tests import pages
from tests.pages import ROOT

PAGES = pages.pages()

# The test file that runs what stands in a page. A page without code needs none.
RUN_BY = {
    "README.md": "tests/test_readme.py",
    "README_zh-CN.md": "tests/test_readme_zh.py",
    "docs/app.md": "tests/app/test_app_doc.py",
    "docs/compare.md": "tests/test_compare_cli.py",
    "docs/convert.md": "tests/test_convert.py",
    "docs/hub.md": "tests/test_predict_doc.py",
    "docs/losses.md": "tests/test_loss.py",
    "docs/metrics.md": "tests/test_metrics_doc.py",
    "docs/notebooks/own_data.ipynb": "tests/test_docs_notebook.py",
    "docs/predict.md": "tests/test_predict_doc.py",
    "docs/scaling.md": "tests/test_scaling_doc.py",
    "docs/serve.md": "tests/serve/test_serve_doc.py",
    **dict.fromkeys(
        (
            "docs/data-check.md",
            "docs/export.md",
            "docs/extend.md",
            "docs/from-hugging-face.md",
            "docs/from-mmsegmentation.md",
            "docs/from-smp.md",
            "docs/import.md",
            "docs/own-data.md",
            "docs/rasters.md",
            "docs/resume.md",
            "docs/shards.md",
            "docs/start.md",
            "docs/study.md",
            "docs/tracking.md",
            "docs/variants.md",
        ),
        "tests/test_docs_run.py",
    ),
}
PROGRAMS = ("ccsnet", "python", "torchrun", "make", "pip")
OF_OTHERS = {"--upgrade", "--no-deps"}  # Options of programs that stand beside ours in a line.


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_run_or_say_why_not(page):
    to_run = pages.blocks(page)
    if to_run:
        assert page in RUN_BY, f"{page} has code that no test runs: {to_run[0]}"
        text = (ROOT / RUN_BY[page]).read_text("utf-8")
        names = Path(page).name, f'"{Path(page).stem}": ('  # The second is an entry of NEEDED.
        assert any(name in text for name in names), f"{RUN_BY[page]} does not name {page}"
    for block in pages.all_blocks(page):
        if block.kind not in pages.CODE:
            starts = block.text.lstrip("$ ").split(maxsplit=1)[:1]
            assert starts != ["ccsnet"] or "..." in block.text, f"say that it is bash: {block}"
        assert block.reason is None or len(block.reason) > 10, f"why not? {block}"


def test_nothing_is_listed_that_is_gone():
    for page, test in RUN_BY.items():
        if (ROOT / page).exists():
            assert (ROOT / test).exists(), test
            assert pages.blocks(page) or page.endswith(".ipynb"), f"{page} has nothing to run"


def test_every_option_in_a_command_exists():
    known = {
        verb.name: {form for o in verb.options for form in (o.name, o.off) if form}
        for verb in options.verbs()
    }
    found = 0
    for page in PAGES:
        for block in pages.all_blocks(page):
            for words in pages.lines(block) if block.kind == "bash" else ():
                if "ccsnet" not in words[:-1] or words[0] not in (*PROGRAMS, "OMP_NUM_THREADS=1"):
                    continue
                rest = words[words.index("ccsnet") + 1 :]
                verb = " ".join(rest[:2]) if rest[0] == "data" else rest[0]
                if verb.startswith("-") or verb in ("pip", "."):
                    continue
                assert verb in known, f"{page}: {' '.join(words)}"
                given = {w.partition("=")[0] for w in rest if re.match(r"--[a-z]", w)}
                assert given <= known[verb] | OF_OTHERS, f"{page}: {given - known[verb]}"
                found += 1
    assert found > 50


@pytest.mark.parametrize("name", ["from-hugging-face", "from-mmsegmentation", "from-smp"])
def test_what_notions_are_mapped_to_exists(name):
    text = pages.text_of(f"docs/{name}.md")
    cells = re.findall(r"^\|.*\| ([^|\n]+) \|$", text, re.MULTILINE)
    typed = {option for cell in cells for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", cell)}
    ours = {form for verb in options.verbs() for o in verb.options for form in (o.name, o.off)}
    assert len(typed) > 10
    assert typed <= ours | {"--standalone", "--nproc-per-node"}, typed - ours
    for loss in re.findall(r"--loss '?([^'`\n|]+)'?`", text):
        parse_loss(loss)
    recipes = re.findall(r"--recipe (\w+)", text)
    assert {*recipes} - {"NAME"} <= {*RECIPES}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in pages.links(page):
        if re.match(r"[a-z]+:", target):
            assert re.fullmatch(r"(https?://[\w.-]+\.[a-z]+(:\d+)?(/\S*)?|mailto:\S+@\S+)", target)
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page}: no {target}"
        if anchor and place.suffix in (".md", ".ipynb"):
            name = place.resolve().relative_to(ROOT).as_posix()
            generated = name.startswith("docs/reference/")  # Their headings are made by the build.
            assert generated or anchor in pages.anchors(name), f"{page}: no heading {target}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE))
    here = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert named == {page.replace(".ipynb", ".md") for page in here}


def test_every_command_is_in_the_reference():
    names = [verb.name for verb in options.verbs()]
    texts = [(ROOT / f"docs/reference/{name}.md").read_text() for name in ("train", "commands")]
    marks = [re.findall(r"<!-- options of: (.*?) -->", text) for text in texts]
    made = [verb.name for (mark,) in marks for verb, _ in options.chosen(mark)]
    assert sorted(made) == sorted(names)
    assert {"train", "data check", "predict", "export"} <= set(names)


def test_the_reference_says_what_the_code_says():
    (train, _), (find_lr, like) = options.chosen("train find-lr")
    made = options.as_markdown(train)
    assert (
        "| `--batch-size` | <code>N</code> | `8` | Images for each optimizer step, over all" in made
    )
    assert "| `--flip`<br>`--no-flip` |  | yes | Mirror half" in made
    assert like is train
    assert "`--steps` `100`" in options.as_markdown(find_lr, like)
    recipes = options.recipes_as_markdown()
    assert "## own" in recipes
    assert "- `--backbone resnet18`" in recipes


def test_drawings_are_as_their_code_draws_them():
    from docs._site.drawings import DRAWINGS, IMAGES

    for name, draw in DRAWINGS.items():
        assert (IMAGES / f"{name}.svg").read_text("utf-8") == draw(), name
        assert f"images/{name}.svg" in pages.text_of("docs/method.md")


def test_blocks_are_told_apart(tmp_path, monkeypatch):
    text = (
        "<!-- not run: needs a GPU that is not here -->\n```bash\nccsnet train a\n```\n"
        "- item\n\n  ```bash\n  ccsnet runs \\\n    --json a  # all\n  ```\n"
        "<!-- made by `x` -->\n```bash\nold\n```\n<!-- end of what is made -->\n"
        "```python\nx = 1\n```\n# The *Head* of `it`: all\n"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text(text)
    assert [(b.kind, b.reason) for b in pages.all_blocks("a.md")] == [
        ("bash", "needs a GPU that is not here"),
        ("bash", None),
        ("python", None),
    ]
    assert pages.commands("a.md") == [["ccsnet", "runs", "--json", "a"]]
    assert pages.execute(*pages.blocks("a.md", "python"))["x"] == 1
    assert pages.anchors("a.md") == {"the-head-of-it-all"}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_outside(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = sorted(site.rglob("*.html"))
    assert len(found) >= len(RUN_BY)
    for page in found:
        tags = re.findall(
            r"<(?:script|link|img|iframe|source|video)\b[^>]*>", page.read_text("utf-8")
        )
        assert not [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)], (
            page
        )
        assert "<!-- options of" not in page.read_text("utf-8")
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text("utf-8"))
    assert "svg" in (site / "method.html").read_text("utf-8")
    assert "--batch-size" in (site / "reference/train.html").read_text("utf-8")
    assert "pebble" in (site / "notebooks/own_data.html").read_text("utf-8")
