"""What the verbs of the command line do with their arguments."""

from typing import Any

from ccsnet.errors import InputError


def parse(kind: Any, verb: str, arguments: list[str], **options: Any) -> Any:
    """The options as a dataclass, or usage text and exit status 2."""
    import tyro

    return tyro.cli(
        kind,
        prog=f"ccsnet {verb}",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
        **options,
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
