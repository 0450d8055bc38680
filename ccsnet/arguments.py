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
