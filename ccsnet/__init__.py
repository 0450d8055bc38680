"""Semantic segmentation with cross-stage class-specific attention (CCSNet).

    import ccsnet
    prediction = ccsnet.load("runs/x").predict("street.jpg")

Importing the package is quick: torch is imported when a name is first used. Training is
`ccsnet.train.train`, imported from its module.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccsnet.config import RunConfig
    from ccsnet.errors import InputError
    from ccsnet.heads.ccs import CCSHead
    from ccsnet.predict import Prediction, Predictor, load
    from ccsnet.predict_config import PredictConfig
    from ccsnet.recipes import recipe

__version__ = "0.1.0"
__all__ = [
    "CCSHead",
    "InputError",
    "PredictConfig",
    "Prediction",
    "Predictor",
    "RunConfig",
    "load",
    "recipe",
]

_HOMES = {
    "CCSHead": "ccsnet.heads.ccs",
    "InputError": "ccsnet.errors",
    "PredictConfig": "ccsnet.predict_config",
    "Prediction": "ccsnet.predict",
    "Predictor": "ccsnet.predict",
    "RunConfig": "ccsnet.config",
    "load": "ccsnet.predict",
    "recipe": "ccsnet.recipes",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ccsnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
