"""Every option of every command, for the reference pages: what `--help` shows, as tables.

Nothing is listed by hand: commands, options, meanings and defaults are those of the command line.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from ccsnet import cli
from ccsnet.arguments import kind_of
from ccsnet.config import RunConfig
from ccsnet.data.opening import DataConfig
from ccsnet.options import Option, options_of
from ccsnet.recipes import RECIPES
from ccsnet.verbs import ABOUT

ALL_BUT = "all but "


class Verb(NamedTuple):
    """A command, such as `data check`."""

    name: str
    text: str
    """Its docstring."""
    kind: type | None
    """The dataclass of its options."""
    options: list[Option]


def verbs() -> list[Verb]:
    """All commands, those of `ccsnet data` one by one."""
    return [_verb(name, function) for name, function in _functions("", cli.VERBS)]


def _functions(prefix: str, found: dict[str, Callable]) -> Iterator[tuple[str, Callable]]:
    for name, function in found.items():
        own = vars(inspect.getmodule(function)).get("VERBS")
        if own is not None and own is not found and not prefix:
            yield from _functions(f"{name} ", own)
        else:
            yield prefix + name, function


def _verb(name: str, function: Callable) -> Verb:
    asked = kind_of(function)
    text, kind, options = inspect.getdoc(function) or "", None, []
    if name in ABOUT:
        options += ABOUT[name].more
    if asked is not None and asked.kind is not None:
        kind = asked.kind
        options += options_of(kind, asked.default)
    return Verb(name, text, kind, options)


def chosen(names: str) -> list[tuple[Verb, Verb | None]]:
    """The commands of a mark: `train find-lr`, or `all but train find-lr`.

    Beside each stands the one before it whose options it takes, if it takes another's.
    """
    wanted, excluded = names.removeprefix(ALL_BUT).split(), names.startswith(ALL_BUT)
    found: list[tuple[Verb, Verb | None]] = []
    for verb in verbs():
        if (verb.name in wanted) != excluded:
            same = (v for v, _ in found if v.kind is verb.kind and v.kind is not None)
            found.append((verb, next(same, None)))
    return found


def as_markdown(verb: Verb, like: Verb | None = None) -> str:
    """A command's section; of one with the options of another, only the defaults that differ."""
    head, _, rest = verb.text.partition("\n\n")
    summary, _, usage = " ".join(head.split()).partition(": ccsnet")
    parts = [f"## ccsnet {verb.name}", summary.rstrip(".:") + "."]
    if usage:
        parts.append(f"```text\nccsnet{usage.removesuffix('.')}\n```")
    parts += [_prose(rest)] if rest else []
    if verb.name in ABOUT and ABOUT[verb.name].examples:
        lines = [f"# {meaning}\n{command}" for command, meaning in ABOUT[verb.name].examples]
        parts.append("```bash\n" + "\n".join(lines) + "\n```")
    if like is not None:
        parts.append(_like(verb, like))
    else:
        for group, options in groupby(verb.options, lambda option: option.group):
            if group:
                parts.append(f"### {re.split('[.;]( |$)', group)[0]}")
            parts.append(_table(options))
    return "\n\n".join(parts)


def _like(verb: Verb, like: Verb) -> str:
    usual = {option.name: option.default for option in like.options}
    differing = [o for o in verb.options if o.name in usual and usual[o.name] != o.default]
    defaults = ", ".join(f"`{option.name}` {shown(option)}" for option in differing)
    told = f"Options: those of [`ccsnet {like.name}`](#ccsnet-{like.name})"
    return told + (f"; other defaults: {defaults}." if differing else ".")


def _prose(text: str) -> str:
    """A docstring's further paragraphs; what is set in is an example."""
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            parts.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        else:
            parts.append(" ".join(paragraph.split()))
    return "\n\n".join(parts)


def _table(options: Iterable[Option]) -> str:
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    for option in options:
        typed = f"`{option.name}`" + (f"<br>`{option.off}`" if option.default is True else "")
        value = f"<code>{option.value}</code>" if option.value else ""
        cells = (typed, value, shown(option), option.text)
        lines.append("| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |")
    return "\n".join(lines)


def shown(option: Option) -> str:
    """A default, as it would be typed."""
    if option.required:
        return "needed"
    if not option.value:
        return "yes" if option.default else "no"
    return f"`{typed}`" if (typed := plain(option.default)) else "none"


def plain(value: Any) -> str:
    """A value as it would be typed; nothing for none."""
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def recipes_as_markdown() -> str:
    """Each recipe, and what it sets otherwise than the settings' own defaults."""
    usual = _defaults(RunConfig(data=DataConfig(dataset="")))
    parts = []
    for name, make in RECIPES.items():
        parts.append(f"## {name}\n\n{_prose(inspect.getdoc(make) or '')}")
        settings = _defaults(make()).items()
        differing = [f"- `{_typed(k, v)}`" for k, v in settings if v != usual[k]]
        parts.append("\n".join(differing) or "All as by default.")
    return "\n\n".join(parts)


def _defaults(config: RunConfig) -> dict[str, Any]:
    return {option.name: option.default for option in options_of(RunConfig, config)}


def _typed(option: str, value: Any) -> str:
    if isinstance(value, bool):
        return option if value else f"--no-{option.removeprefix('--')}"
    return f"{option} {plain(value) or None}"
