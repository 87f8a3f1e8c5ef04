"""Images and masks: reading, preprocessing, rasterising, drawing.

The one implementation for training, evaluation and the runtime. Arrays are uint8 RGB [H, W, 3] and
uint8 masks [H, W] of 0 and 1.
"""

from uino_deploy.images.annotation import (
    polygons_from_coco,
)
from uino_deploy.images.drawing import (
    Colour,
    class_colour,
    overlay,
)
from uino_deploy.images.levels import IGNORED
from uino_deploy.images.opening import SUFFIXES, UInt8
from uino_deploy.images.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Float32,
    preprocess_image,
    preprocess_mask,
    sigmoid,
    upsample_logits,
)
from uino_deploy.images.reading import (
    check_image,
    load_image,
    load_marked,
    load_mask,
)

__all__ = [
    "IGNORED",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SUFFIXES",
    "Colour",
    "Float32",
    "UInt8",
    "check_image",
    "class_colour",
    "load_image",
    "load_marked",
    "load_mask",
    "overlay",
    "polygons_from_coco",
    "preprocess_image",
    "preprocess_mask",
    "sigmoid",
    "upsample_logits",
]
