"""HRF: vessels of the retina in high resolution, of healthy and ill people.

Source: Budai et al., "Robust Vessel Segmentation in Fundus Images", International Journal of
Biomedical Imaging 2013. Files are read as downloaded: nothing is converted.
"""

from ccsnet.datasets._archives import Archive
from ccsnet.datasets._retina import COLOURS, RAW_TO_CLASS
from ccsnet.datasets._spec import DatasetSpec, Split

# Archive, and folder, of each kind -> how its files' names end.
KINDS = {"healthy": "h", "glaucoma": "g", "diabetic_retinopathy": "dr"}
MASKS = "_manualsegm"


def _parts(count: int, start: int = 0, stop: int | None = None) -> tuple[Split, ...]:
    """So many images of each kind."""
    return tuple(
        Split(
            # Some of the suffixes are written .jpg, some .JPG.
            images=f"{kind}/*_{end}.*",
            labels=f"{kind}{MASKS}/*_{end}.tif",
            start=start,
            stop=stop,
            count=count,
        )
        for kind, end in KINDS.items()
    )


SPEC = DatasetSpec(
    name="hrf",
    classes=tuple(COLOURS),
    colours=tuple(COLOURS.values()),
    raw_to_class=RAW_TO_CLASS,
    # The authors name no split; usual are the first five of each kind and the others.
    splits={"train": _parts(5, stop=5), "val": _parts(10, start=5)},
    licence="CC BY 4.0",
    source=(
        "Get healthy.zip, healthy_manualsegm.zip, glaucoma.zip, glaucoma_manualsegm.zip, "
        "diabetic_retinopathy.zip and diabetic_retinopathy_manualsegm.zip from "
        "https://www5.cs.fau.de/research/data/fundus-images. "
        "Then: ccsnet data prepare hrf DOWNLOADS..."
    ),
    default_root="data/hrf",
    short_side=2336,
    long_side=3504,
    crop=(256, 256),
    window=(256, 170),
    archives=tuple(
        Archive(file=f"{folder}.zip", to=folder, strip=folder)
        for kind in KINDS
        for folder in (kind, f"{kind}{MASKS}")
    ),
)
