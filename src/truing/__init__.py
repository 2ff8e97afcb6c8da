"""Truing fine-tunes and aligns language models. The public names are in `truing.api`."""
