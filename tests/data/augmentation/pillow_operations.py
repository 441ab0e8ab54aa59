"""The operations as torchvision calls them, by Pillow's own functions."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

AFFINE = Image.Transform.AFFINE


def apply(name: str, image: np.ndarray, magnitude: float) -> np.ndarray:
    """What Pillow makes of an image uint8 `[h, w, c]` of 1 or 3 channels."""
    pillow = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    m, pixels = magnitude, int(magnitude)
    operations = {
        "Identity": lambda: pillow,
        "ShearX": lambda: pillow.transform(pillow.size, AFFINE, (1, m, 0, 0, 1, 0)),
        "ShearY": lambda: pillow.transform(pillow.size, AFFINE, (1, 0, 0, m, 1, 0)),
        "TranslateX": lambda: pillow.transform(pillow.size, AFFINE, (1, 0, -pixels, 0, 1, 0)),
        "TranslateY": lambda: pillow.transform(pillow.size, AFFINE, (1, 0, 0, 0, 1, -pixels)),
        "Rotate": lambda: pillow.rotate(m),
        "Brightness": lambda: ImageEnhance.Brightness(pillow).enhance(1 + m),
        "Color": lambda: ImageEnhance.Color(pillow).enhance(1 + m),
        "Contrast": lambda: ImageEnhance.Contrast(pillow).enhance(1 + m),
        "Sharpness": lambda: ImageEnhance.Sharpness(pillow).enhance(1 + m),
        "Posterize": lambda: ImageOps.posterize(pillow, int(m)),
        "Solarize": lambda: ImageOps.solarize(pillow, m),
        "AutoContrast": lambda: ImageOps.autocontrast(pillow),
        "Equalize": lambda: ImageOps.equalize(pillow),
    }
    return np.asarray(operations[name]()).reshape(image.shape)
