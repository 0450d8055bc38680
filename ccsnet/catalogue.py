"""What backbones and recipes are and what they cost: computed from themselves, nothing typed in.

Figures that take long are kept in the user's cache folder, for this machine and these versions.
"""

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ccsnet.backbones.families import FAMILIES
from ccsnet.backbones.published import published_weights
from ccsnet.backbones.timm import backbone_names, create_backbone
from ccsnet.config import RunConfig, to_json
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import unknown_name
from ccsnet.loss import segmentation_loss
from ccsnet.machine import Cache, machine, versions
from ccsnet.optim import state_share
from ccsnet.plugins import find_plugin, plugin_names
from ccsnet.recipes import RECIPES
from ccsnet.segmenter import Segmenter, create_segmenter

SIDE = 512  # Of the square image that backbones are measured with.
CLASSES = 20  # What recipes are counted with whose data is not built in.
OTHERS_SHOWN = 20


class BackboneFacts(NamedTuple):
    """What a backbone is and takes."""

    parameters: int
    """Of the model without its classifier, and of the pyramid and norms behind it."""
    gmacs: float
    """Billions of multiplications with additions for one image of 512x512."""
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    seconds: float
    """For one image of 512x512: the median of three forward passes in float32."""


class TrainingMemory(NamedTuple):
    """What training holds at its peak, in bytes of float32; workspaces of operations left out."""

    state: int
    """Weights, their gradients, what the optimizer remembers of them, and what images share."""
    per_image: int
    """What the forward pass saves of each image, and the gradients where the loss begins."""

    def of(self, images: int) -> int:
        """Of a step with so many images at once."""
        return self.state + images * self.per_image


def measure_backbone(name: str, passes: int = 3) -> BackboneFacts:
    """Build a backbone with random weights, time it, and count.

    Args:
        name: Which.
        passes: Forward passes that are timed, after one that is not; with 0 the time is NaN.

    Raises:
        InputError: The backbone cannot be used.
    """
    backbone = create_backbone(name).eval()
    image = torch.rand(1, 3, SIDE, SIDE)
    seconds = []
    with torch.inference_mode():
        for _ in range(passes and passes + 1):
            start = time.perf_counter()
            backbone(image)
            seconds.append(time.perf_counter() - start)
    return BackboneFacts(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        gmacs=count_macs(backbone, SIDE) / 1e9,
        channels=backbone.channels,
        strides=backbone.strides,
        seconds=statistics.median(seconds[1:] or [math.nan]),
    )


