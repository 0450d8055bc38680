"""What data there is.

Each file here exports `SPEC`, a `DatasetSpec`; the file's name is the data set's. Files that start
with `_` are no data sets.
"""
