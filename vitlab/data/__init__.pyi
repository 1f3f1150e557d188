from . import card as card
from .balance import (
    add_synthetic as add_synthetic,
    find_synthetic as find_synthetic,
)
from .card import (
    data_card as data_card,
)
from .datasets import (
    available as available,
    data_version as data_version,
    load_dataset as load_dataset,
)
from .loading import (
    ImageDataset as ImageDataset,
    build_augmentation as build_augmentation,
    denormalise as denormalise,
    fit_image as fit_image,
    load_images as load_images,
    preprocess as preprocess,
)
from .planted import (
    stamp_masks as stamp_masks,
)
from .quality import (
    clean_test_ids as clean_test_ids,
    cluster_table as cluster_table,
    cluster_test_images as cluster_test_images,
    image_table as image_table,
    near_duplicate_table as near_duplicate_table,
    quality_summary as quality_summary,
    quality_table as quality_table,
    worst_images as worst_images,
)
from .splits import draw_samples as draw_samples
