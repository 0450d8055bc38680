import ccsnet.backbones  # noqa: F401  # makes timm importable before a test imports it
