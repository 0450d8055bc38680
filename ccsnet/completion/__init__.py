"""Scripts that let a shell complete commands; all that they need stands in them.

Each shell asks the same tables: what a command is followed by, its options, and what follows
an option. A value's entry is words to choose from; `@path`, `@run`, `@dataset` and `@KIND` of
`ccsnet list` stand for what is on the disk and for names.
"""

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ccsnet import __version__
from ccsnet.arguments import kind_of
from ccsnet.options import Option, options_of
from ccsnet.usage import summary
from ccsnet.verbs import ABOUT, NAMES

WORDS_SHOWN = 8  # Of an option's text, where the shell shows texts.

_HEAD = f"# Completion of ccsnet {__version__}: `ccsnet completion` wrote it.\n"

Function = Callable[[list[str]], int]


class Command(NamedTuple):
    """A command as completion sees it."""

    text: str
    words: tuple[str, ...]
    """What stands before the options; what the last one is may be repeated if it ends in "..."."""
    options: list[Option]


def script(shell: str, verbs: Mapping[str, Function]) -> str:
    """The script for a shell, one of `SHELLS`."""
    return SHELLS[shell](commands(verbs), names())


def commands(verbs: Mapping[str, Function]) -> dict[str, Command]:
    """Every command, those of `ccsnet data` too; those that have commands of their own are `@`."""
    found: dict[str, Command] = {}
    for verb, function in verbs.items():
        inner = _inner(function, verbs)
        found[verb] = Command(summary(function), ("@",), []) if inner else _command(verb, function)
        for name, one in inner.items():
            found[f"{verb} {name}"] = _command(f"{verb} {name}", one)
    return found


def _inner(function: Function, verbs: Mapping[str, Function]) -> Mapping[str, Function]:
    """The commands of a command's own module: `ccsnet data` has some."""
    own = vars(sys.modules[function.__module__]).get("VERBS", {})
    return {} if own is verbs or function in own.values() else own


def _command(verb: str, function: Function) -> Command:
    about, asked = ABOUT.get(verb), kind_of(function)
    options = [] if asked is None else options_of(asked.kind, asked.default)
    more = list(about.more) if about else []
    return Command(summary(function), about.words if about else (), [*more, *options])


def names() -> dict[str, list[str]]:
    """What `ccsnet list` shows, by kind."""
    from ccsnet.backbones.timm import backbone_names
    from ccsnet.optim import optimizer_names
    from ccsnet.plugins import plugin_names, plugin_notes
    from ccsnet.recipes import RECIPES

    return {
        "backbones": sorted(backbone_names()),
        "datasets": plugin_names("ccsnet.datasets"),
        "heads": sorted(plugin_notes("ccsnet.heads")),
        "losses": sorted(plugin_notes("ccsnet.losses")),
        "optimizers": sorted(optimizer_names()),
        "recipes": sorted(RECIPES),
    }


def follows(option: Option) -> str:
    """What can follow an option: the entry of a value, empty where nothing can be proposed."""
    if not option.value:
        return ""
    listed = "|".join(option.values) == option.value  # And nothing else is allowed.
    kind = None if listed else NAMES.get(option.name)
    found = [*option.values, *([f"@{'dataset' if kind == 'datasets' else kind}"] if kind else [])]
    return " ".join(found) or ("@path" if "PATH" in option.value else "")


def stands(word: str) -> str:
    """The same for what stands before the options, such as "run" or "bash|zsh|fish"."""
    kind = word.removesuffix("...")
    if "|" in kind:
        return kind.replace("|", " ")
    return "" if kind == "text" else f"@{kind}"


def _text(option: Option) -> str:
    """The beginning of what is said of an option."""
    first = re.split(r"[.;:] |[.;:]$|\(", option.text)[0].split()
    return " ".join(first[:WORDS_SHOWN]) + (" ..." if len(first) > WORDS_SHOWN else "")


def _switches(command: Command) -> Iterator[tuple[str, str]]:
    """All that a command's options can be typed as, with their texts."""
    for option in command.options:
        yield option.name, _text(option)
        if option.off is not None and option.default is True:
            yield option.off, "Not so"
    yield "--help", "Show all options, with examples"


