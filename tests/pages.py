"""What stands in README and docs: blocks of code, links, headings, read alike by all tests.

A block of bash or Python is run by a test, or stands under `<!-- not run: the reason -->`. What
lies between marks of what is made (`<!-- made by ... -->`, `<!-- study: ... -->`) is output.
"""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CODE = ("bash", "python")
MADE = re.compile(r"<!-- (?:made by|study:).*?<!-- end.*?-->", re.DOTALL)
FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^>]+?) -->\n)?"
    r"^(?P<space> *)```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^(?P=space)```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    text: str
    reason: str | None
    """Why no test runs it, if it is said."""


def pages() -> list[str]:
    """All pages: README, its translation where there is one, and docs, notebooks too."""
    found = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]
    found += (ROOT / "docs").rglob("*.ipynb")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def text_of(page: str) -> str:
    """A page's Markdown; of a notebook that of its text cells."""
    text = (ROOT / page).read_text("utf-8")
    if not page.endswith(".ipynb"):
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def all_blocks(page: str) -> list[Block]:
    """A page's fenced blocks, but for those that a program has written there."""
    text = MADE.sub(lambda found: "\n" * found[0].count("\n"), text_of(page))
    blocks = []
    for found in FENCE.finditer(text):
        space = found["space"]
        body = re.sub(rf"^{space}", "", found["text"], flags=re.MULTILINE) if space else None
        line = text.count("\n", 0, found.start("kind")) + 1
        block = Block(page, line, found["kind"], body or found["text"], found["reason"])
        blocks.append(block)
    return blocks


def blocks(page: str, *kinds: str) -> list[Block]:
    """The blocks of bash and Python, or of one of them, that a test has to run."""
    wanted = kinds or CODE
    return [b for b in all_blocks(page) if b.kind in wanted and b.reason is None]


def lines(block: Block) -> list[list[str]]:
    """The commands of a block of bash, as lists of words."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [words for line in joined if (words := shlex.split(line, comments=True))]


def commands(page: str) -> list[list[str]]:
    """The commands of a page that a test has to run."""
    return [words for block in blocks(page, "bash") for words in lines(block)]


def execute(block: Block, names: dict | None = None) -> dict:
    """Run a block of Python; returns what it has named."""
    names = {} if names is None else names
    exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)
    return names


def links(page: str) -> list[str]:
    """The targets of a page's links and pictures."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    return [*inline, *re.findall(r"<(https?://[^>\s]+)>", text)]


def anchors(page: str) -> set[str]:
    """What a link can lead to on a page: its headings, as GitHub and MkDocs name them."""
    text = re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    plain = (re.sub(r"`|\*|\[|\]\([^)]*\)", "", heading).lower() for heading in headings)
    return {re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", heading)) for heading in plain}
