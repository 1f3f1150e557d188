"""Datasets: registry, splits, transforms, and what there is to know of the images before a model sees them."""

from vitlab.data.balance import class_weights, rare_classes
from vitlab.data.datasets import available, check_name, data_version, load_dataset, outline_dataset
from vitlab.data.duplicates import near_duplicate_table
from vitlab.data.loading import ImageDataset
from vitlab.data.quality import find_unreadable, image_table
from vitlab.data.splits import draw_splits
from vitlab.data.synthetic import add_synthetic, drop_synthetic, find_synthetic
from vitlab.data.transforms import build_augmentation, denormalise, fit_image, normalise, preprocess, to_rgb

__all__ = [
    "ImageDataset",
    "add_synthetic",
    "available",
    "build_augmentation",
    "check_name",
    "class_weights",
    "data_version",
    "denormalise",
    "draw_splits",
    "drop_synthetic",
    "find_synthetic",
    "find_unreadable",
    "fit_image",
    "image_table",
    "load_dataset",
    "near_duplicate_table",
    "normalise",
    "outline_dataset",
    "preprocess",
    "rare_classes",
    "to_rgb",
]
