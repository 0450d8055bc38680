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

from ccsnet import runtime
from ccsnet.backbones._sizes import make_exportable
from ccsnet.errors import InputError
from ccsnet.runtime import KEY, STRIDE, ExportedModel, ExportInfo
from ccsnet.segmenter import Segmenter

MAX_DIFFERENT = 0.001
"""Share of pixels at which an exported model's label maps may differ from the checkpoint's."""
SMALLEST = (64, 256)
"""Least sides that an export for all sizes is tried with: torch.export takes a symbolic number to
be at least 2, so 64; a trace of a head that enlarges small maps (smp.PAN) holds from 256."""
EXAMPLE = (2, 320, 384)
"""Batch, height and width that are traced. One image would be baked into PVTv2."""
LARGE = (576, 544)
"""A height and a width that a trace is tried at, to find out whether it holds for all: beyond 512,
where what is pooled by 8 at stride 32 (smp.PAN) has more than one place."""


ONE_SIZE = ("swin", "hiera")
"""Backbones whose windows torch.export looks at for all sizes without coming to an end."""


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
    if info.size is None and str(dict(info.run).get("backbone")).startswith(ONE_SIZE):
        raise cannot("torch.export does not come to an end with its windows", info)
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
        make_exportable(own)
        try:
            program = torch.export.export(own, (example,), dynamic_shapes=(shape,))
            # What it took for granted of sizes is asked only where it runs.
            _check_same(program.module(), network, info, smallest)
            return program, smallest
        except Exception as failed:  # It has many classes for what it cannot do.
            error = _first_line(failed)
    raise cannot(error, info)


def _check_same(
    made: Callable[[Tensor], Tensor], network: nn.Module, info: ExportInfo, smallest: int
) -> None:
    """Try what was made of a network at other sizes than the traced one.

    Raises:
        RuntimeError: It labels images in another way; many other errors if it fails.
    """
    sizes = (info.size, info.size) if info.size else ((smallest, smallest + STRIDE), LARGE)
    for batch, size in zip((3, 1), sizes, strict=True):
        image = torch.rand(batch, info.channels, *size) * 255
        found, wanted = made(image), network(image)
        if found.ndim == 4:
            found, wanted = found.argmax(1), wanted.argmax(1)
        # Small maps have few places; a graph that took sizes for granted is wrong at most of them.
        if found.shape != wanted.shape or (found != wanted).float().mean() > 10 * MAX_DIFFERENT:
            raise RuntimeError(f"a trace is wrong at {size[0]} x {size[1]}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


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


def _write_torchscript(network: nn.Module, path: Path, info: ExportInfo) -> ExportInfo:
    size = info.size or EXAMPLE[1:]
    example = torch.rand(EXAMPLE[0], info.channels, *size) * 255
    try:
        traced: Any = torch.jit.trace(copy.deepcopy(network), example, check_trace=False)
    except RuntimeError as error:
        raise cannot(_last_line(error), info) from error
    info = replace(info, smallest=_holds_from(traced, network, info))
    torch.jit.save(traced, path, _extra_files={KEY: info.to_json()})
    return info


def _holds_from(traced: Callable[[Tensor], Tensor], network: nn.Module, info: ExportInfo) -> int:
    """The least side that a trace takes: it may have made numbers of sizes, which others tell."""
    error = ""
    for smallest in SMALLEST if info.size is None else (STRIDE,):
        try:
            _check_same(traced, network, info, smallest)
            return smallest
        except RuntimeError as failed:
            error = _last_line(failed)
    raise cannot(error, info)


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
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            optimize=True,
            verbose=False,
            input_names=["image"],
            output_names=["label" if info.label_map else "logits"],
        )
    except Exception as error:  # Of several kinds; the cause says what is missing.
        raise cannot(_first_line(error.__cause__ or error), info) from error
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
    except RuntimeError as error:
        raise cannot(_first_line(error), info) from error
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
