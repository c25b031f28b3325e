"""The transforms that the CIFAR-10 program names, for images that are tensors already."""
from __future__ import annotations

from typing import Callable, Sequence

import torch
from torch import Tensor


class Compose:

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Tensor) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image


class ToTensor:

    def __call__(self, image: Tensor) -> Tensor:
        return image


class Normalize:

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std
