"""The Chinese README says what the English one does: commands, figures, pictures, links, parts."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "README_zh-CN.md")
# Chinese has its own commas, and numbers written as words are words.
FIGURE = re.compile(r"(?<![\w.])\d[\d.,]*\d\b|(?<![\w.])\d\b|\b[0-9a-f]{7}\b")


@pytest.fixture(scope="module")
def both():
    return [(ROOT / name).read_text("utf-8") for name in FILES]


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def blocks(text):
    """Code by language, what a reader would run: comments are prose, and may be translated."""
    found = []
    for kind, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        lines = [line.partition(" #")[0].rstrip() for line in code.splitlines()]
        found.append((kind, [line for line in lines if line]))
    return found


def shape(text):
    """What stands where: headings, list items, tables, code, paragraphs; not how lines break."""
    found = []
    for part in re.split(r"\n{2,}", re.sub(r"```.*?```", "```", text, flags=re.DOTALL).strip()):
        first = part.lstrip()
        if first.startswith("#"):
            found.append(first.partition(" ")[0])
        elif first.startswith("- "):
            found.append(f"{len(re.findall(r'^- ', part, re.MULTILINE))} items")
        elif first.startswith("|"):
            found.append(f"{len(part.splitlines())} rows")
        else:
            found.append("picture" if first.startswith("![") else first[:3] == "```" and "code")
    return found


def test_each_names_the_other(both):
    for text, other in zip(both, reversed(FILES), strict=True):
        assert f"]({other})" in "\n".join(text.splitlines()[:4])


def test_the_same_commands_and_code(both):
    english, chinese = map(blocks, both)
    assert len(english) >= 4
    assert chinese == english


def test_the_same_parts_in_the_same_order(both):
    english, chinese = map(shape, both)
    assert chinese == english


def test_the_same_figures_in_tables(both):
    def figures(text):
        rows = [line for line in text.splitlines() if line.startswith("|")]
        return [re.findall(FIGURE, row) for row in rows]

    english, chinese = map(figures, both)
    assert chinese == english


def test_the_same_figures_in_each_part(both):
    def figures(text):
        parts = re.split(r"^## .*$", without_code(text), flags=re.MULTILINE)
        return [Counter(re.findall(FIGURE, part)) for part in parts]

    english, chinese = map(figures, both)
    for ours, theirs in zip(english, chinese, strict=True):
        assert ours == theirs


def test_the_same_pictures_links_and_names(both):
    def links(text):
        found = re.findall(r"\]\(([^)]+)\)", text)
        return Counter(target for target in found if target not in FILES)

    def names(text):
        return Counter(re.findall(r"`([^`\n]+)`", without_code(text)))

    for what in (links, names):
        english, chinese = map(what, both)
        assert chinese == english


def test_it_is_chinese(both):
    """Every paragraph and item, apart from code, has been translated."""
    for part in re.split(r"\n{2,}|\n(?=- |\|)", without_code(both[1])):
        prose = re.sub(r"`[^`]*`|\]\([^)]*\)|[|#*\-\s]", "", part)
        if len(prose) > 30:
            assert len(re.findall(r"[\u4e00-\u9fff]", prose)) / len(prose) > 0.3, part
