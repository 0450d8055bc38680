"""The training loss: named losses, weighted and added, of the predictions that a head makes."""

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ccsnet.errors import InputError, unknown_name
from ccsnet.heads._base import Output, resize
from ccsnet.losses._base import SMALLEST, Loss
from ccsnet.plugins import find_plugin, plugin_names

# B images, N classes, T terms, (H, W) the label's grid, (h, w) the logits' grid.

PACKAGE = "ccsnet.losses"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
BRACKETED = re.compile(r"([^()]+)\(([^()]*)\)\s*(?::([^()]*))?")
"""Name, options and, behind a colon, weight."""


class Term(NamedTuple):
    """One of the losses that are added."""

    weight: float
    name: str
    """A file of ccsnet/losses, or "your_module:NAME"."""
    options: Mapping[str, float | int]
    """Of its `build`."""


def parse_loss(text: str) -> tuple[Term, ...]:
    """The terms that a text such as "ce:1+dice:3" or "ohem(threshold=0.6):0.5+dice" adds up.

    A term is a loss's name, its options in brackets, and after a colon its weight; both may be
    left out, and the weight is 1 then.

    Raises:
        InputError: A name, an option or a number cannot be used, or there is no term.
    """
    if not text.strip():
        raise InputError('The loss is empty. Name one, such as "ce" or "ce:1+dice:3".')
    # A plus before a digit is a number's, as in 1e+3: no name begins with one.
    return tuple(_term(term.strip(), text) for term in re.split(r"\+(?![\d.])", text))


def _term(term: str, text: str) -> Term:
    if match := BRACKETED.fullmatch(term):
        name, inside, weight = match.groups()
    elif term and not set("()") & set(term):
        name, colon, weight = term.rpartition(":")
        inside = ""
        # "your_module:NAME" has a colon too; behind the name of a loss it is the weight's.
        if not colon or not (_is_number(weight) or name.strip() in plugin_names(PACKAGE)):
            name, weight = term, None
    else:
        raise InputError(
            f"The term {term!r} of the loss {text!r} cannot be read. A term is name, "
            "name:weight or name(option=number):weight, and a plus stands between two."
        )
    name = name.strip()
    value = 1 if weight is None else _number(weight, f"The weight of {name!r}", text)
    if value < 0:
        raise InputError(
            f"The weight of {name!r} is {value:g} in the loss {text!r}: a loss with a negative "
            "weight would be made large. Give a weight of 0 or more."
        )
    return Term(float(value), name, _options(name, inside, text))


def _options(name: str, inside: str, text: str) -> dict[str, float | int]:
    """What stands in a term's brackets, each an option that the loss has."""
    options: dict[str, float | int] = {}
    for pair in filter(None, (pair.strip() for pair in inside.split(","))):
        option, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise InputError(
                f"{pair!r} in the loss {text!r} is no option of {name!r}; "
                f"write it as {name}(option=number)."
            )
        if option in options:
            raise InputError(f"{name!r} has {option} twice in the loss {text!r}. Leave one out.")
        options[option] = _number(value, f"The option {option} of {name!r}", text)
    return _checked(name, options)


def _checked(name: str, options: dict[str, float | int]) -> dict[str, float | int]:
    """The options, if the loss has them, of the type that it asks for."""
    build = find_plugin(PACKAGE, name, "build")
    if not callable(build):
        raise InputError(f"The loss {name!r} is no function or class that could be called.")
    parameters = inspect.signature(build).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return options
    for option in options:
        if not parameters:
            raise InputError(f"The loss {name!r} has no options; got {option!r}. Leave it out.")
        if option not in parameters:
            hint = f"It has: {', '.join(parameters)}."
            raise unknown_name(f"option of {name!r}", option, parameters, hint)
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise InputError(f"The loss {name!r} needs {option!r}: write {name}({option}=number).")
    for option, value in options.items():
        kind = parameters[option].annotation
        if kind in (float, "float"):
            options[option] = float(value)
        elif kind in (int, "int") and not isinstance(value, int):
            raise InputError(f"The loss {name!r} has {option}={value}; it must be a whole number.")
    return options


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text.strip()) is not None


def _number(text: str, what: str, whole: str) -> float | int:
    """An int if it is written as one."""
    text = text.strip()
    if not _is_number(text) or not math.isfinite(float(text)):
        raise InputError(
            f"{what} is {text!r} in the loss {whole!r}; it must be a number, such as 0.5."
        )
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


