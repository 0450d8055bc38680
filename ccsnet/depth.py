"""Images of more bits than a model was made for: they can be labelled, but not well."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num
from torch import Tensor, nn


def depth_warning(
    models: Sequence[nn.Module], image: Num[np.ndarray, "..."], name: str | None = None
) -> str | None:
    """What to say of an image with values beyond those that the models were made for, if it is one.

    The models' channel means and deviations tell: where values from 0 to 255 can have them, those
    are what a model was made for.

    Args:
        models: Networks with `mean` and `std`; of others nothing is known.
        image: Values as in the file, in any order of its dimensions.
        name: Its file, if it has one.

    Returns:
        None where the image fits, or nothing is known.
    """
    if image.dtype == np.uint8 or not image.size:
        return None
    means = [_means_of_8_bits(model) for model in models]
    mean = next((mean for mean in means if mean), None)
    if mean is None or not (highest := image.max()) > 255:
        return None
    image_name = f"The image {name}" if name else "An image"
    return (
        f"{image_name} has values up to {highest:g}, but the model was made for images of 8 bits, "
        f"0 to 255: its channels' means are {', '.join(f'{value:g}' for value in mean)}. A model "
        "that learnt from such images is mostly wrong about deeper ones: scale them to 0-255 and "
        "write them with 8 bits. One that learns from images like this needs their own --mean and "
        "--std. (More of them are not listed.)"
    )


def _means_of_8_bits(model: nn.Module) -> tuple[float, ...]:
    """A model's channel means if values from 0 to 255 can have its mean and deviation; else ()."""
    mean, std = getattr(model, "mean", None), getattr(model, "std", None)
    if not (isinstance(mean, Tensor) and isinstance(std, Tensor)):
        return ()
    mean, std = mean.flatten().cpu(), std.flatten().cpu()
    # Source: the inequality of Bhatia and Davis (2000): variance <= (mean - low) (high - mean).
    possible = bool(((std > 0) & (std**2 <= mean * (255 - mean))).all())
    return tuple(mean.tolist()) if possible else ()
