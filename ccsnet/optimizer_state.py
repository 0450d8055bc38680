"""An optimizer's state as named tensors, from which a run goes on with the very same numbers.

A checkpoint holds tensors and nothing else. Those of the state are named by parameter, such as
"0/exp_avg"; all that is no tensor (counts, rates that the optimizer finds itself, what is
remembered of which parameter) is JSON, in the bytes of one tensor more. Neither dtype nor type
changes on the way, unlike with torch's `load_state_dict`, which casts to the parameter's dtype.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ccsnet.errors import InputError

REST = "rest"

# What a run sets in its parameter groups itself: resuming takes it from the run's settings.
_OF_THE_RUN = frozenset(
    ("params", "name", "lr", "peak_lr", "weight_decay", "max_lr_snapshot", "use_fallback")
)

_START = "Resume with the settings that the run was started with, or start another run."
_DAMAGED = "Copy the checkpoint again, or use an earlier one."


def state_tensors(
    optimizer: Optimizer, *, gather: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """All that an optimizer remembers, contiguous and without gradients.

    The tensors are the optimizer's own where possible, so its next step changes them.

    Args:
        optimizer: The optimizer, between two steps.
        gather: Makes a whole tensor from a sharded one. Called for every tensor in the same order
            in every process.

    Raises:
        InputError: The optimizer keeps something where it cannot be seen, or that is neither a
            tensor nor a number, a text, or a list of such.
    """
    _check_visible(optimizer)
    tensors: dict[str, Tensor] = {}
    states = []
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter)
        states.append(_encode(state, str(number), tensors, parameter))
    first = _parameters(optimizer)[0]
    groups = [
        _encode(_changed(group, optimizer.defaults), f"group{number}", tensors, first)
        for number, group in enumerate(optimizer.param_groups)
    ]
    rest = {
        "optimizer": type(optimizer).__name__,
        "shapes": _shapes(optimizer),
        "state": states,
        "groups": groups,
    }
    text = json.dumps(rest, allow_nan=False).encode()
    whole = gather or (lambda tensor: tensor)
    found = {name: whole(tensor.detach()).contiguous() for name, tensor in tensors.items()}
    return {**found, REST: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def restore_state(
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    *,
    scatter: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Put back what `state_tensors` returned; the optimizer stays as it was if that cannot be.

    Args:
        optimizer: A new one, made with the same settings over the same parameters.
        tensors: What was returned.
        scatter: Makes of a whole tensor, and the parameter that it belongs to, what is kept beside
            that parameter: its shard, on its device. None: a copy on its device.

    Raises:
        InputError: The tensors are missing, damaged, or of another optimizer or another model.
    """
    _check_visible(optimizer)
    rest = _read_rest(tensors)
    _check_same(optimizer, rest)
    place = scatter or _beside

    def decoded(value: Any, parameter: Tensor) -> Any:
        return _decode(value, tensors, parameter, place)

    first = _parameters(optimizer)[0]
    try:
        states = {
            parameter: decoded(state, parameter)
            for parameter, state in zip(_parameters(optimizer), rest["state"], strict=True)
        }
        changes = [
            (group, decoded(values, first))
            for group, values in zip(optimizer.param_groups, rest["groups"], strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"The optimizer's state is damaged ({error!r}). {_DAMAGED}") from error
    optimizer.state.clear()
    for parameter, state in states.items():
        if state is not None:
            optimizer.state[parameter] = state
    for group, values in changes:
        group.update(values)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    """The shapes of every group's parameters."""
    return [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]


def _check_visible(optimizer: Optimizer) -> None:
    """Refuse an optimizer that keeps more than `state` and `param_groups`, such as a wrapper."""
    whole = optimizer.state_dict()
    seen = sum(parameter in optimizer.state for parameter in _parameters(optimizer))
    if set(whole) != {"state", "param_groups"} or len(whole["state"]) != seen:
        raise InputError(
            f"The optimizer {type(optimizer).__name__} keeps something beside the state of its "
            "parameters, which a checkpoint cannot hold. `ccsnet list optimizers` shows those "
            "that can be used."
        )


def _changed(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What the optimizer itself may have changed in a group: all that is not as it began.

    What can change within (lists, tensors) is always taken: the default may be the same object.
    """
    return {
        name: value
        for name, value in group.items()
        if name not in _OF_THE_RUN
        and (
            isinstance(value, list | dict | Tensor)
            or name not in defaults
            or type(value) is not type(defaults[name])
            or value != defaults[name]
        )
    }


def _encode(value: Any, name: str, tensors: dict[str, Tensor], parameter: Tensor) -> Any:
    """A value as JSON; the tensors within are put aside and named there."""
    if isinstance(value, Tensor):
        assert name not in tensors, f"two tensors are called {name}"
        tensors[name] = value
        # Counts that every step reads stay off the accelerator.
        host = value.is_cpu and value.ndim == 0 and not (parameter.is_cpu and parameter.ndim == 0)
        return {"tensor": name, "host": host}
    if isinstance(value, list):
        return [_encode(v, f"{name}/{i}", tensors, parameter) for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": _encode(list(value), name, tensors, parameter)}
    if isinstance(value, dict):
        pairs = [[key, _encode(v, f"{name}/{key}", tensors, parameter)] for key, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"The optimizer keeps a {type(value).__name__} as {name!r}, which a checkpoint cannot hold."
        " `ccsnet list optimizers` shows those that can be used."
    )


def _decode(
    value: Any,
    tensors: Mapping[str, Tensor],
    parameter: Tensor,
    place: Callable[[Tensor, Tensor], Tensor],
) -> Any:
    """What `_encode` was given."""
    if isinstance(value, list):
        return [_decode(v, tensors, parameter, place) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        return tensor.to("cpu", copy=True) if value["host"] else place(tensor, parameter)
    if "tuple" in value:
        return tuple(_decode(value["tuple"], tensors, parameter, place))
    if "dict" in value:
        return {key: _decode(v, tensors, parameter, place) for key, v in value["dict"]}
    return float(value["float"])


def _beside(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy on the parameter's device, and in its memory order if it is of its shape.

    The order in which a norm adds up follows the order in memory.
    """
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.to(parameter.device, copy=True)


def _read_rest(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if not tensors:
        raise InputError(
            "This checkpoint holds weights alone; only a run's last one can be resumed from."
        )
    if REST not in tensors:
        raise InputError(
            f"The optimizer's state has no {REST!r}: it was written by another version of ccsnet. "
            "Resume with that version, or start another run."
        )
    try:
        rest = json.loads(tensors[REST].cpu().numpy().tobytes())
        listed = _names({"dict": [["state", rest["state"]], ["groups", rest["groups"]]]})
        rest = {key: rest[key] for key in ("optimizer", "shapes", "state", "groups")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"The optimizer's state is damaged ({error!r}). {_DAMAGED}") from error
    given = set(tensors) - {REST}
    if given != listed:
        other = sorted(given ^ listed)
        raise InputError(
            f"The optimizer's state lists {len(listed)} tensors, and {len(given)} are there; "
            f"{other[0]!r} is in one of the two alone. {_DAMAGED}"
        )
    return rest


def _names(value: Any) -> set[str]:
    """Names of the tensors within an encoded value."""
    if isinstance(value, list):
        return set().union(*map(_names, value))
    if not isinstance(value, dict):
        return set()
    return {value["tensor"]} if "tensor" in value else set().union(*map(_names, value.values()))


def _check_same(optimizer: Optimizer, rest: dict[str, Any]) -> None:
    """Refuse the state of another optimizer or another model."""
    kind = type(optimizer).__name__
    if rest["optimizer"] != kind:
        raise InputError(
            f"The optimizer's state is that of {rest['optimizer']}, and this run has {kind}. "
            f"{_START}"
        )
    groups, expected = rest["shapes"], _shapes(optimizer)
    saved = [shape for group in groups for shape in group]
    shapes = [shape for group in expected for shape in group]
    if len(saved) != len(shapes):
        raise InputError(
            f"The optimizer's state is of {len(saved)} parameters, and this run trains "
            f"{len(shapes)}. {_START}"
        )
    for number, (old, new) in enumerate(zip(saved, shapes, strict=True)):
        if old != new:
            raise InputError(
                f"In the optimizer's state the shape of parameter {number} is {tuple(old)}, and in "
                f"this run it is {tuple(new)}. {_START}"
            )
    if groups != expected:
        raise InputError(
            f"The optimizer's state has its parameters in {len(groups)} groups, and this run has "
            f"them in {len(expected)} or puts them into others. {_START}"
        )
