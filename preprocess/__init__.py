"""From published datasets to ``data-bin``: ``python -m preprocess list | prepare | check``."""
