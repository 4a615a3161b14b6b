"""File formats: documents from input files of all kinds, and the tar and `.npy` headers that shards are made of.

To add an input format, write a module with `split` and `read` like `parquet.py` and enter it in `inputs.FORMATS`,
or for one of text in `text/` and `text.detection.SUFFIXES`.
"""
