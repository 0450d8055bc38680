"""What a user is told when something that they gave cannot be used."""

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path


class InputError(ValueError):
    """A mistake in what the user gave: the text says what, got, allowed, and what to do.

    The command line prints the text alone and exits with status 2.
    """


class NotFiniteError(InputError, FloatingPointError):
    """A model's predictions are NaN or infinite: the image or the weights hold such values."""


def unknown_name(kind: str, got: str, allowed: Iterable[str], hint: str = "") -> InputError:
    """The error for a name that does not exist, with the nearest names that do.

    Args:
        kind: What the name should name, such as "backbone".
        got: The name as the user gave it.
        allowed: Every name that exists.
        hint: A closing sentence on what else is possible.
    """
    allowed = sorted(allowed)
    close = difflib.get_close_matches(got, allowed, n=3, cutoff=0.5)
    if close:
        advice = f"Perhaps you meant {' or '.join(close)}?"
    elif len(allowed) <= 20:
        advice = f"Known: {', '.join(allowed)}."
    else:
        advice = f"`ccsnet list {kind.replace(' ', '')}s` shows the {len(allowed)} known names."
    return InputError(" ".join(filter(None, [f"No {kind} is called {got!r}.", advice, hint])))


def similar_path(path: Path) -> str:
    """A question that names what lies beside a path and is called nearly so; else empty.

    It begins with a blank, to stand behind a sentence.
    """
    try:
        # Of a huge folder the first will do: an error must not take long.
        beside = [found.name for found in islice(path.parent.iterdir(), 10_000)]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.7)
    return f" Perhaps you meant {' or '.join(str(path.parent / n) for n in close)}?" * bool(close)
