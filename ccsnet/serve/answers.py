"""A label map as what clients ask for: the bytes that `ccsnet predict` writes, and areas."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Integer, Num, UInt8
from PIL import Image

from ccsnet.draw import overlay, rgb_of
from ccsnet.serve.models import Facts
from ccsnet.serve.uploads import UNUSABLE, UploadError

PNG, JPEG = "image/png", "image/jpeg"
MEDIA = {"label": PNG, "palette": PNG, "overlay": PNG, "overlay-jpeg": JPEG}
"""What the pictures are written as."""
QUALITY = 90  # Of JPEG.
JPEG_SIDE = 65_500
"""The longest side of a JPEG. Source: JPEG_MAX_DIMENSION of libjpeg."""
AREAS = "areas.json"
"""The file in an archive that says what the others are."""


def index_png(label: Integer[np.ndarray, "H W"]) -> bytes:
    """Class numbers as grey values, of 16 bits where the map has them."""
    return _encoded(".png", label)


def palette_png(label: Integer[np.ndarray, "H W"], facts: Facts) -> bytes:
    """The same with a palette, so that any viewer shows the classes' colours.

    For more than 255 classes, which a palette has no room for, it is the colours themselves.
    """
    table = np.zeros((256 if label.dtype == np.uint8 else 65536, 3), np.uint8)
    entries = np.array(facts.colours, np.uint8).reshape(-1, 3)
    table[: len(entries)] = entries
    if label.dtype != np.uint8:
        return _encoded(".png", cv2.cvtColor(table[label], cv2.COLOR_RGB2BGR))
    picture = Image.fromarray(label)
    picture.putpalette(table.tobytes())
    buffer = io.BytesIO()
    unlabelled = {"transparency": 255} if len(entries) < 256 else {}
    picture.save(buffer, "PNG", **unlabelled)
    return buffer.getvalue()


def overlay_picture(
    image: Num[np.ndarray, "H W C"], label: Integer[np.ndarray, "H W"], facts: Facts, media: str
) -> bytes:
    """The classes painted over the image, as PNG or JPEG.

    Raises:
        UploadError: It is too long for a JPEG.
    """
    if media == JPEG and max(label.shape) > JPEG_SIDE:
        raise UploadError(
            UNUSABLE,
            f"The image has {label.shape[0]} x {label.shape[1]} pixels, and a JPEG at most "
            f"{JPEG_SIDE} a side. Ask for output=overlay, which is a PNG.",
        )
    painted: UInt8[np.ndarray, "H W 3"] = overlay(rgb_of(image), label, facts.colours)
    suffix = ".jpg" if media == JPEG else ".png"
    return _encoded(suffix, cv2.cvtColor(painted, cv2.COLOR_RGB2BGR))


def picture_of(
    output: str, facts: Facts
) -> Callable[[Num[np.ndarray, "H W C"], Integer[np.ndarray, "H W"]], bytes]:
    """What makes the picture of an output, one of `MEDIA`."""
    media = MEDIA[output]
    return {
        "label": lambda image, label: index_png(label),
        "palette": lambda image, label: palette_png(label, facts),
    }.get(output, lambda image, label: overlay_picture(image, label, facts, media))


def areas(label: Integer[np.ndarray, "H W"], facts: Facts) -> dict[str, Any]:
    """Size, and pixels and share of the classes that are there, largest first."""
    counts = np.bincount(label.ravel(), minlength=len(facts.classes))[: len(facts.classes)]
    order = sorted(np.flatnonzero(counts), key=lambda index: -counts[index])
    return {
        "model": facts.name,
        "height": label.shape[0],
        "width": label.shape[1],
        "areas": [
            {
                "index": int(index),
                "name": facts.classes[index],
                "pixels": int(counts[index]),
                "share": int(counts[index]) / label.size,
            }
            for index in order
        ],
    }


def archive(results: Sequence[dict[str, Any]], files: Sequence[bytes | None], suffix: str) -> bytes:
    """A zip file of pictures, and a JSON file that says of which image each one is.

    Args:
        results: Of each image, what the JSON file says; of those with a picture its name is added.
        files: The pictures; none of an image that failed.
        suffix: How their names end.
    """
    buffer, told = io.BytesIO(), []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as out:  # PNG is packed already.
        for number, (result, data) in enumerate(zip(results, files, strict=True)):
            if data is None:
                told.append(result)
                continue
            # The client's name may be any text: of it stays what no system takes for a path.
            stem = re.sub(r"[^A-Za-z0-9-]+", "_", result["name"].rpartition(".")[0])[:64].strip("_")
            name = f"{number:04}_{stem}{suffix}" if stem else f"{number:04}{suffix}"
            out.writestr(name, data)
            told.append({**result, "file": name})
        out.writestr(AREAS, json.dumps({"images": told}, indent=2))
    return buffer.getvalue()


def _encoded(suffix: str, pixels: np.ndarray) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if suffix == ".jpg" else []
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {pixels.shape} {pixels.dtype} as {suffix}.")
    return data.tobytes()
