"""The settings of `raster`; no torch here, so that `--help` is quick."""

from dataclasses import dataclass

from ccsnet.errors import InputError
from ccsnet.predict_config import PredictConfig


@dataclass(frozen=True, kw_only=True)
class RasterConfig(PredictConfig):
    """How a scene becomes a label map: as an image does, in windows at its own resolution."""

    window: int | None = None
    """Side of square windows, a multiple of 32; none: as the model is evaluated, else 512."""
    own_size: bool | None = None
    """A scene is always seen at its own resolution; to see it otherwise, use --scales."""
    bands: tuple[int, ...] = ()
    """The scene's bands in the model's order, such as 4 3 2, the first is 1; none: all, without
    alpha."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window == 0:
            raise InputError(
                "window is 0, the whole image at once; a scene is seen in windows. Give their "
                "side, such as 512, or use `ccsnet predict` for an image that fits into memory."
            )
        if self.own_size is False:
            raise InputError(
                "own_size is False; a scene is always seen at its own resolution. Leave it out, "
                "and use scales to see the scene smaller or larger."
            )
