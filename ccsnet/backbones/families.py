"""The backbones that are proven: by the contract tests, and in docs/backbones.md.

Any other timm name may work as well; `create_backbone` says so if it does not.
"""

# MiT's published weights are not free to use: NVIDIA's licence for SegFormer's release.
MIT_WEIGHTS = "your own file; NVIDIA's are non-commercial"

FAMILIES: dict[str, tuple[str, ...]] = {
    "ResNet": ("resnet18", "resnet50", "resnet50d"),
    "ResNeXt": ("resnext50_32x4d",),
    "ResNeSt": ("resnest50d",),
    "HRNet": ("hrnet_w18_small_v2", "hrnet_w18", "hrnet_w48"),
    "MobileNetV2": ("mobilenetv2_100",),
    "MobileNetV3": ("mobilenetv3_small_100", "mobilenetv3_large_100"),
    "ViT": ("vit_small_patch16_224", "vit_base_patch16_224"),
    "MAE": ("vit_base_patch16_224.mae",),
    "BEiT": ("beit_base_patch16_224",),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        "swin_base_patch4_window7_224",
    ),
    "Twins": ("twins_pcpvt_small", "twins_svt_small"),
    "ConvNeXt": ("convnext_tiny", "convnext_base"),
    "PoolFormer": ("poolformer_s12", "poolformer_m36"),
    "MiT": tuple(f"mit_b{size}" for size in range(6)),
    "PVTv2": tuple(f"pvt_v2_b{size}" for size in range(6)),
    "DINOv2": ("vit_small_patch14_dinov2",),
    "DINOv3": ("vit_base_patch16_dinov3",),
    "EVA-02": ("eva02_base_patch14_224",),
    "ConvNeXt V2": ("convnextv2_tiny",),
    "EfficientNet": ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"),
    "EfficientNetV2": ("efficientnetv2_rw_s", "tf_efficientnetv2_s"),
    "Hiera": ("hiera_tiny_224",),
}
