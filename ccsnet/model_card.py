"""The page of a published model: what it tells apart, how well, on what, and what is not known."""

import math
import re
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from ccsnet import __version__
from ccsnet.backbones.published import published_weights
from ccsnet.checkpoint import Checkpoint
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.evaluate import stored_evaluation
from ccsnet.metrics import Metrics, percent
from ccsnet.plugins import find_plugin, plugin_names
from ccsnet.trackers import flat_settings

PAPER = "https://doi.org/10.1007/978-3-031-18913-5_43"
BIBTEX = """@inproceedings{shi2022ccsnet,
  title     = {Cross-Stage Class-Specific Attention for Image Semantic Segmentation},
  author    = {Shi, Z. and Sun, L. and Li, Q.},
  booktitle = {Pattern Recognition and Computer Vision (PRCV)},
  series    = {LNCS 13536},
  pages     = {558--573},
  year      = {2022}
}"""
WEAK_IOU = 0.5  # A class below it is named among the limits.
_DATASETS = "ccsnet.datasets"


def model_card(checkpoint: Checkpoint, name: str, licence: str | None = None) -> str:
    """The text of README.md: YAML for the hub, then the page itself.

    Args:
        checkpoint: The model's; its figures are taken from the files beside it.
        name: What a user gives to `ccsnet.load`.
        licence: The weights' licence as the hub calls it, such as "apache-2.0"; none: not stated.

    Raises:
        InputError: The figures beside the checkpoint cannot be read.
    """
    metrics = stored_metrics(checkpoint)
    head = f"---\n{_metadata(checkpoint, metrics, name, licence).to_yaml()}\n---\n"
    sections = (
        _title(checkpoint),
        _use(name),
        _figures(checkpoint, metrics),
        _classes(checkpoint, metrics),
        _data(checkpoint),
        _limits(checkpoint, metrics),
        _origin(checkpoint),
        _citation(),
    )
    return "\n\n".join([head + sections[0], *sections[1:]]) + "\n"


def stored_metrics(checkpoint: Checkpoint) -> Metrics | None:
    """What training measured of these weights, where the run's folder tells it.

    Raises:
        InputError: The file of figures is damaged.
    """
    stored = stored_evaluation(checkpoint)
    if stored is None or tuple(stored.metrics.classes) != checkpoint.info.classes:
        return None
    return stored.metrics


def _metadata(
    checkpoint: Checkpoint, metrics: Metrics | None, name: str, licence: str | None
) -> ModelCardData:
    """What the hub searches by. Source: huggingface.co/docs/hub/model-cards."""
    dataset = checkpoint.info.dataset
    figures: list[EvalResult] = []
    for kind, shown, value in _means(checkpoint, metrics):
        figures.append(
            EvalResult(
                task_type="image-segmentation",
                dataset_type=_identifier(dataset),
                dataset_name=" ".join(dataset.split()),
                dataset_split=checkpoint.config.data.val_split,
                metric_type=kind,
                metric_name=shown,
                metric_value=round(value, 6),
            )
        )
    return ModelCardData(
        license=licence,
        library_name="ccsnet",
        pipeline_tag="image-segmentation",
        base_model=_first_weights(checkpoint)[2],
        tags=["semantic-segmentation", "ccsnet", _identifier(checkpoint.config.model.backbone)],
        datasets=[_identifier(dataset)],
        metrics=[figure.metric_type for figure in figures] or None,
        model_name=name if figures else None,
        eval_results=figures or None,
    )


def _means(checkpoint: Checkpoint, metrics: Metrics | None) -> list[tuple[str, str, float]]:
    """The hub's name of a figure, ours, its value; those that were measured."""
    found: list[tuple[str, str, float | None]] = [("mean_iou", "mIoU", checkpoint.miou)]
    if metrics is not None:
        found = [
            ("mean_iou", "mIoU", metrics.miou),
            ("accuracy", "pixel accuracy", metrics.pixel_accuracy),
            ("mean_accuracy", "mean class accuracy", metrics.mean_accuracy),
            ("dice", "mean Dice", metrics.mean_dice),
        ]
    return [
        (kind, shown, value)
        for kind, shown, value in found
        if value is not None and not math.isnan(value)
    ]


def _title(checkpoint: Checkpoint) -> str:
    model, info = checkpoint.config.model, checkpoint.info
    return (
        f"# {_plain(info.dataset)}: {_plain(model.head)} on {_plain(model.backbone)}\n\n"
        f"A model of [CCSNet]({PAPER}) for semantic segmentation: it gives every pixel of an image "
        f"one of {len(info.classes)} classes."
    )


def _use(name: str) -> str:
    return (
        "## Use\n\n```python\nimport ccsnet\n\n"
        f'prediction = ccsnet.load("{name}").predict("photo.jpg")\n'
        "prediction.label  # the class of every pixel\n"
        'prediction.save("photo.png", "overlay")\n```\n\n'
        f"```bash\nccsnet predict {name} photo.jpg --save overlay\n"
        f"ccsnet evaluate {name} --root DATA\n```\n\n"
        "The weights are a safetensors file: nothing of them is executed."
    )


