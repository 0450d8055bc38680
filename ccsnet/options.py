"""What options a command has: read from the dataclass of its arguments, without importing torch.

Help, shell completion and the reference in the documentation are made of these.
"""

import ast
import dataclasses
import inspect
import itertools
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

_WORDS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
_ABSENT = object()


class Option(NamedTuple):
    """One option of a command."""

    name: str
    """As it is typed, such as --batch-size."""
    value: str = ""
    """What follows it, as help shows it; empty: a switch, which --no-NAME puts off."""
    values: tuple[str, ...] = ()
    """What can follow it, where that can be listed."""
    many: bool = False
    """Whether any number of values follow."""
    default: Any = None
    required: bool = False
    text: str = ""
    group: str = ""
    """What the dataclass that holds it says of itself; of the outermost: empty."""

    @property
    def off(self) -> str | None:
        """What puts a switch off."""
        return None if self.value else f"--no-{self.name.removeprefix('--')}"


def options_of(kind: type, default: Any = None, group: str = "") -> list[Option]:
    """The options of a dataclass in their order, those of dataclasses within it behind its own.

    Args:
        kind: The dataclass.
        default: An instance that holds the defaults; none: those of the fields.
        group: Of the options that stand in `kind` itself.
    """
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    own, inner = [], []
    for field in dataclasses.fields(kind):
        annotation, value = hints[field.name], _default(field, default)
        if dataclasses.is_dataclass(annotation):
            about = inspect.getdoc(annotation) or ""
            given = None if value is _ABSENT else value
            inner += options_of(
                typing.cast(type, annotation), given, " ".join(about.partition("\n\n")[0].split())
            )
            continue
        shown, values, many = _shape(annotation)
        own.append(
            Option(
                name="--" + field.name.replace("_", "-"),
                value=shown,
                values=values,
                many=many,
                default=None if value is _ABSENT else value,
                required=value is _ABSENT,
                text=texts.get(field.name, ""),
                group=group,
            )
        )
    return own + inner


def _default(field: dataclasses.Field, instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _ABSENT


def _shape(annotation: Any) -> tuple[str, tuple[str, ...], bool]:
    """How help shows a value, what can be listed of it, and whether any number may follow."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        if kinds == [bool]:  # None is a third state, which a switch has no word for.
            return "True|False", ("True", "False"), False
        shapes = [_shape(kind) for kind in kinds]
        values = tuple(value for _, listed, _ in shapes for value in listed)
        return "|".join(shown for shown, _, _ in shapes), values, any(m for *_, m in shapes)
    if annotation is bool:
        return "", (), False
    if origin is Literal:
        return "|".join(map(str, arguments)), tuple(map(str, arguments)), False
    if origin is tuple:
        shown, values, _ = _shape(arguments[0])
        if arguments[-1] is Ellipsis:
            return f"{shown} ...", values, True
        return " ".join(_shape(kind)[0] for kind in arguments), values, False
    return _WORDS.get(annotation, "TEXT"), (), False


def _texts(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        try:
            file = inspect.getsourcefile(one)
        except TypeError:
            file = None
        body = _bodies(file).get(one.__qualname__, []) if file else []
        for field, text in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


@cache
def _bodies(file: str) -> dict[str, list[ast.stmt]]:
    """The statements of a file's classes, none where the source is not there."""
    try:
        tree = ast.parse(Path(file).read_text("utf-8"))
    except OSError:
        return {}
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
