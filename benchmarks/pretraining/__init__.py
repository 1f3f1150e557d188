"""Supervised pretraining of a small ViT with a CNN as teacher (DeiT, arXiv 2012.12877): run
`python -m pretraining --help` in the folder benchmarks/. It made the weights of `vit_tiny_vitlab`.
"""
