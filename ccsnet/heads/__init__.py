"""Heads: four feature maps, fine to coarse, become class logits.

A head is a file here that exports `build(channels, num_classes, config)`; its file name is its
name. A head knows of the backbone only `channels`, the widths of the four maps.
"""
