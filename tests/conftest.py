"""Small sets of pictures and of sounds that every test may train on."""

import io

import numpy as np
import pytest
from PIL import Image


def coloured(count: int, seed: int = 0, size: int = 16) -> tuple[list[Image.Image], list[int]]:
    """Noisy pictures of three colours, the label of each is its colour."""
    rng = np.random.default_rng(seed)
    labels = [i % 3 for i in range(count)]
    noise = rng.integers(0, 90, (count, size, size, 3), dtype=np.uint8)
    for pixels, label in zip(noise, labels, strict=True):
        pixels[..., label] += 120
    return [Image.fromarray(pixels) for pixels in noise], labels


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """A folder with train/ and test/, one subfolder a class."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 48), ("test", 24)):
        for i, (picture, label) in enumerate(zip(*coloured(count, seed=count), strict=True)):
            folder = root / split / ["red", "green", "blue"][label]
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def picture_parquet(tmp_path_factory):
    """The same as parquet files with classes.json beside them."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("parquet")
    for split, count in (("train", 48), ("test", 24)):
        pictures, labels = coloured(count, seed=count)
        blobs = []
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            blobs.append({"bytes": buffer.getvalue(), "path": None})
        pq.write_table(pa.table({"image": blobs, "label": labels}), root / f"{split}.parquet")
    (root / "classes.json").write_text(json.dumps(["red", "green", "blue"]))
    return root


@pytest.fixture(scope="session")
def hums(tmp_path_factory):
    """Eight hums of 120 to 190 Hz by two speakers, with phonemes."""
    import json

    from vitalk.speech.audio import Audio

    folder = tmp_path_factory.mktemp("hums")
    (folder / "wavs").mkdir()
    rows = []
    for i in range(8):
        time = np.arange(int((0.4 + 0.1 * i) * 24_000)) / 24_000
        tones = sum(np.sin(2 * np.pi * (120 + 10 * i) * k * time) / k for k in range(1, 20))
        Audio((0.2 * tones).astype(np.float32), 24_000).save(folder / "wavs" / f"{i}.wav")
        rows.append({"id": str(i), "speaker": f"s{i % 2}", "text": "hum", "phonemes": "hˈʌm"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