class SegmentationLoss:
    """The loss of all predictions; the same however a batch is split.

    Each term is a total divided by a count. On a part of a batch, give the counts of the whole:
    the parts' losses then add up to that of the whole, and so do their gradients.

    Args:
        loss: Of the final prediction, as `parse_loss` reads it.
        coarse_loss: Of the coarse prediction; none: the same.
        coarse_weight: Of the coarse prediction's loss; the final prediction's is 1.
            Source: 0.4 from the authors' release.
        ignore_index: The label of pixels that teach nothing.
        class_weights: For the losses that weigh pixels; dice, tversky and lovasz do not.
        auxiliary_weight: Of the auxiliary prediction's loss, where a head makes one; but for this
            weight it is the coarse prediction's.

    Raises:
        InputError: A loss or a weight cannot be used, or class weights are given and no loss
            uses them.
    """

    def __init__(
        self,
        loss: str = "ce",
        coarse_loss: str | None = None,
        coarse_weight: float = 0.4,
        ignore_index: int = 255,
        class_weights: Float[Tensor, " N"] | None = None,
        auxiliary_weight: float = 1.0,
    ) -> None:
        weights = {"coarse_weight": coarse_weight, "auxiliary_weight": auxiliary_weight}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{name} is {weight}; it must be a number from 0 on.")
        self.final = _build(loss)
        self.coarse = self.final if coarse_loss is None else _build(coarse_loss)
        self.coarse_weight = coarse_weight
        self.auxiliary_weight = auxiliary_weight
        self.ignore_index = ignore_index
        self.class_weights = class_weights
        terms = [term for _, term in (*self.final, *self.coarse)]
        if class_weights is not None and all(
            getattr(term, "ignores_class_weights", False) for term in terms
        ):
            raise InputError(
                f"There are class weights, and the loss {loss!r} has no use for them: it counts "
                'every class of an image the same. Leave them out, or add a loss such as "ce".'
            )

    def counts(self, label: Int[Tensor, "B H W"]) -> Float[Tensor, " T"]:
        """What each term divides by: those of the final prediction, then those of the coarse.

        Additive over images: sum them over the parts of a batch.
        """
        final = self._counts(self.final, label)
        coarse = final if self.coarse is self.final else self._counts(self.coarse, label)
        return torch.stack(final + coarse)

    def _counts(self, terms: Sequence[tuple[float, Loss]], label: Tensor) -> list[Tensor]:
        return [loss.count(label, self.ignore_index, self.class_weights) for _, loss in terms]

    def __call__(
        self,
        output: Output,
        label: Int[Tensor, "B H W"],
        counts: Float[Tensor, " T"] | None = None,
    ) -> Mapping[str, Float[Tensor, ""]]:
        """The losses "final", "coarse" and "auxiliary", weighted; their sum is what is minimised.

        There are those of the predictions that the output has.

        A batch without a single valid pixel has loss 0, and gradient 0.

        Args:
            output: What the model returned.
            label: Class indices; the logits are resized to it, not it to them.
            counts: `counts` of the whole batch that this is a part of; none: this is all of it.
        """
        counts = self.counts(label) if counts is None else counts.to(label.device)
        first, second = counts.split([len(self.final), len(self.coarse)])
        losses = {"final": self._sum(self.final, output.logits, label, first)}
        if output.coarse is not None:
            coarse = self._sum(self.coarse, output.coarse, label, second)
            losses["coarse"] = self.coarse_weight * coarse
        if output.auxiliary is not None:
            auxiliary = self._sum(self.coarse, output.auxiliary, label, second)
            losses["auxiliary"] = self.auxiliary_weight * auxiliary
        return losses

    def _sum(
        self,
        terms: Sequence[tuple[float, Loss]],
        logits: Float[Tensor, "B N h w"],
        label: Int[Tensor, "B H W"],
        counts: Float[Tensor, " T"],
    ) -> Float[Tensor, ""]:
        losses = [
            weight * (total / _divisor(count))
            for (weight, _), total, count in zip(
                terms, self._totals(terms, logits, label), counts, strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _totals(
        self, terms: Sequence[tuple[float, Loss]], logits: Tensor, label: Tensor
    ) -> Iterator[Tensor]:
        full = None
        for _, loss in terms:
            upsampled_total = getattr(loss, "upsampled_total", None)
            if upsampled_total is not None:
                total = upsampled_total(logits, label, self.ignore_index, self.class_weights)
                if total is not None:
                    yield total
                    continue
            full = _at_label(logits, label) if full is None else full
            yield loss.total(full, label, self.ignore_index, self.class_weights)


def _build(text: str) -> list[tuple[float, Loss]]:
    """Weights and losses, ready to be called."""
    terms = []
    for weight, name, options in parse_loss(text):
        loss = find_plugin(PACKAGE, name, "build")(**options)
        if not isinstance(loss, Loss):
            raise InputError(
                f"The loss {name!r} made a {type(loss).__name__}, which lacks the methods `count` "
                "and `total`; ccsnet.losses._base.Loss says what they are."
            )
        terms.append((weight, loss))
    return terms


def _at_label(
    logits: Float[Tensor, "B N h w"], label: Int[Tensor, "B H W"]
) -> Float[Tensor, "B N H W"]:
    """Logits on the label's grid, as everywhere in the field, in float32."""
    return resize(logits, (label.shape[-2], label.shape[-1])).float()


def _divisor(count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return count.clamp(min=SMALLEST)


def cross_entropy(
    logits: Float[Tensor, "B N h w"],
    label: Int[Tensor, "B H W"],
    ignore_index: int = 255,
    class_weights: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the valid pixels, at the label's size.

    With class weights the mean is weighted: each pixel counts as its class does. A batch without
    a single valid pixel has loss 0, and gradient 0.
    """
    loss = SegmentationLoss(ignore_index=ignore_index, class_weights=class_weights)
    return loss(Output(logits), label)["final"]


def segmentation_loss(
    output: Output,
    label: Int[Tensor, "B H W"],
    *,
    coarse_weight: float = 0.4,
    ignore_index: int = 255,
    class_weights: Float[Tensor, " N"] | None = None,
) -> Mapping[str, Float[Tensor, ""]]:
    """The cross-entropies "final" and "coarse" of a whole batch, weighted.

    Source: weights 0.4 (coarse) and 1.0 (final) from the authors' release.
    """
    loss = SegmentationLoss(
        coarse_weight=coarse_weight, ignore_index=ignore_index, class_weights=class_weights
    )
    return loss(output, label)
