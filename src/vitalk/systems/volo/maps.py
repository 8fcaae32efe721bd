"""Stored label maps: what a teacher said of every place of every picture, its best few classes each."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitalk.errors import UserError
from vitalk.files import write_tensors
from vitalk.vision.data import ImageSet

from .labels import teacher_maps

Maps = Callable[[int], tuple[Tensor, Tensor]]
REMEDY = "write them with vitalk.systems.volo.write_label_maps, or name the folder of the official ones"


def open_label_maps(path: str | Path, images: ImageSet) -> Maps:
    """Index of a picture -> its map, scores [k, height, width] float32 and classes [k, height, width] int64.

    path: a file of ``write_label_maps`` for the same pictures in the same order; or the official folder, which has
    one file a picture, ``CLASS/NAME.pt`` for the picture ``CLASS/NAME.JPEG``, with a tensor [2, k, height, width] of
    scores and classes. Such files are read without running what a pickle could hold.
    Raises UserError for a path that is missing, and maps that are missing, unreadable or for too few pictures.
    """
    path = Path(path)
    if path.is_dir():
        return lambda i: _official(path, images, i)
    if not path.is_file():
        raise UserError(f"there are no label maps at {path}; {REMEDY}")
    try:
        with safe_open(path, "pt") as file:
            count = file.get_slice("scores").get_shape()[0]
            file.get_slice("classes")
    except SafetensorError as error:
        raise UserError(f"{path} holds no label maps ({error}); {REMEDY}") from None
    if count < len(images):
        raise UserError(f"{path} has maps of {count} pictures, the data has {len(images)}; {REMEDY}")
    return lambda i: _written(path, i)


def write_label_maps(
    teacher: nn.Module,
    images: ImageSet,
    path: str | Path,
    top: int = 5,
    size: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
) -> Path:
    """Write what ``teacher`` says of whole ``images`` as a safetensors file; on the device of the teacher.

    teacher: see ``teacher_maps``. top: classes a place. size: pixels that the pictures are resized to, whatever their
    shape; the teacher's own where None. "scores" [pictures, top, rows, columns] are logits in float16, "classes" are
    int16. The maps are gathered in memory and copied for writing: ImageNet at 18 x 18 places takes 25 GB.
    Raises UserError for a teacher without a map of features.
    """
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(teacher)
    pixels = size or config["input_size"][-1]
    look = create_transform(
        (pixels, pixels), is_training=False, crop_pct=1.0, crop_mode="squash", interpolation=config["interpolation"],
        mean=config["mean"], std=config["std"],
    )  # fmt: skip
    device, scores, classes = next(teacher.parameters()).device, [], []
    teacher.eval()
    with torch.inference_mode():
        for batch, _ in DataLoader(images.with_transform(look), batch_size, num_workers=workers):
            best = teacher_maps(teacher, batch.to(device)).topk(top, dim=1)
            scores.append(best.values.half().cpu())
            classes.append(best.indices.short().cpu())
    write_tensors(Path(path), {"scores": torch.cat(scores), "classes": torch.cat(classes)}, {"top": str(top)})
    return Path(path)


def _written(path: Path, index: int) -> tuple[Tensor, Tensor]:
    with safe_open(path, "pt") as file:  # memory-mapped: only this picture's map is read
        return file.get_slice("scores")[index].float(), file.get_slice("classes")[index].long()


def _official(folder: Path, images: ImageSet, index: int) -> tuple[Tensor, Tensor]:
    picture = images.read(index)
    if not isinstance(picture, Path):
        raise UserError("official label maps go with pictures in one folder a class; write your own for other sets")
    path = folder / picture.parent.name / f"{picture.stem}.pt"
    if not path.is_file():
        raise UserError(f"{picture} has no label map at {path}; {REMEDY}")
    stored = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(stored, Tensor) or stored.ndim != 4 or len(stored) != 2:
        raise UserError(f"{path} is no label map [2, k, height, width]; {REMEDY}")
    return stored[0].float(), stored[1].long()
