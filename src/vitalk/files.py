"""Files that are whole or absent, and where the data lies."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitalk.errors import UserError


class staging:
    """A folder beside ``target`` whose files move into it when all went well, and vanish otherwise."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self) -> Path:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
            if self.target.exists() and not (self.target.is_dir() and os.access(self.target, os.W_OK)):
                shutil.rmtree(self.folder)
                raise UserError(f"{self.target} cannot be written to; choose another folder with -o")
        except OSError as error:
            raise UserError(
                f"{self.target} cannot be written to ({error.strerror}); choose another folder with -o"
            ) from None
        return self.folder

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.target.mkdir(exist_ok=True)
            for file in self.folder.iterdir():
                os.replace(file, self.target / file.name)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write under; renamed to it at the end, gone where anything went wrong.

    Raises UserError where the folder cannot be written to, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose another place or free space"
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file under a temporary name and rename it, so that ``path`` never holds half of it.

    Raises UserError where the folder cannot be written to, or the disk is full.
    """
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_tensors(path: Path, state: dict[str, Any], metadata: dict[str, str]) -> Path:
    """Write a state dict as safetensors, whole or not at all; tensors that share memory are written each.

    Raises UserError as ``write_whole`` does.
    """
    from safetensors.torch import save

    copies = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return write_whole(path, save(copies, metadata))


def data_root() -> Path:
    """The folder of real data sets: ``VITALK_DATA``, ``shared/data`` beside the checkout, or the user's cache."""
    if named := os.environ.get("VITALK_DATA"):
        return Path(named)
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    if beside.is_dir():
        return beside
    from platformdirs import user_cache_path

    return user_cache_path("vitalk") / "data"