def _tables(found: Mapping[str, Command], known: Mapping[str, list[str]]) -> str:
    """The tables as functions that bash and zsh understand; the answer is in REPLY."""

    def function(name: str, subject: str, rows: list[tuple[str, str]]) -> list[str]:
        same: dict[str, list[str]] = {}
        for pattern, answer in rows:
            same.setdefault(answer, []).append(pattern)
        lines = [f"{name}() {{", f"    case {subject} in"]
        for answer, patterns in same.items():
            choice = "|".join(shlex.quote(pattern) for pattern in patterns)
            lines.append(f"    {choice}) REPLY={shlex.quote(answer)} ;;")
        return [*lines, "    *) REPLY= ;;", "    esac", "}"]

    top = [(verb, command.text) for verb, command in found.items() if " " not in verb]
    inner = [(verb, command.text) for verb, command in found.items() if " " in verb]
    below: dict[str, list[tuple[str, str]]] = {"": [*top, ("--help", ""), ("--version", "")]}
    for name, text in inner:
        verb, _, own = name.partition(" ")
        below.setdefault(verb, []).append((own, text))
    verbs = [(verb, "\n".join(f"{n}:{text}" for n, text in rows)) for verb, rows in below.items()]
    options = [
        (verb, "\n".join(f"{name}:{text}" for name, text in _switches(command)))
        for verb, command in found.items()
    ]
    values = [
        (f"{verb} {option.name}", f"{'+' if _several(option) else '1'} {follows(option)}")
        for verb, command in found.items()
        for option in command.options
        if option.value
    ]
    words = [
        (f"{verb} {number}", f"{'+' if word.endswith('...') else '1'} {stands(word)}")
        for verb, command in found.items()
        for number, word in enumerate(command.words)
        if word != "@"
    ]
    lists = [(kind, " ".join(listed)) for kind, listed in known.items()]
    return "\n".join(
        [
            *function("_ccsnet_verbs", '"$1"', verbs),
            *function("_ccsnet_options", '"$1"', options),
            *function("_ccsnet_value", '"$1 $2"', values),
            *function("_ccsnet_word", '"$1 $2"', words),
            *function("_ccsnet_names", '"$1"', lists),
        ]
    )


def _several(option: Option) -> bool:
    """Whether more than one value may follow."""
    return option.many or " " in option.value


def _bash(found: Mapping[str, Command], known: Mapping[str, list[str]]) -> str:
    return f"{_HEAD}{_tables(found, known)}\n{_part('state.sh')}{_part('bash.sh')}"


def _zsh(found: Mapping[str, Command], known: Mapping[str, list[str]]) -> str:
    lines = f"{_tables(found, known)}\n{_part('state.sh')}{_part('zsh.sh')}"
    return f"#compdef ccsnet\n{_HEAD}{lines}"


def _fish(found: Mapping[str, Command], known: Mapping[str, list[str]]) -> str:
    lists = "\n".join(
        f"    case {kind}\n        string split ' ' {shlex.quote(' '.join(listed))}"
        for kind, listed in known.items()
    )
    lines = [_HEAD + _part("fish.fish").replace("NAMES", lists).strip()]

    def add(condition: str, *more: str) -> None:
        lines.append(" ".join(["complete -c ccsnet -n", _quoted(condition), *more]))

    add("__ccsnet_at 0", "-l", "version", "-d", "'The version'")
    for verb, command in found.items():
        outer, _, own = verb.rpartition(" ")
        add(f"__ccsnet_at 0 {outer}".strip(), "-a", own, "-d", _quoted(command.text))
        for number, word in enumerate(command.words):
            if word == "@":
                continue
            several = "+" if word.endswith("...") else ""
            add(f"__ccsnet_at {number}{several} {verb}", *_fish_value(stands(word)))
        for name, text in _switches(command):
            option = next((o for o in command.options if o.name == name), None)
            value = ["-x", *_fish_value(follows(option))] if option and option.value else []
            add(f"__ccsnet_in {verb}", "-l", name[2:], *value, "-d", _quoted(text))
            if option and _several(option) and len(value) > 1:  # Fish thinks of one value.
                add(f"__ccsnet_after {name} {verb}", *value[1:])
    return "\n".join(lines) + "\n"


def _fish_value(entry: str) -> list[str]:
    """How fish is told of an entry: nothing else is proposed but where it is a path."""
    stand = {
        "@path": "(__fish_complete_path (commandline -ct))",
        "@run": "(__ccsnet_runs)",
        "@dataset": "(__ccsnet_names datasets; __fish_complete_directories (commandline -ct) '')",
    }
    words = [
        stand.get(one, f"(__ccsnet_names {one[1:]})" if one.startswith("@") else one)
        for one in entry.split()
    ]
    return ["-a", _quoted(" ".join(words))] if words else []


def _quoted(text: str) -> str:
    """A text as fish takes it, in which nothing is replaced."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _part(file: str) -> str:
    return (Path(__file__).parent / file).read_text("utf-8")


SHELLS: dict[str, Callable[[Mapping[str, Command], Mapping[str, list[str]]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
