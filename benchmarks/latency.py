"""From an image to its label map: CCSNet, and SegFormer of two other libraries, on this processor.

    python -m benchmarks.latency                    # torch
    python -m benchmarks.latency --runtime onnxruntime
    python -m benchmarks.latency --size 128 --rounds 2      # to try it

One image in bytes, batch 1, 150 classes, MiT-B1, random weights. Every library does the job by its
own documented steps: segmentation_models_pytorch (smp) scales by its preprocessing function, and
its model ends at the image's size, so that an argmax is left; Hugging Face (hf) has a processor
before and `post_process_semantic_segmentation` after. Both in float32, as they come, and, to be
fair, under torch's autocast to bf16. Ours is `Predictor.predict`. The biases of our classes are
spread such that the label map has as much boundary as real ones, about 15 %; theirs cost the same
either way. With onnxruntime, ours is what `ccsnet export` writes, with logits or with the label map
inside; theirs are exports of their models with the same steps around. What bf16 costs in accuracy:
`ccsnet evaluate RUN --precision bf16`, with a trained run.

The contenders take turns, so that a change of the machine's speed meets all alike; times are
medians of the rounds, ratios are to the faster of the two libraries at float32.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.label_map import boundary
from benchmarks.made import made_checkpoint, made_info
from benchmarks.turns import Job, take_turns
from ccsnet.backbones import make_torchvision_importable
from ccsnet.catalogue import machine
from ccsnet.checkpoint import Checkpoint
from ccsnet.export import ExportConfig, export
from ccsnet.memory import keep_freed_memory
from ccsnet.predict import Predictor, predictor_of
from ccsnet.predict_config import PredictConfig
from ccsnet.runtime import load as load_exported
from ccsnet.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, Segmenter, create_segmenter

ENCODER = "mit_b1"
CLASSES = 150
BOUNDARY = 0.15
"""Part of the places between four of the grid where these do not agree, as in `label_map`."""


def picture(size: int) -> np.ndarray:
    """Areas of several sizes, with noise."""
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 3, cells, cells, generator=random) for cells in (4, 9, 23)]
    image = sum(F.interpolate(part, size=(size, size), mode="nearest") for part in parts)
    assert isinstance(image, Tensor)
    image = 128 + 40 * image + 6 * torch.randn(image.shape, generator=random)
    return image[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()


@torch.inference_mode()
def prefer_some_classes(model: Segmenter, image: np.ndarray) -> None:
    """Spread the classes' biases until the label map has as much boundary as real ones have."""
    spread = torch.randn(CLASSES, generator=torch.Generator().manual_seed(0))
    bias = model.head.get_parameter("classifier.bias")
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    for std in np.geomspace(0.001, 10, 81):
        bias.copy_(std * spread)
        if boundary(model(pixels).logits) < BOUNDARY:
            break


def our_checkpoint(head: str, folder: Path, image: np.ndarray) -> Checkpoint:
    """Of a model with either of our heads."""
    torch.manual_seed(0)
    config = ModelConfig(backbone=ENCODER, head=head)
    model = create_segmenter(config, num_classes=CLASSES).eval()
    prefer_some_classes(model, image)
    return made_checkpoint(model, config, made_info(CLASSES), folder / f"{head}.safetensors")


def ours(predictor: Predictor, image: np.ndarray, precision: str) -> Job:
    config = PredictConfig(precision=precision)  # pyright: ignore[reportArgumentType]
    return lambda: predictor.predict(image, config).label


def smp_model() -> tuple[nn.Module, Callable[..., np.ndarray]]:
    make_torchvision_importable()
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    model = smp.Segformer(ENCODER, encoder_weights=None, classes=CLASSES).eval()
    # What `get_preprocessing_fn` gives, which asks the hub for these numbers.
    return model, partial(
        smp.encoders.preprocess_input,
        mean=[value / 255 for value in IMAGENET_MEAN],
        std=[value / 255 for value in IMAGENET_STD],
        input_space="RGB",
        input_range=[0, 1],
    )


def smp_before(image: np.ndarray, preprocess: Callable[..., np.ndarray]) -> Tensor:
    return torch.from_numpy(preprocess(image)).permute(2, 0, 1)[None].float()


