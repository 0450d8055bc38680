"""Makes torchvision importable where its compiled operators cannot load.

timm imports torchvision whatever the model. A torchvision wheel built for CUDA beside a CPU-only
torch (what a package index gives by default) cannot load its operators, and then its Python part
fails with "operator torchvision::nms does not exist", because it attaches shape rules to operators
that nobody declared. Declaring them is enough: nothing of ours, and nothing that timm's models
need, calls them.
"""

import torch

# Source: the operators that torchvision's `_meta_registrations.py` names without asking whether
# they exist, with the schemas of its C++ code.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A declaration lives only as long as its Library object.
_declared: list[torch.library.Library] = []


def make_torchvision_importable() -> bool:
    """Declare torchvision's missing operators, if that is what keeps it from being imported.

    Where torchvision imports as it is, or is not installed, nothing is declared.

    Returns:
        True if torchvision can be used by timm, False if it is not installed.

    Raises:
        RuntimeError: torchvision fails on import for another reason; the error is its own.
    """
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchvision":
            raise
        return False
    except RuntimeError as error:
        missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
        if "operator torchvision::" not in str(error) or not missing:
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        _declared.append(library)
        for name in missing:
            library.define(_SCHEMAS[name])
        import torchvision  # noqa: F401
    return True