def _figures(checkpoint: Checkpoint, metrics: Metrics | None) -> str:
    means = _means(checkpoint, metrics)
    split = _plain(checkpoint.config.data.val_split)
    if not means:
        return "## Figures\n\nNothing was measured of these weights."
    images = "" if metrics is None else f" of {metrics.images} images"
    text = (
        f"Measured in training on the split `{split}`{images} of {_plain(checkpoint.info.dataset)},"
        f" after {checkpoint.step:,} steps. The checkpoint was chosen on the same images, so that "
        "the figures are somewhat too good."
    )
    rows = [[shown, percent(value)] for _, shown, value in means]
    return f"## Figures\n\n{text}\n\n{_table(['figure', '%'], rows)}"


def _classes(checkpoint: Checkpoint, metrics: Metrics | None) -> str:
    info = checkpoint.info
    header, columns = ["index", "class", "colour"], []
    if metrics is not None:
        header += ["IoU %", "accuracy %"]
        columns = [metrics.iou, metrics.accuracy]
    rows = [
        [str(i), name, "#" + bytes(info.colours[i]).hex(), *(percent(c[i]) for c in columns)]
        for i, name in enumerate(info.classes)
    ]
    return f"## Classes\n\n{_table(header, rows)}"


def _data(checkpoint: Checkpoint) -> str:
    info, spec = checkpoint.info, _built_in(checkpoint.info.dataset)
    first, first_licence, _ = _first_weights(checkpoint)
    licence = "not stated" if spec is None else spec.licence
    sizes = {"shorter side": info.short_side, "longer side at most": info.long_side}
    seen = [f"{what} {size} pixels" for what, size in sizes.items() if size is not None]
    if info.window is not None:
        seen.append(f"windows of {info.window[0]} pixels, {info.window[1]} apart")
    return (
        f"## Data\n\n- data set: {_plain(info.dataset)}; its licence: {_plain(licence)}\n"
        f"- bands of an image: {info.channels}\n"
        f"- size at which images are seen: {', '.join(seen) or 'their own'}\n"
        f"- the backbone started from: {_plain(first)}; their licence: {_plain(first_licence)}"
    )


def _first_weights(checkpoint: Checkpoint) -> tuple[str, str, str | None]:
    """What the backbone started from, its licence, its repository on the hub if it has one."""
    model = checkpoint.config.model
    if model.backbone_weights == "none":
        return "random weights", "none needed", None
    if model.backbone_weights != "pretrained":  # A file's name is its owner's.
        return "weights that the author of this model had", "not stated", None
    published = published_weights(model.backbone)
    if published.tag == "-":
        return "weights that timm does not have", published.licence, None
    return f"weights {published.tag} of timm", published.licence, published.hub_id


def _limits(checkpoint: Checkpoint, metrics: Metrics | None) -> str:
    info = checkpoint.info
    limits = [
        f"Every pixel gets one of these {len(info.classes)} classes, also where none of them fits.",
        f"It has seen {_plain(info.dataset)} alone. On images that look otherwise it may be far "
        "worse, and does not say so: measure it on your own labelled images first.",
    ]
    if metrics is None:
        limits.append("Which classes it finds badly has not been recorded.")
    else:
        rated = list(zip(metrics.classes, metrics.iou, strict=True))
        weak = [f"{_plain(name)} ({percent(iou)})" for name, iou in rated if iou < WEAK_IOU]
        absent = [_plain(name) for name, iou in rated if np.isnan(iou)]
        if weak:
            limits.append(f"IoU below {percent(WEAK_IOU)} %: {', '.join(weak)}.")
        if absent:
            limits.append(f"Not among the images that were measured: {', '.join(absent)}.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _origin(checkpoint: Checkpoint) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "numpy"))
    rows = [[name, str(value)] for name, value in flat_settings(checkpoint.config).items()]
    return (
        f"## How it was made\n\n`ccsnet train` with the settings below, which `config.json` has "
        f"too. Published with ccsnet {__version__}, {versions}.\n\n"
        f"<details><summary>Settings</summary>\n\n{_table(['setting', 'value'], rows)}\n\n"
        "</details>"
    )


def _citation() -> str:
    return (
        "## Citation\n\nThe method is that of this paper; the software is "
        f"ccsnet {__version__}.\n\n```bibtex\n{BIBTEX}\n```"
    )


def _built_in(dataset: str) -> DatasetSpec | None:
    """The SPEC of a published data set; a user's own has none that everybody could look up."""
    if dataset not in plugin_names(_DATASETS):
        return None
    try:
        return find_plugin(_DATASETS, dataset, "SPEC")
    except InputError:
        return None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """One line that no markup starts in: names are whatever their author liked."""
    return re.sub(r"([|`<>\[\]*_\\])", r"\\\1", " ".join(text.split()))


def _identifier(text: str) -> str:
    """A word that the hub takes as a tag or as a data set's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "unnamed"