def smp_job(image: np.ndarray, precision: str) -> Job:
    model, preprocess = smp_model()

    @torch.inference_mode()
    def job() -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model(smp_before(image, preprocess)).argmax(1)[0].numpy()

    return job


def hf_model(size: int) -> tuple[Any, Any]:
    """Model and image processor; transformers asks for torchvision too."""
    make_torchvision_importable()
    from transformers import (  # pyright: ignore[reportMissingImports]
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=CLASSES,
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 320, 512],
        decoder_hidden_size=256,
    )
    processor = SegformerImageProcessor(size={"height": size, "width": size})
    return SegformerForSemanticSegmentation(config).eval(), processor


def hf_job(image: np.ndarray, precision: str) -> Job:
    model, processor = hf_model(image.shape[0])

    @torch.inference_mode()
    def job() -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(**processor(images=image, return_tensors="pt"))
            maps = processor.post_process_semantic_segmentation(outputs, [image.shape[:2]])
            return maps[0].numpy()

    return job


def torch_jobs(image: np.ndarray, folder: Path) -> dict[str, Job]:
    predictors = {
        h: predictor_of(our_checkpoint(h, folder, image), "cpu") for h in ("ccs", "segformer")
    }
    return {
        f"{name} {precision}": job(precision)
        for precision in ("float32", "bf16")
        for name, job in {
            **{h: lambda p, h=h: ours(predictors[h], image, p) for h in predictors},
            "smp": lambda p: smp_job(image, p),
            "hf": lambda p: hf_job(image, p),
        }.items()
    }


class Logits(nn.Module):
    """Hugging Face's model with a tensor as its output, as an exported one has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images that are scaled already."""
        return self.model(pixel_values=image).logits


def session(model: nn.Module, image: Tensor, path: Path) -> Callable[[Tensor], np.ndarray]:
    """A model by onnxruntime."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    program = torch.onnx.export(model, (image,), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda tensor: np.asarray(run.run(None, {name: tensor.numpy()})[0])


def onnx_jobs(image: np.ndarray, folder: Path) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for head in ("ccs", "segformer"):
        for label_map in (True, False):
            path = folder / f"{head}{label_map}.onnx"
            config = ExportConfig(to="onnx", label_map=label_map, size=image.shape[:2])
            export(our_checkpoint(head, folder, image), path, config)
            exported = load_exported(path)
            inside = "label map inside" if label_map else "logits"
            jobs[f"{head} {inside}"] = lambda exported=exported: exported.predict(image)
    model, preprocess = smp_model()
    run_smp = session(model, smp_before(image, preprocess), folder / "smp.onnx")
    jobs["smp float32"] = lambda: run_smp(smp_before(image, preprocess)).argmax(1)[0]
    hf, processor = hf_model(image.shape[0])
    values = processor(images=image, return_tensors="pt")["pixel_values"]
    run_hf = session(Logits(hf), values, folder / "hf.onnx")

    def hf_onnx() -> np.ndarray:
        logits = run_hf(processor(images=image, return_tensors="pt")["pixel_values"])
        size = image.shape[:2]
        full = F.interpolate(torch.from_numpy(logits), size, mode="bilinear", align_corners=False)
        return full.argmax(1)[0].numpy()

    jobs["hf float32"] = hf_onnx
    return jobs


def compare(jobs: dict[str, Job], rounds: int) -> None:
    """Let all take turns; print what each took."""
    times = take_turns(jobs, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(medians["smp float32"], medians["hf float32"])
    for name, median in medians.items():
        low, high = min(times[name]), max(times[name])
        print(
            f"{name:24} {1e3 * median:7.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"
            f"   {best / median:5.2f} times as fast as the faster of smp and hf"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="From an image to its label map.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runtime", choices=("torch", "onnxruntime"), default="torch")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    image = picture(arguments.size)
    with tempfile.TemporaryDirectory() as name:
        make = torch_jobs if arguments.runtime == "torch" else onnx_jobs
        compare(make(image, Path(name)), arguments.rounds)


if __name__ == "__main__":
    main()
