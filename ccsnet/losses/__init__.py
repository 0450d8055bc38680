"""Losses: logits and labels become what is minimised.

A loss is a file here that exports `build(**options) -> Loss`; its file name is its name, and the
keywords of `build` are its options. Files that start with `_` are no losses.
"""
