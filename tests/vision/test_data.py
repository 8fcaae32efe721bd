"""Image sets from every source, and the order in which they are trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.files import data_root
from vitalk.vision.data import EpochSampler, Images, below_ten, cifar_arrays, open_images, open_splits


@pytest.mark.parametrize("kind", ["picture_folder", "picture_parquet"])
def test_sources_give_the_same_pictures_and_labels(kind, request):
    images = open_images(request.getfixturevalue(kind), "test")
    assert len(images) == 24 and sorted(images.classes) == ["blue", "green", "red"]
    for i in range(len(images)):
        picture, label = images[i]
        mean = np.asarray(picture).mean((0, 1))
        assert ["red", "green", "blue"][mean.argmax()] == images.classes[label]


def test_a_set_without_splits_is_split_without_overlap(picture_folder):
    train, test = open_splits(picture_folder / "train", hold_out=4)
    assert len(train) + len(test) == 48 and len(test) == 12
    pixels = {np.asarray(train[i][0]).tobytes() for i in range(len(train))}
    assert not any(np.asarray(test[i][0]).tobytes() in pixels for i in range(len(test)))


def test_bad_sets_are_refused(tmp_path, picture_folder):
    (tmp_path / "empty").mkdir()
    one = tmp_path / "one" / "cat"
    one.mkdir(parents=True)
    open_images(picture_folder, "test")[0][0].save(one / "a.png")
    for path, words in (
        (tmp_path / "nowhere", "no data"),
        (tmp_path / "empty", "no pictures"),
        (one.parent, "one class"),
    ):
        with pytest.raises(UserError, match=words):
            open_images(path)
    broken = tmp_path / "x.parquet"
    broken.write_text("not parquet")
    with pytest.raises(UserError, match="parquet"):
        open_images(broken)


def test_a_corrupt_picture_is_named(tmp_path, picture_folder):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_text("I am text")
    with pytest.raises(UserError, match="picture 0"):
        open_images(tmp_path)[0]


def sampler(count, batch, rank=0, world=1, done=0, epoch=0):
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=done)))
    trainer = SimpleNamespace(
        current_epoch=epoch, world_size=world, global_rank=rank, fit_loop=SimpleNamespace(epoch_loop=progress)
    )
    return list(EpochSampler(count, batch, seed=1, trainer=trainer))


@settings(max_examples=25)
@given(count=st.integers(8, 60), world=st.integers(1, 4), batch=st.integers(1, 4), done=st.integers(0, 3))
def test_processes_share_the_batches_of_one_process_and_resume_where_they_stopped(count, world, batch, done):
    alone = sampler(count, batch * world)
    shared = [sampler(count, batch, rank, world) for rank in range(world)]
    for k in range(count // (batch * world)):
        together = {i for one in shared for i in one[k * batch : (k + 1) * batch]}
        assert together == set(alone[k * batch * world : (k + 1) * batch * world])
    assert sampler(count, batch, done=done) == sampler(count, batch)[done * batch :]
    assert sampler(count, batch, epoch=1) != sampler(count, batch) or count < 3


def test_the_evaluation_transform_is_what_the_configuration_says(picture_folder):
    data = Images(str(picture_folder), size=16, batch_size=4, workers=0, crop_pct=1.0)
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 16, 16) and len(labels) == 4
    expected = np.asarray(data.test[0][0], dtype=np.float64) / 255
    cfg = data.preprocess_cfg()
    expected = (expected - cfg["mean"]) / cfg["std"]
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.data
def test_cifar_reads():
    if not (data_root() / "images" / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 in {data_root()}")
    pixels, labels = cifar_arrays(None, "test", 100)
    assert pixels.shape == (100, 3, 32, 32) and set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ("rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1-mmax9"),
        ("rand-m9-mstd0.5-mmax7", "rand-m9-mstd0.5-mmax7"),
        ("rand-m9", "rand-m9"),
        ("augmix-m3-w3", "augmix-m3-w3"),
        (None, None),
    ],
)
def test_magnitudes_stay_below_ten_where_nothing_bounds_them(asked, used):
    assert below_ten(asked) == used


def test_the_strongest_augmentation_is_one_that_pillow_can_do():
    from PIL import Image
    from timm.data.auto_augment import rand_augment_ops

    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    for op in rand_augment_ops(
        9, hparams={"magnitude_std": 5.0, "magnitude_max": 9}, transforms={"PosterizeIncreasing": 1}
    ):
        for _ in range(100):
            assert op(picture).size == (8, 8)
