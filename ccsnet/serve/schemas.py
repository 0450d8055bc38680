"""What requests and answers look like, for the server's own document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from ccsnet.serve.uploads import KINDS

_BINARY = {"type": "string", "format": "binary"}
_MEDIA = {"PPM": "x-portable-pixmap"}  # Of kinds whose media type is not their name.

IMAGE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "An image: the body itself, or the file of a form.",
        "content": {
            **{f"image/{_MEDIA.get(kind, kind.lower())}": {"schema": _BINARY} for kind in KINDS},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}
            },
        },
    }
}
"""The body of /predict."""

BATCH: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Images: the files of a form.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "minItems": 1, "items": _BINARY}},
                }
            }
        },
    }
}
"""The body of /predict/batch."""


def pictures(*media: str) -> dict[str, Any]:
    """What is answered beside JSON."""
    return {"content": {one: {"schema": _BINARY} for one in media}}


class Area(BaseModel):
    """How much of an image a class takes."""

    index: int
    name: str
    pixels: int
    share: float = Field(description="Of the image's pixels, 0 to 1.")


class Areas(BaseModel):
    """The classes that are in an image, largest first."""

    model: str
    height: int
    width: int
    areas: list[Area]


class OneOfBatch(BaseModel):
    """An image of several: its areas, or why it has none."""

    name: str = Field(description="As the request calls it.")
    status: int = Field(description="200, or the status that the image alone would have got.")
    error: str | None = None
    result: Areas | None = None
    file: str | None = Field(None, description="In an archive: its picture.")


class Batch(BaseModel):
    """The images of a request, in their order."""

    images: list[OneOfBatch]


class ClassOf(BaseModel):
    """A class."""

    index: int
    name: str
    colour: tuple[int, int, int]


class Classes(BaseModel):
    """What the model tells apart."""

    model: str
    dataset: str
    channels: int = Field(description="Bands that images have; grey ones become RGB.")
    classes: list[ClassOf]


class Health(BaseModel):
    """Whether images are taken."""

    status: Literal["ready", "starting", "stopping"]
    model: str
    queue: int = Field(description="Images taken and not answered yet.")


class Problem(BaseModel):
    """Why a request has no result."""

    error: str
    request_id: str = Field(description="Under which the server's log speaks of it.")
