"""What a user is told when something that they gave cannot be used."""

import difflib
from collections.abc import Iterable


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
