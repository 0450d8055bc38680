"""What schemathesis is told of the server: how bodies look that a document cannot describe."""

import io

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image

from ccsnet.serve.schemas import IMAGE


def picture(kind: str) -> bytes:
    """A small image."""
    buffer = io.BytesIO()
    pixels = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


for media in IMAGE["requestBody"]["content"]:
    if media.startswith("image/"):
        kind = "PPM" if media.endswith("pixmap") else media.partition("/")[2].upper()
        schemathesis.openapi.media_type(media, st.just(picture(kind)))
schemathesis.openapi.media_type("application/octet-stream", st.just(picture("PNG")))


@schemathesis.hook
def map_body(context, body):
    """The files of forms are images, too; what is made to be wrong stays so."""
    if isinstance(body, dict) and isinstance(body.get("file"), bytes | str):
        return {**body, "file": picture("PNG")}
    if isinstance(body, dict) and isinstance(body.get("files"), list):
        return {**body, "files": [picture("PNG") for _ in body["files"]]}
    return body
