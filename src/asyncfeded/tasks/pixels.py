"""What the numbers of an image file mean: pixels of a known scale from 0 to 1, labels that are whole numbers.

A file does not say whether a full pixel is 1 or 255. So the scale is known from the type of the numbers, or asked for; each
writer's images are held against it, so that no run mixes two.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

Scale = Literal["auto", "as_is"] | Annotated[float, Field(gt=0)]

MOST_CLASSES = 10_000
"""Most classes that are counted from the labels; a larger label is more often a mistake, and its model may fit nowhere."""
FAR = 64
"""Two blocks of images taken as they are whose largest values differ by this factor are of two scales."""
LARGEST = float(np.finfo(np.float32).max)


def magnitude(images: np.ndarray) -> float:
    """The largest absolute value of images of any type, at least one number; NaN if one of them is."""
    return max(-float(images.min()), float(images.max()))


def to_unit(images: np.ndarray, scale: Scale, where: str, like: float) -> np.ndarray:
    """Images as float32, divided by what a full pixel is: 0 to 1, unless they are taken as they are.

    Arguments and errors are those of `full_pixel`.
    """
    full = full_pixel(images, scale, where, like)
    return images.astype(np.float32) / np.float32(full) if full != 1 else images.astype(np.float32, copy=False)


def full_pixel(images: np.ndarray, scale: Scale, where: str, like: float) -> float:
    """What a full pixel is; 1 where images are taken as they are.

    Args:
        images: numbers of any type, at least one.
        scale: a full pixel; `auto`: 255 for uint8, 1 for floats; `as_is`: there is none.
        where: place and field, for messages.
        like: `magnitude` of the first training images, which `as_is` compares with.

    Raises:
        ValueError: a value is not finite or of another scale, or `auto` cannot know the scale.
    """
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{where} holds a value that is not finite")
    goes = f"{where} goes from {low:.6g} to {high:.6g}"
    if scale == "as_is":
        largest = magnitude(images)
        if largest > LARGEST:
            raise ValueError(f"{goes}, which float32 cannot hold")
        if min(largest, like) > 0 and not 1 / FAR < largest / like < FAR:
            raise ValueError(
                f"{goes}, the first training images to {like:.6g}: these are two scales; convert one of the files"
            )
        return 1.0
    if scale == "auto":
        if images.dtype.kind != "f" and images.dtype != np.uint8:
            raise ValueError(f"{goes} as {images.dtype}; say what a full pixel is, such as task.scale = 255")
        full = 255.0 if images.dtype == np.uint8 else 1.0
    else:
        full = scale
    if low < 0 or high > full:
        raise ValueError(
            f"{goes}, expected 0 to {full:g} ({images.dtype}, task.scale = {scale}); set task.scale to what a full pixel is "
            f'in all of the data, or to "as_is" to take the numbers as they are'
        )
    if 0 < high <= full / 255:
        raise ValueError(
            f"{goes}, hardly anything where a full pixel is {full:g} ({images.dtype}, task.scale = {scale}); set task.scale "
            f"to what a full pixel is in all of the data, or convert what has another scale"
        )
    return full


def to_labels(labels: np.ndarray, classes: int, where: str) -> np.ndarray:
    """Labels as int64 (n,); whole numbers may be floats in the file.

    Args:
        labels: (n,), n at least 1, numbers of any type.
        classes: their number; 0: it is counted, up to MOST_CLASSES.
        where: place and field, for messages.

    Raises:
        ValueError: a label is not a whole number, or out of range.
    """
    if labels.dtype.kind == "f" and (broken := labels[labels != np.floor(labels)]).size:  # NaN too; infinite: out of range
        raise ValueError(f"{where} holds {broken[0]:g}, expected integers")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= (classes or MOST_CLASSES):
        known = f"to {classes - 1} (task.classes)" if classes else f"on, to {MOST_CLASSES - 1} without task.classes"
        raise ValueError(f"{where} goes from {low} to {high}, expected integers from 0 {known}")
    return labels.astype(np.int64)