def count_macs(model: nn.Module, side: int) -> int:
    """Multiplications with additions of a forward pass; the model becomes one without memory."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.zeros(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


def training_memory(config: RunConfig) -> TrainingMemory:
    """Estimate what training holds, without taking that memory.

    Raises:
        InputError: The model cannot be built.
    """
    spec = _built_in(config)
    classes, channels = (spec.num_classes, spec.channels) if spec else (CLASSES, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Building tries tiny images, for which threads wait for each other.
    try:
        model = create_segmenter(
            config.model, num_classes=classes, in_channels=channels, load_weights=False
        )
    finally:
        torch.set_num_threads(threads)
    model.to("meta").train()
    if config.train.grad_checkpointing:
        model.backbone.set_grad_checkpointing()
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    moments = state_share(config.optim)
    # Not one image: some norms need two values. What all images share is in both of these.
    two, three = (_saved(model, (images, channels, *_crop(config))) for images in (2, 3))
    saved = three - two
    shared = two - 2 * saved
    # The peak is at the beginning of the backward pass, when the logits at the label's size and
    # their logarithmic probabilities have gradients and nothing is freed yet.
    height, width = _crop(config)
    gradients = 2 * 4 * classes * height * width
    return TrainingMemory(weights + round((1 + moments) * trained) + shared, saved + gradients)


def _saved(model: Segmenter, shape: tuple[int, int, int, int]) -> int:
    """Bytes that a forward pass with the loss saves for the backward pass, weights left out."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}  # By storage: of several views one is kept.

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in own:
            saved[address] = tensor
        return tensor

    image = torch.zeros(shape, dtype=torch.uint8, device="meta")
    label = torch.zeros(shape[0], *shape[2:], dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _FusedAttention():
        segmentation_loss(model(image), label)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class _FusedAttention(TorchFunctionMode):
    """Attention saves its inputs and its result, as the fused kernels of real devices do.

    Without a device torch takes the attention apart, and would save the scores of all pairs.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        given = [*args, *(kwargs or {}).values()]
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*(value for value in given if isinstance(value, Tensor)))
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor) -> Tensor:
        *batch, heads, places, _ = query.shape
        # The kernels' order, in which joining the heads again makes no copy.
        result = query.new_empty(*batch, places, heads, value.shape[-1]).transpose(-3, -2)
        ctx.save_for_backward(query, key, value, *mask, result)
        return result


def _built_in(config: RunConfig) -> DatasetSpec | None:
    name = config.data.dataset
    built_in = name in plugin_names("ccsnet.datasets")
    return find_plugin("ccsnet.datasets", name, "SPEC") if built_in else None


def _crop(config: RunConfig) -> tuple[int, int]:
    return config.data.crop or (_built_in(config) or DatasetSpec).crop


# Tables: headings with the side that a column keeps to, and the cells of a row.

BACKBONE_COLUMNS = {
    "backbone": "<",
    "M parameters": ">",
    "GMACs": ">",
    "channels": "<",
    "strides": "<",
    "s per image": ">",
    "weights": "<",
    "licence": "<",
}
RECIPE_COLUMNS = {
    "recipe": "<",
    "backbone": "<",
    "data": "<",
    "crop": "<",
    "batch x steps": ">",
    "optimizer": "<",
    "GiB/image": ">",
    "GiB/batch": ">",
    "weights": "<",
    "licence": "<",
}
# Examples, as wide as any: rows are shown before all of them are known.
_WIDEST = BackboneFacts(999_900_000, 999.9, (256, 512, 1024, 2048), (4, 8, 16, 32), 99.999)
_MOST = TrainingMemory(0, 2**30)


def backbone_cells(name: str, facts: BackboneFacts) -> list[str]:
    """A backbone's row of the table."""
    weights = published_weights(name)
    return [
        name,
        f"{facts.parameters / 1e6:.1f}",
        f"{facts.gmacs:.1f}",
        " ".join(map(str, facts.channels)),
        " ".join(map(str, facts.strides)),
        f"{facts.seconds:.3f}",
        weights.tag,
        weights.licence,
    ]


def recipe_cells(name: str, config: RunConfig, memory: TrainingMemory) -> list[str]:
    """A recipe's row of the table."""
    train, optim = config.train, config.optim
    rate = f"{optim.lr:g}".replace("e-0", "e-")
    return [
        name,
        config.model.backbone,
        config.data.dataset or "your own",
        "x".join(map(str, _crop(config))),
        f"{train.batch_size} x {train.steps}",
        f"{optim.optimizer} {rate}",
        f"{memory.per_image / 2**30:.1f}",
        f"{memory.of(train.batch_size // train.accumulate) / 2**30:.1f}",
        *_weights(config),
    ]


def _weights(config: RunConfig) -> tuple[str, str]:
    """What a recipe starts from, and its licence."""
    published = published_weights(config.model.backbone)
    if config.model.backbone_weights == "pretrained":
        return published.tag, published.licence
    if config.model.backbone_weights == "none":
        return "none", published.licence if published.tag == "-" else "-"
    return config.model.backbone_weights, "as its source states"


def backbone_lines(part: str = "", *, again: bool = False) -> Iterator[str]:
    """The table of the proven backbones whose name contains `part`, line by line as measured.

    Raises:
        InputError: No backbone has such a name.
    """
    names = [name for family in FAMILIES.values() for name in family if part in name]
    others = [name for name in backbone_names() if part in name and name not in names]
    if not names and not others:
        raise unknown_name("backbone", part, backbone_names(), "Any timm name is allowed.")
    if names:
        rows = [
            _Row(name, name, partial(measure_backbone, name), partial(backbone_cells, name))
            for name in names
        ]
        cache = Cache("backbones.json", machine(), _WIDEST)
        yield f"{machine()}; one image of {SIDE}x{SIDE}, float32"
        yield from _table(BACKBONE_COLUMNS, rows, cache, again)
    if part and others:
        more = len(others) - OTHERS_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        yield f"Other names of timm, not measured: {', '.join(others[:OTHERS_SHOWN])}{rest}."


def recipe_lines(part: str = "", *, again: bool = False) -> Iterator[str]:
    """The table of the recipes whose name contains `part`; of one alone also where it is from.

    Raises:
        InputError: No recipe has such a name.
    """
    found = {name: make for name, make in RECIPES.items() if part in name}
    if not found:
        raise unknown_name("recipe", part, RECIPES)
    rows = []
    for name, make in found.items():
        config = make()
        # Kept by its settings, so that changed ones are estimated anew.
        estimate, cells = partial(training_memory, config), partial(recipe_cells, name, config)
        rows.append(_Row(name, to_json(config), estimate, cells))
    yield from _table(RECIPE_COLUMNS, rows, Cache("recipes.json", versions(), _MOST), again)
    yield (
        "Memory of training in float32, about: GiB/image is what each image adds; GiB/batch is a "
        "whole step on one device, with weights and optimizer (--accumulate 2 halves its images). "
        f"Data that is not built in is counted with {CLASSES} classes."
    )
    if len(found) == 1:
        yield f"\n{inspect.getdoc(*found.values())}"


class _Row(NamedTuple):
    """A line of a table to be made."""

    name: str
    key: str
    """What its figures are kept under."""
    measure: Callable[[], Any]
    cells: Callable[[Any], list[str]]


def _table(
    columns: Mapping[str, str], rows: Sequence[_Row], cache: Cache, again: bool
) -> Iterator[str]:
    """Headings and rows, each as soon as its figures are known."""
    places = [columns, *(row.cells(cache.like) for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*places, strict=True)]
    layout = "  ".join(f"{{:{s}{w}}}" for s, w in zip(columns.values(), widths, strict=True))
    yield layout.format(*columns).rstrip()
    cached = False
    for row in rows:
        facts = None if again else cache.read(row.key)
        cached |= facts is not None
        if facts is None:
            try:
                facts = row.measure()
            except Exception as error:  # Whatever it is, the other rows are worth having.
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                yield f"{row.name}  failed: {reason}"
                continue
            cache.write(row.key, facts)
        yield layout.format(*row.cells(facts)).rstrip()
    if cached:
        yield "From the cache; --again measures anew."
