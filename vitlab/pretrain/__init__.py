"""Supervised pretraining of a small ViT with a CNN as teacher (DeiT, arXiv 2012.12877): `python -m vitlab.pretrain --help`."""
