"""What the verbs of the command line do with their arguments."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import is_dataclass
from itertools import takewhile
from typing import Any, cast

from ccsnet.errors import InputError
from ccsnet.options import options_of
from ccsnet.usage import help_text


class Asked(BaseException):
    """What a command's options are made of, where `kind_of` asks and no user does."""

    def __init__(self, kind: Any, default: Any) -> None:
        super().__init__()
        self.kind, self.default = kind, default


_asking = ContextVar("asking", default=False)


def kind_of(verb: Callable[[list[str]], Any]) -> Asked | None:
    """The dataclass of a command's options, and its defaults; none of a command without one."""
    token = _asking.set(True)
    try:
        verb(["--help"])
    except Asked as found:
        return found if found.kind is not None else None
    finally:
        _asking.reset(token)
    return None


def parse(
    kind: Any,
    verb: str,
    arguments: list[str],
    *,
    default: Any = None,
    description: str | None = None,
) -> Any:
    """The options as a dataclass; or help, or what is wrong and exit status 2.

    A command that has no such dataclass calls it for its help alone.
    """
    if _asking.get():
        raise Asked(kind, default)
    if "-h" in arguments or "--help" in arguments:
        print(help_text(verb, kind, default, description))
        raise SystemExit(0)
    _check_numbers_of_values(kind, default, arguments)
    import tyro

    return tyro.cli(
        kind,
        prog=f"ccsnet {verb}",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
        **({} if default is None else {"default": default}),
    )


def _check_numbers_of_values(kind: Any, default: Any, arguments: list[str]) -> None:
    """Refuse fewer values than an option takes, such as --crop 512 for height and width.

    Raises:
        InputError: An option has too few.
    """
    if not is_dataclass(kind):
        return
    names = [word.split("=", 1)[0] for word in arguments]
    for option in options_of(cast(type, kind), default):
        wanted = len(option.value.split())
        if wanted < 2 or option.many or option.name not in names:
            continue
        place = names.index(option.name)
        joined = arguments[place].split("=", 1)[1:]  # Behind "=" only one can stand.
        behind = takewhile(lambda word: not word.startswith("--"), arguments[place + 1 :])
        given = joined or list(behind)
        if len(given) < wanted and given != ["None"]:
            raise InputError(
                f"{option.name} takes {wanted} values, {option.value}, and got "
                f"{' '.join(given) or 'none'}. {option.text}"
            )


def positional(
    what: str, arguments: list[str], verb: str, kind: Any, description: str | None
) -> tuple[str, list[str]]:
    """What stands first, such as the run or the folder, and the arguments behind it.

    Raises:
        InputError: An option stands first.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        parse(kind, verb, ["--help"], description=description)
    if arguments[0].startswith("-"):
        word = what.replace(" ", "").upper()
        raise InputError(
            f"First comes the {what}: ccsnet {verb} {word} ... (got {arguments[0]!r})."
        )
    return arguments[0], arguments[1:]


def second(
    question: str, arguments: list[str], verb: str, kind: Any, description: str | None
) -> tuple[str, list[str]]:
    """What stands behind the first, and the arguments behind it.

    Args:
        question: Asked where nothing stands there.
        arguments: Of the verb, without the first.
        verb: Shown in the help.
        kind: The dataclass of the verb's options, for its help.
        description: Of the verb, for its help.

    Raises:
        InputError: Nothing, or an option, stands there.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        parse(kind, verb, ["--help"], description=description)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(question)
    return arguments[0], arguments[1:]


def before_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words before the first option, and the rest."""
    cut = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    return arguments[:cut], arguments[cut:]


def take(arguments: list[str], option: str) -> tuple[str | None, list[str]]:
    """An option's value, and the arguments without it."""
    for i, argument in enumerate(arguments):
        if argument == option:
            if i + 1 == len(arguments):
                raise InputError(f"{option} needs a value.")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2], arguments[:i] + arguments[i + 1 :]
    return None, arguments
