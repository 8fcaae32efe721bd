"""Pictures with stored label maps, which follow what augmentation does to the picture."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandomCrop
from torchvision.transforms import functional as TF

from vitalk.errors import UserError
from vitalk.vision.data import EpochSampler, Images, ImageSet

from .maps import Maps, open_label_maps

RATIO = (3 / 4, 4 / 3)  # of the sides of a crop, timm's


class TokenLabelImages(Images):
    """``Images`` whose training batches carry label maps: (images, {"labels", "scores", "classes", "boxes"}).

    label_maps: see ``open_label_maps``; they cover the whole pictures of the train part. "boxes" [batch, 4] say which
    part of them a training picture shows. Other arguments are those of ``Images`` but for ``augment``; an
    ``auto_augment`` policy must be a RandAugment ("rand-…"), whose shifts, shears and turns the maps follow.
    Raises UserError for maps that do not go with the pictures and for other policies.
    """

    def __init__(
        self,
        label_maps: str,
        path: str | None = None,
        *,
        crop_pct: float = 0.96,
        auto_augment: str | None = None,
        **options: Any,
    ):
        # What is given here is no option of the command line: the maps are always augmented.
        super().__init__(path, crop_pct=crop_pct, augment=True, auto_augment=auto_augment, **options)
        if auto_augment and not auto_augment.startswith("rand"):
            raise UserError(f"label maps cannot follow the policy {auto_augment}; take a RandAugment (rand-…)")
        self.maps = open_label_maps(label_maps, self.train)

    def train_dataloader(self) -> DataLoader:  # noqa: D102
        o = self.hparams
        labelled = LabelledPictures(self.train, self.maps, JointTransform(o), self.num_classes)
        sampler = EpochSampler(len(labelled), o.batch_size, o.seed, self.trainer)
        return DataLoader(
            labelled, o.batch_size, sampler=sampler, drop_last=len(labelled) >= o.batch_size,
            num_workers=o.workers, persistent_workers=o.workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip


class LabelledPictures(Dataset):
    """``self[i]``: (picture [3, size, size], its label and label map as the picture was transformed)."""

    def __init__(self, images: ImageSet, maps: Maps, transform: "JointTransform", num_classes: int):
        self.images, self.maps, self.transform, self.num_classes = images, maps, transform, num_classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        picture, label = self.images[index]
        scores, classes = self.maps(index)
        if not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise UserError(
                f"the label map of picture {index} names class {int(classes.max())}, the data has {self.num_classes} "
                "classes; take maps that were made for this data"
            )
        image, moved, box = self.transform(picture, torch.stack([scores, classes.float()]))
        return image, {"labels": label, "scores": moved[0], "classes": moved[1].long(), "boxes": box}


class JointTransform:
    """The training transform of ``Images`` for a picture and its label map, in the order of the official code.

    Flip, RandAugment or colour jitter on the whole picture, then the crop: the map is moved with the picture by
    nearest neighbours, and the crop is only noted. o: the options of ``Images``.
    """

    def __init__(self, o: Any):
        self.o, self.moves = o, []
        _, self.colour, self.finish = create_transform(
            o.size, is_training=True, color_jitter=o.color_jitter or None, auto_augment=o.auto_augment, mean=o.mean,
            interpolation=o.interpolation, std=o.std, re_prob=o.reprob, re_mode="pixel", separate=True,
        )  # fmt: skip
        for policy in self.colour.transforms:
            for op in policy.ops if isinstance(policy, RandAugment) else ():
                if op.name in MOVES:
                    op.aug_fn = Noted(op.aug_fn, MOVES[op.name], self.moves)

    def __call__(self, picture: Image.Image, label_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A picture and its map [2, k, height, width] -> (image [3, size, size], the map moved, the crop [4])."""
        self.moves.clear()
        if random.random() < 0.5:
            picture, label_map = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), label_map.flip(-1)
        picture = self.colour(picture)
        if self.moves:
            label_map = moved(label_map, self.moves, picture.size)
        picture, box = self.cropped(picture)
        return self.finish(picture), label_map, torch.tensor(box)

    def cropped(self, picture: Image.Image) -> tuple[Image.Image, tuple[float, float, float, float]]:
        """The random crop of ``picture``, and it as left, top, right, bottom in parts of the sides."""
        o, size = self.o, (self.o.size, self.o.size)
        mode = InterpolationMode(o.interpolation)
        if o.padding is None:
            width, height = picture.size
            top, left, rows, columns = RandomResizedCropAndInterpolation.get_params(picture, o.scale, RATIO)
            picture = TF.resized_crop(picture, top, left, rows, columns, size, mode)
            return picture, (left / width, top / height, (left + columns) / width, (top + rows) / height)
        padded = TF.pad(TF.resize(picture, size, mode), o.padding, padding_mode="reflect")
        top, left, rows, columns = RandomCrop.get_params(padded, size)
        x, y = (left - o.padding) / o.size, (top - o.padding) / o.size
        return TF.crop(padded, top, left, rows, columns), (x, y, x + 1, y + 1)


