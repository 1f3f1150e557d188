"""Datasets: registry, splits, transforms, and what there is to know of the images before a model sees them."""

from vitlab.data.balance import class_weights, rare_classes
from vitlab.data.card import data_card, hash_splits
from vitlab.data.clusters import clean_test_ids, cluster_table
from vitlab.data.datasets import available, check_name, data_version, load_dataset, outline_dataset, replace_splits
from vitlab.data.duplicates import near_duplicate_table
from vitlab.data.folds import draw_folds, split_fold
from vitlab.data.issues import ISSUES, predict_out_of_fold, quality_summary, quality_table, worst_images
from vitlab.data.loading import ImageDataset, load_images
from vitlab.data.planted import replace_stamps, stamp_masks
from vitlab.data.quality import find_unreadable, image_table
from vitlab.data.splits import draw_splits
from vitlab.data.synthetic import add_synthetic, drop_synthetic, find_synthetic
from vitlab.data.transforms import build_augmentation, denormalise, fit_image, normalise, preprocess
from vitlab.pictures import to_rgb

__all__ = [
    "ISSUES",
    "ImageDataset",
    "add_synthetic",
    "available",
    "build_augmentation",
    "check_name",
    "class_weights",
    "clean_test_ids",
    "cluster_table",
    "data_card",
    "data_version",
    "denormalise",
    "draw_folds",
    "draw_splits",
    "drop_synthetic",
    "find_synthetic",
    "find_unreadable",
    "fit_image",
    "hash_splits",
    "image_table",
    "load_dataset",
    "load_images",
    "near_duplicate_table",
    "normalise",
    "outline_dataset",
    "predict_out_of_fold",
    "preprocess",
    "quality_summary",
    "quality_table",
    "rare_classes",
    "replace_splits",
    "replace_stamps",
    "split_fold",
    "stamp_masks",
    "to_rgb",
    "worst_images",
]
