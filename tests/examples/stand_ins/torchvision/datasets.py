"""CIFAR10 with torchvision's arguments. A class is a brightness of its own under noise: learnt within a few hundred steps."""
from __future__ import annotations

from typing import Any, Callable

import torch

CLASSES = 10
TRAIN_IMAGES, TEST_IMAGES = 320, 40  # the program looks at four test images at a time, and divides by the images of every class


class CIFAR10(torch.utils.data.Dataset):

    def __init__(self, root: Any = None, train: bool = True, transform: Callable | None = None, target_transform: Callable | None = None,
                 download: bool = False) -> None:
        count = TRAIN_IMAGES if train else TEST_IMAGES
        noise = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2 if train else 3))
        self.targets = [index % CLASSES for index in range(count)]
        brightness = torch.tensor(self.targets, dtype=torch.float32).view(-1, 1, 1, 1) / (CLASSES + 5)
        self.images = 0.3 * noise + brightness
        self.transform, self.target_transform = transform, target_transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image: Any = self.images[index]
        target: Any = self.targets[index]
        return (self.transform(image) if self.transform else image), (self.target_transform(target) if self.target_transform else target)