class Noted:
    """A geometric operation of timm's that notes the matrix it moved a picture by."""

    def __init__(self, function: Callable[..., Image.Image], matrix: Callable[..., Tensor], moves: list[Tensor]):
        self.function, self.matrix, self.moves = function, matrix, moves

    def __call__(self, picture: Image.Image, amount: float, **kwargs: Any) -> Image.Image:
        """The moved picture."""
        self.moves.append(self.matrix(amount, *picture.size))
        return self.function(picture, amount, **kwargs)


def _turn(degrees: float, width: int, height: int) -> Tensor:
    angle = torch.deg2rad(torch.tensor(-degrees))
    centre = torch.tensor([width / 2, height / 2])
    turn = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    return torch.cat([turn, (centre - turn @ centre)[:, None]], dim=1)


# Amount, width and height -> the matrix [2, 3] that takes a pixel of the moved picture to where it was, as in pillow.
MOVES: dict[str, Callable[[float, int, int], Tensor]] = {
    "Rotate": _turn,
    "ShearX": lambda amount, width, height: torch.tensor([[1.0, amount, 0.0], [0.0, 1.0, 0.0]]),
    "ShearY": lambda amount, width, height: torch.tensor([[1.0, 0.0, 0.0], [amount, 1.0, 0.0]]),
    "TranslateX": lambda amount, width, height: torch.tensor([[1.0, 0.0, amount], [0.0, 1.0, 0.0]]),
    "TranslateY": lambda amount, width, height: torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, amount]]),
    "TranslateXRel": lambda amount, width, height: torch.tensor([[1.0, 0.0, amount * width], [0.0, 1.0, 0.0]]),
    "TranslateYRel": lambda amount, width, height: torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, amount * height]]),
}


def moved(label_map: Tensor, moves: list[Tensor], size: tuple[int, int]) -> Tensor:
    """A map [2, k, rows, columns] moved as a picture of ``size`` (width, height) was by ``moves``, one after another.

    Each place takes what the nearest one had; what comes from outside has score 0 for class 0, that is no opinion.
    """
    width, height = size
    to_unit = torch.tensor([[2 / width, 0.0, -1.0], [0.0, 2 / height, -1.0], [0.0, 0.0, 1.0]])
    flat, last = label_map.flatten(0, 1)[None], torch.tensor([[0.0, 0.0, 1.0]])
    for move in moves:
        theta = to_unit @ torch.cat([move, last]) @ torch.linalg.inv(to_unit)
        grid = F.affine_grid(theta[None, :2], list(flat.shape), align_corners=False)
        flat = F.grid_sample(flat, grid, mode="nearest", align_corners=False)
    return flat.view_as(label_map)
