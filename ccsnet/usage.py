"""The help of a command, as wide as the terminal."""

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from ccsnet.options import Option, options_of
from ccsnet.verbs import ABOUT, NAMES, PURPOSES

COLUMN = 24  # Where the texts of options begin.
WIDEST = 100
OTHERS = "Others"


def width() -> int:
    """Of what is printed."""
    return max(40, min(WIDEST, shutil.get_terminal_size().columns))


def summary(function: object) -> str:
    """What a command does, in a few words."""
    return _first_line(function.__doc__)[0]


def help_text(verb: str, kind: type | None, default: Any, description: str | None) -> str:
    """All of a command's help.

    Args:
        verb: Its name, such as "data check".
        kind: The dataclass of its options, if it has one.
        default: An instance with their defaults, or none.
        description: The command's docstring: what it does, its usage, paragraphs.
    """
    about = ABOUT.get(verb)
    options = options_of(kind, default) if kind else []
    held = {option.name for option in options}
    options = [*(o for o in (about.more if about else ()) if o.name not in held), *options]
    return "\n".join([*opening(verb, description), *_options(options)])


def opening(verb: str, description: str | None) -> list[str]:
    """The lines of help above the options."""
    told = inspect.cleandoc(description or "")
    what, usage = _first_line(told)
    paragraphs = [f"{what}.", *told.split("\n\n")[1:]]
    lines = _wrapped(f"usage: {usage or f'ccsnet {verb} [...]'}", indent=7)
    for paragraph in paragraphs:
        lines += ["", *_wrapped(" ".join(paragraph.split()))]
    return [*lines, *examples(verb), ""]


def examples(verb: str) -> list[str]:
    """The lines of a command's examples."""
    about = ABOUT.get(verb)
    if about is None or not about.examples:
        return []
    lines = ["", "Examples:"]
    for command, meaning in about.examples:
        lines += [f"  {command}", f"      {meaning}"]
    return lines


def all_commands(verbs: Mapping[str, object]) -> str:
    """The commands by what they are for."""
    lines = ["usage: ccsnet COMMAND ..."]
    named = {verb for group in PURPOSES.values() for verb in group}
    groups = {**PURPOSES, OTHERS: tuple(verb for verb in verbs if verb not in named)}
    for purpose, group in groups.items():
        here = [verb for verb in group if verb in verbs]
        if here:
            lines += ["", f"{purpose}:"]
            lines += [f"  {verb:11} {summary(verbs[verb])}" for verb in here]
    lines += ["", "`ccsnet COMMAND --help` shows a command's options, with examples.", ""]
    return "\n".join(lines)


def _first_line(description: str | None) -> tuple[str, str]:
    """What a command does, and its usage, of the first line of its docstring."""
    line = (description or "").partition("\n")[0]
    what, found, usage = line.partition(": ccsnet ")
    return what.removesuffix("."), f"ccsnet {usage.removesuffix('.')}" if found else ""


def _options(options: Iterable[Option]) -> list[str]:
    lines, group = ["Options:", *_entry("-h, --help", "Show this.")], ""
    for option in options:
        if option.group != group:
            group = option.group
            lines += ["", *_wrapped(group.rstrip(".") + ":")]
        switch = option.off is not None and option.default is True
        name = f"{option.name}, {option.off}" if switch else option.name
        word = {"run": "RUN", None: "TEXT"}.get(NAMES.get(option.name), "NAME")
        value = option.value.replace("TEXT", word)
        lines += _entry(f"{name} {value}".rstrip(), _meaning(option))
    return [*lines, ""]


def _meaning(option: Option) -> str:
    """What an option is for, and what it is when it is not given."""
    default = option.default
    if option.required:
        said = "required"
    elif default is None or default is False or default in ("", ()):
        return option.text
    elif default is True:
        said = "on"
    else:
        values = default if isinstance(default, tuple) else (default,)
        said = " ".join(map(str, values))
    return f"{option.text} [{said}]".strip()


def _entry(head: str, text: str) -> list[str]:
    lines = _wrapped(text, indent=COLUMN, first=COLUMN)
    if len(head) + 4 > COLUMN or not text:
        return [f"  {head}", *lines] if text else [f"  {head}"]
    return [f"  {head}".ljust(COLUMN) + lines[0][COLUMN:], *lines[1:]]


def _wrapped(text: str, indent: int = 0, first: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        width() - 2,
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
