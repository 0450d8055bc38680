"""What benchmarks print, in pages of the documentation."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.pages import PLACE, filled, output_of

ROOT = Path(__file__).parent.parent
PAGE = """# Speed

<!-- made by `python -m benchmarks.one --size 3` -->
old
<!-- end of what is made -->

between

<!-- made by `python -m benchmarks.two` -->
<!-- end of what is made -->
after
"""


def test_tables_and_text():
    said = {
        "python -m benchmarks.one --size 3": "Head of it.\n| a |\n|---|\n| 1 |\n",
        "python -m benchmarks.two": "1 second\n2 seconds\n",
    }
    page = filled(PAGE, [], said.get, "Commit 1234567.")
    assert page == (
        "# Speed\n\n<!-- made by `python -m benchmarks.one --size 3` -->\n\nHead of it.\n\n| a |\n"
        "|---|\n| 1 |\n\nCommit 1234567.\n\n<!-- end of what is made -->\n\nbetween\n\n"
        "<!-- made by `python -m benchmarks.two` -->\n\n```text\n1 second\n2 seconds\n```\n\n"
        "Commit 1234567.\n\n<!-- end of what is made -->\nafter\n"
    )
    assert filled(page, [], said.get, "Commit 1234567.") == page


def test_what_fails_or_is_not_asked_for_stays():
    assert filled(PAGE, ["three"], lambda _: "new", "") == PAGE
    assert filled(PAGE, [], lambda _: None, "") == PAGE
    page = filled(PAGE, ["two"], lambda _: "new", "")
    assert "old" in page
    assert page.count("new") == 1


def test_commands_are_run(capfd):
    assert output_of("python -c 'print(2 + 3)'") == "5\n"
    assert output_of("python -c 'print(1); raise SystemExit(3)'") is None
    assert output_of("python -c 'print(\"USDT:2026 x.cpp:52] profiler_start\\n7\")'") == "7\n"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_places_are_closed_and_their_benchmarks_exist(page):
    text = page.read_text(encoding="utf-8")
    places = PLACE.findall(text)
    assert len(places) == len(re.findall("^<!-- made by ", text, re.MULTILINE))
    for _, command, *_ in places:
        assert find_spec(shlex.split(command)[2]) is not None, command
