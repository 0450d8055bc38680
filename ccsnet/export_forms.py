"""The forms that a network is exported in: how each is written and opened again.

Letters: B images, C bands, N classes, H W a size in pixels, h w places of the logits.
"""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ccsnet import runtime
from ccsnet.errors import InputError
from ccsnet.runtime import KEY, STRIDE, ExportedModel, ExportInfo
from ccsnet.segmenter import Segmenter

MAX_DIFFERENT = 0.001
"""Share of pixels at which an exported model's label maps may differ from the checkpoint's."""
SMALLEST = (64, 256)
"""Least sides that an export for all sizes is tried with: torch.export takes a symbolic number to
be at least 2, so 64; a head that enlarges small maps (smp.PAN) takes one path only from 256 on."""
EXAMPLE = (2, 320, 384)
"""Batch, height and width that are traced. One image would be baked into PVTv2."""
OTHER_SIZES = ((64, 96), (448, 256))
"""Heights and widths that a trace is tried at, to find out whether it holds for all."""


class ExportNetwork(nn.Module):
    """A segmenter with one input and one output."""

    def __init__(self, model: Segmenter, label_map: bool) -> None:
        super().__init__()
        self.model = model
        self.label_map = label_map

    def forward(
        self, image: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B N h w"] | Int64[Tensor, "B H W"]:
        """Logits, or label maps at the image's size."""
        logits = self.model(image).logits
        if not self.label_map:
            return logits.contiguous()
        height, width = image.shape[-2:]
        wide = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        return wide.argmax(1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters say of their own parts."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _program(network: nn.Module, info: ExportInfo) -> tuple[torch.export.ExportedProgram, int]:
    """The network as a graph for the sizes that `info` names, and the least side that it takes."""
    batch = torch.export.Dim("batch", min=1)
    size = info.size or EXAMPLE[1:]
    example = torch.rand(EXAMPLE[0], info.channels, *size) * 255
    error = ""
    for smallest in SMALLEST if info.size is None else (STRIDE,):
        shape: dict[int, Any] = {0: batch}
        if info.size is None:
            least = smallest // STRIDE
            shape |= {2: STRIDE * torch.export.Dim("rows", min=least)}
            shape |= {3: STRIDE * torch.export.Dim("columns", min=least)}
        # A copy: some models keep what they compute for a size, here symbols and not numbers.
        own = copy.deepcopy(network)
        try:
            return torch.export.export(own, (example,), dynamic_shapes=(shape,)), smallest
        except Exception as failed:  # It has many classes for what it cannot do.
            error = str(failed).strip().partition("\n")[0]
    raise cannot(error, info)


def cannot(reason: str, info: ExportInfo) -> InputError:
    """The error for a model that has no such form, and what to try instead."""
    if info.size is not None:
        return InputError(
            f"This model cannot be written in this form ({reason}). Choose another by --to."
        )
    return InputError(
        f"This model cannot be written for all sizes at once ({reason}). "
        "Give the one that it is to take: --size 512 512"
    )


def _write_torch_export(network: nn.Module, path: Path, info: ExportInfo) -> ExportInfo:
    program, smallest = _program(network, info)
    info = replace(info, smallest=smallest)
    torch.export.save(program, path, extra_files={KEY: info.to_json()})
    return info


def _open_torch_export(path: Path) -> ExportedModel:
    texts = {KEY: ""}
    program: Any = torch.export.load(path, extra_files=texts)
    return _opened(program.module(), texts[KEY], path)


class _NumbersForTruth(TorchFunctionMode):
    """Has `scatter` write 1 for True, the same to a mask: torch.jit takes numbers alone there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        if func is Tensor.scatter:
            args = tuple(int(value) if isinstance(value, bool) else value for value in args)
        return func(*args, **(kwargs or {}))


def _write_torchscript(network: nn.Module, path: Path, info: ExportInfo) -> ExportInfo:
    size = info.size or EXAMPLE[1:]
    example = torch.rand(EXAMPLE[0], info.channels, *size) * 255
    # A trace may have made numbers of sizes; whether it has, other sizes tell.
    sizes = [(1, *size), (3, *size)]
    if info.size is None:
        sizes += [(1, *other) for other in OTHER_SIZES]
    try:
        with _NumbersForTruth():
            traced: Any = torch.jit.trace(copy.deepcopy(network), example, check_trace=False)
        for shape in sizes:
            image = torch.rand(shape[0], info.channels, *shape[1:]) * 255
            found, wanted = traced(image), network(image)
            if found.shape != wanted.shape or _share_different(found, wanted) > MAX_DIFFERENT:
                raise RuntimeError(f"a trace is wrong at {shape[1]} x {shape[2]}")
    except RuntimeError as error:
        raise cannot(str(error).strip().rpartition("\n")[2], info) from error
    info = replace(info, smallest=STRIDE if info.size else min(map(min, OTHER_SIZES)))
    torch.jit.save(traced, path, _extra_files={KEY: info.to_json()})
    return info


def _share_different(found: Tensor, wanted: Tensor) -> float:
    if found.ndim == 4:
        found, wanted = found.argmax(1), wanted.argmax(1)
    return float((found != wanted).float().mean())


def _open_torchscript(path: Path) -> ExportedModel:
    texts = {KEY: ""}
    with quiet():
        program: Any = torch.jit.load(path, _extra_files=texts)
    return _opened(program, texts[KEY], path)


def _opened(program: Callable[[Tensor], Tensor], text: str | bytes, path: Path) -> ExportedModel:
    def network(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return program(torch.from_numpy(image)).numpy()

    text = text.decode() if isinstance(text, bytes) else text
    return ExportedModel(network, ExportInfo.from_json(text, path))


def _write_onnx(network: nn.Module, path: Path, info: ExportInfo) -> ExportInfo:
    import onnx

    program, smallest = _program(network, info)
    info = replace(info, smallest=smallest)
    made = torch.onnx.export(
        program,
        dynamo=True,
        optimize=True,
        verbose=False,
        input_names=["image"],
        output_names=["label" if info.label_map else "logits"],
    )
    assert made is not None, "the dynamo exporter returns its program"
    model = made.model_proto
    onnx.helper.set_model_props(model, {KEY: info.to_json()})
    model.producer_name = "ccsnet"
    onnx.save(model, path)
    return info


def _write_openvino(network: nn.Module, path: Path, info: ExportInfo) -> ExportInfo:
    openvino = runtime.needed("openvino", "openvino")

    middle = path.with_suffix(".onnx")
    try:
        info = _write_onnx(network, middle, info)
        model = openvino.convert_model(middle)
    finally:
        middle.unlink(missing_ok=True)
    model.set_rt_info(info.to_json(), KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
    return info


@dataclass(frozen=True)
class Form:
    """How a network is written and opened again."""

    suffix: str
    write: Callable[[nn.Module, Path, ExportInfo], ExportInfo]
    """Returns what the file then says of itself: the least side is known only now."""
    open: Callable[[Path], ExportedModel]
    needs: tuple[str, ...] = ()
    extra: str = "export"
    beside: str | None = None
    """Ending of a second file, which holds the weights."""


FORMATS: Mapping[str, Form] = {
    "onnx": Form(".onnx", _write_onnx, runtime.load, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Form(".pt", _write_torchscript, _open_torchscript),
    "torch-export": Form(".pt2", _write_torch_export, _open_torch_export),
    "openvino": Form(
        ".xml",
        _write_openvino,
        runtime.load,
        ("onnx", "onnxscript", "openvino"),
        "openvino",
        ".bin",
    ),
}
