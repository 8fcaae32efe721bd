"""Image sets: parquet files, class folders and Hugging Face data sets behind one small interface."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitalk.errors import UserError
from vitalk.files import data_root

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SPLITS = {"train": ("train",), "test": ("test", "val", "validation", "valid")}
CIFAR10 = "uoft-cs/cifar10"


class ImageSet(Dataset):
    """Pictures with class labels.

    labels: [pictures] int64; classes: the name of each label; read: index -> picture as bytes, path or PIL image.
    ``self[i]`` is (picture, label), the picture through ``transform`` where one is set, else as RGB PIL image.
    """

    def __init__(self, labels: np.ndarray, classes: list[str], read: Callable[[int], Any], name: str = ""):
        self.labels, self.classes, self.read, self.name = labels, classes, read, name
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        raw = self.read(index)
        try:
            picture = raw if isinstance(raw, Image.Image) else Image.open(raw)
            picture = picture.convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"picture {index} of {self.name} cannot be read ({error}); remove or replace it") from None
        return (self.transform(picture) if self.transform else picture), int(self.labels[index])

    def with_transform(self, transform: Callable[[Image.Image], Any]) -> "ImageSet":
        """The same pictures through another transform."""
        same = ImageSet(self.labels, self.classes, self.read, self.name)
        same.transform = transform
        return same

    def select(self, indices: np.ndarray) -> "ImageSet":
        """The pictures at ``indices``, in that order."""
        read, chosen = self.read, np.asarray(indices)
        part = ImageSet(self.labels[chosen], self.classes, lambda i: read(int(chosen[i])), self.name)
        part.transform = self.transform
        return part


def open_images(path: str | Path | None = None, split: str = "test") -> ImageSet:
    """The ``split`` ("train" or "test") of an image set; the whole set where it has no such parts.

    path: a parquet file or a folder of them (columns image {bytes}, label; classes.json or a name column
    beside), a folder with one subfolder of pictures a class (in train/ and test/ or val/ where it has splits),
    ``hf:NAME`` for a Hugging Face data set, or None for CIFAR-10.
    Raises UserError for paths that are missing, empty or hold a single class.
    """
    if path is None:
        local = data_root() / "images" / "cifar10"
        path = local if local.is_dir() else f"hf:{CIFAR10}"
    if str(path).startswith("hf:"):
        images = _hugging_face(str(path)[3:], split)
    else:
        path = Path(path)
        if not path.exists():
            raise UserError(f"there is no data at {path}; name a folder, a parquet file or hf:DATASET")
        images = _parquet(path, split) if _parquet_files(path) else _folder(path, split)
    if len(images) == 0:
        raise UserError(f"{path} holds no pictures; it needs one subfolder of pictures a class, or parquet files")
    if len(images.classes) < 2:
        raise UserError(f"{path} has one class only ({images.classes[0]}); a classifier needs at least two")
    return images


def open_splits(path: str | Path | None = None, hold_out: int = 10) -> tuple[ImageSet, ImageSet]:
    """(train, test) of an image set; where it has no splits every ``hold_out``-th picture goes to the test part."""
    train, test = open_images(path, "train"), open_images(path, "test")
    if not _has_splits(path):
        held = np.arange(len(train)) % hold_out == 0
        train, test = train.select(np.flatnonzero(~held)), test.select(np.flatnonzero(held))
    return train, test


def _has_splits(path: str | Path | None) -> bool:
    if path is None or str(path).startswith("hf:"):
        return True
    path = Path(path)
    return path.is_dir() and all(
        any((path / f"{name}.parquet").exists() or (path / name).is_dir() for name in names)
        for names in SPLITS.values()
    )


def _parquet_files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".parquet" else sorted(path.glob("*.parquet"))


def _parquet(path: Path, split: str) -> ImageSet:
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    files = _parquet_files(path)
    named = [f for f in files if f.stem.split("-")[0] in SPLITS[split]]
    try:
        tables = [pq.read_table(f) for f in named or files]
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file ({error})") from None
    import pyarrow as pa

    table = pa.concat_tables(tables)
    column = next((c for c in ("label", "labels", "fine_label") if c in table.column_names), None)
    if column is None or "image" not in table.column_names:
        raise UserError(f"{path} needs the columns image and label, it has {', '.join(table.column_names)}")
    labels = table[column].to_numpy().astype(np.int64)
    blobs = pa.compute.struct_field(table["image"], "bytes").combine_chunks()
    return ImageSet(labels, _class_names(path, table, labels), lambda i: io.BytesIO(blobs[i].as_py()), str(path))


def _class_names(path: Path, table: Any, labels: np.ndarray) -> list[str]:
    beside = (path if path.is_dir() else path.parent) / "classes.json"
    if beside.exists():
        return json.loads(beside.read_text())
    if meta := (table.schema.metadata or {}).get(b"huggingface"):
        features = json.loads(meta).get("info", {}).get("features", {})
        if names := features.get("label", {}).get("names"):
            return names
    names = [str(i) for i in range(int(labels.max()) + 1 if len(labels) else 0)]
    if "name" in table.column_names:
        for label, name in zip(labels, table["name"].to_pylist(), strict=True):
            names[label] = name
    return names


def _folder(path: Path, split: str) -> ImageSet:
    root = next((path / name for name in SPLITS[split] if (path / name).is_dir()), path)
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [
        (f, i) for i, c in enumerate(classes) for f in sorted((root / c).rglob("*")) if f.suffix.lower() in PICTURES
    ]
    filled = sorted({i for _, i in files})
    names = [classes[i] for i in filled]
    labels = np.array([filled.index(i) for _, i in files], dtype=np.int64)
    return ImageSet(labels, names or [path.name], lambda i: files[i][0], str(path))


def _hugging_face(name: str, split: str) -> ImageSet:
    import datasets

    try:
        parts = datasets.load_dataset(name)
    except Exception as error:
        raise UserError(
            f"the data set {name} cannot be loaded ({type(error).__name__}); check name and network"
        ) from None
    table = next((parts[s] for s in SPLITS[split] if s in parts), None)
    table = parts[next(iter(parts))] if table is None else table
    image = next((c for c, f in table.features.items() if isinstance(f, datasets.Image)), None)
    label = next((c for c, f in table.features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise UserError(f"the data set {name} needs an image column and a class label, it has {list(table.features)}")
    return ImageSet(np.array(table[label]), table.features[label].names, lambda i: table[i][image], name)


def cifar_arrays(root: Path | None, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` CIFAR-10 pictures as uint8 [count, 3, 32, 32] with labels [count]; for quick experiments.

    root: the CIFAR-10 folder; None finds it as ``open_images`` does.
    """
    import torch

    images = open_images(root, split)
    count = min(count, len(images))
    pixels = np.stack([np.asarray(images[i][0]) for i in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(images.labels[:count])


class Images(LightningDataModule):
    """Pictures for training and validation, through timm's transforms.

    path: see ``open_images``. size: of the input, pixels. batch_size: per process.
    padding: None crops as timm does (random area within ``scale``); a number pads by so many pixels
    (reflecting) and crops back, as is usual for CIFAR.
    auto_augment: a timm policy such as "rand-m9-mstd0.5-inc1"; reprob: probability of random erasing.
    augment: False trains on the pictures as they are evaluated.
    The order of an epoch depends on ``seed`` and the epoch alone, and a run resumed within an epoch goes on
    with the pictures it had not seen; with several processes the global batches stay the same.
    """

    PROVIDES = ("num_classes",)  # to the model that is trained

    def __init__(
        self,
        path: str | None = None,
        size: int = 224,
        batch_size: int = 128,
        workers: int = 2,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        interpolation: str = "bicubic",
        crop_pct: float = 0.9,
        augment: bool = True,
        padding: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        reprob: float = 0.0,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.train, self.test = open_splits(path)
        if limit is not None:
            self.train, self.test = (part.select(np.arange(min(limit, len(part)))) for part in (self.train, self.test))
        self.classes = self.train.classes
        self.num_classes = len(self.classes)

    def train_dataloader(self) -> DataLoader:  # noqa: D102
        o = self.hparams
        images = self.train.with_transform(train_transform(o) if o.augment else eval_transform(o))
        sampler = EpochSampler(len(images), o.batch_size, o.seed, self.trainer)
        return DataLoader(
            images, o.batch_size, sampler=sampler, drop_last=len(images) >= o.batch_size,
            num_workers=o.workers, persistent_workers=o.workers > 0, pin_memory=_cuda(),
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader:  # noqa: D102
        o = self.hparams
        return DataLoader(
            self.test.with_transform(eval_transform(o)), o.batch_size, num_workers=o.workers, pin_memory=_cuda()
        )

    def preprocess_cfg(self) -> dict[str, Any]:
        """The evaluation transform as a timm pretrained_cfg."""
        o = self.hparams
        return {
            "input_size": (3, o.size, o.size), "interpolation": o.interpolation, "crop_pct": o.crop_pct,
            "mean": tuple(o.mean), "std": tuple(o.std), "crop_mode": "center",
        }  # fmt: skip


class EpochSampler:
    """A permutation of the pictures that depends on seed and epoch; shared out over the processes batch by batch."""

    def __init__(self, count: int, batch_size: int, seed: int, trainer: Any):
        self.count, self.batch_size, self.seed, self.trainer = count, batch_size, seed, trainer

    def __len__(self) -> int:
        return self.count // self.trainer.world_size

    def __iter__(self) -> Any:
        trainer = self.trainer
        order = np.random.default_rng((self.seed, trainer.current_epoch)).permutation(self.count)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batch_size  # > 0 only when resumed
        mine = order[: len(self) * trainer.world_size][trainer.global_rank :: trainer.world_size]
        return iter(mine[done:].tolist())


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def train_transform(o: Any) -> Callable[[Image.Image], Tensor]:
    """The training transform that the options of ``Images`` describe."""
    from timm.data import create_transform

    whole = create_transform(
        o.size, is_training=True, scale=o.scale, hflip=0.5, color_jitter=o.color_jitter or None,
        auto_augment=below_ten(o.auto_augment), interpolation=o.interpolation, mean=o.mean, std=o.std,
        re_prob=o.reprob, re_mode="pixel",
    )  # fmt: skip
    if o.padding is None:
        return whole
    from torchvision.transforms import InterpolationMode, RandomCrop, Resize

    mode = InterpolationMode(o.interpolation)
    whole.transforms[0:1] = [Resize((o.size, o.size), mode), RandomCrop(o.size, o.padding, padding_mode="reflect")]
    return whole


def below_ten(auto_augment: str | None) -> str | None:
    """timm's RandAugment with magnitudes of 9 at most, where it names no bound of its own.

    Drawn with a deviation, they go up to 10, at which timm posterizes to 0 bits; Pillow 13 refuses that.
    """
    randomly = auto_augment is not None and auto_augment.startswith("rand-") and "-mstd" in auto_augment
    return f"{auto_augment}-mmax9" if randomly and "-mmax" not in auto_augment else auto_augment


def eval_transform(o: Any) -> Callable[[Image.Image], Tensor]:
    """The evaluation transform that the options of ``Images`` describe."""
    from timm.data import create_transform

    return create_transform(
        o.size, is_training=False, interpolation=o.interpolation, crop_pct=o.crop_pct, mean=o.mean, std=o.std
    )


def split_for_calibration(path: str | Path | None, count: int = 32, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """(calibration, evaluation): ``count`` pictures of the train part and the test part.

    Where the set has no parts, the calibration pictures are spread evenly and the rest is for evaluation.
    """
    if _has_splits(path):
        train, test = open_images(path, "train"), open_images(path, "test")
        order = np.random.default_rng(seed).permutation(len(train))
        return train.select(order[:count]), test
    whole = open_images(path)
    if len(whole) < 2:
        raise UserError(f"{path} has {len(whole)} picture; calibration and evaluation need at least one each")
    chosen = np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole) // 2)).astype(int))
    return whole.select(chosen), whole.select(np.setdiff1d(np.arange(len(whole)), chosen))
