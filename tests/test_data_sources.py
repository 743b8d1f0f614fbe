"""Data sets that are read from folders, torchvision's files and the user's own code."""

import hashlib
import logging
import os
import pickle
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from autoslim.data import FileImages, ImageSet, decode, folder, load_data
from autoslim.errors import DataError


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def random_image(rng, high=8, wide=8):
    return rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """Three classes, four training and two test PNGs of 8x8 each, and what must be ignored."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "ant", "bee"):
            for index in range(count):
                save(tmp_path / "set" / part / name / f"{index}.png", random_image(rng))
    (tmp_path / "set/train/cat/.hidden.png").write_bytes(b"x")
    (tmp_path / "set/train/cat/notes.txt").write_text("x")
    (tmp_path / "set/train/.git").mkdir()
    return tmp_path / "set"


@pytest.fixture
def load(root, tmp_path):
    def load_root(**options):
        return load_data(f"folder:{root}", **{"cache_dir": tmp_path / "cache", **options})

    return load_root


@pytest.fixture
def decoded(monkeypatch):
    """Count calls of the decoder."""
    calls = []
    original = folder.decode_files
    monkeypatch.setattr(folder, "decode_files", lambda *args, **options: calls.append(1) or original(*args, **options))
    return calls


def refused(spec, *words, **options):
    """Check that a data set is refused in one line that holds all of `words`."""
    with pytest.raises(DataError) as caught:
        load_data(str(spec), **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def test_folder_pixels_labels_and_classes(load, root):
    data = load()
    assert data.classes == ("ant", "bee", "cat")
    assert data.image_shape == (3, 8, 8)
    assert isinstance(data.train, ImageSet)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for row, name in ((0, "train/ant/0"), (7, "train/bee/3"), (8, "train/cat/0")):
        pixels = np.asarray(Image.open(root / f"{name}.png"))
        assert np.array_equal(data.train.images[row].permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(data.test.images[5].permute(1, 2, 0).numpy(), np.asarray(Image.open(root / "test/cat/1.png")))


def test_val_is_read_where_test_has_no_classes(load, root):
    os.rename(root / "test", root / "val")
    (root / "test").mkdir()
    save(root / "test/unlabelled.png", random_image(np.random.default_rng(0)))
    assert len(load().test) == 6


def test_test_is_preferred_to_val(load, root):
    rng = np.random.default_rng(0)
    save(root / "val/ant/0.png", random_image(rng))
    assert len(load().test) == 6


def test_file_types_and_colour_modes(load, root):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(random_image(rng))
    for name in ("a.JPG", "b.jpeg", "c.bmp", "d.webp", "e.ppm", "f.TIF", "g.tiff", "h.gif"):
        picture.save(root / "train/ant" / name)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        picture.convert(mode).save(root / f"train/bee/mode_{mode}.png")
    picture.convert("CMYK").save(root / "train/bee/cmyk.jpg")
    data = load()
    assert data.train.labels.bincount().tolist() == [12, 10, 4]
    assert data.image_shape == (3, 8, 8)


def test_deep_pixels_are_refused(load, root):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "train/ant/deep.png")
    refused(f"folder:{root}", root / "train/ant/deep.png", "8 bits")


def test_images_are_scaled_by_the_shorter_side_and_cropped(load, root):
    wide = random_image(np.random.default_rng(0), 10, 30)
    save(root / "train/ant/wide.png", wide)
    data = load(image_size=5)
    assert data.original_size == load(image_size=5).original_size == (8, 8)  # of the first, decoded or cached
    expected = np.asarray(Image.fromarray(wide).resize((15, 5), Image.Resampling.BILINEAR))[:, 5:10]
    assert data.image_shape == data.train.image_shape == (3, 5, 5)
    assert np.array_equal(data.train.images[4].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("side", [56, 100, 110, 128, 183, 293])
def test_images_of_any_size_are_decoded(tmp_path, side):
    # Of some sides the middle, reckoned in floats, begins a hair outside of the image.
    rng, large = np.random.default_rng(0), np.zeros((1300, 1300, 3), np.uint8)
    for index, (high, wide) in enumerate([*rng.integers(1, 1300, (40, 2)), (450, 450), (500, 375), (300, 300), (600, 800)]):
        Image.fromarray(large[:high, :wide]).save(tmp_path / "image.bmp")
        assert decode.decode_file(str(tmp_path / "image.bmp"), (side, side)).shape == (side, side, 3), (index, high, wide)
    for whole in range(1, 2001):
        for size in ((whole, whole), (whole, 2001), (2001, whole)):
            left, top, right, bottom = decode._middle(size, (side, side))
            assert 0 <= left <= right <= size[0] and 0 <= top <= bottom <= size[1]
            assert right - left == pytest.approx(min(size)) and bottom - top == pytest.approx(min(size))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_photos_are_turned_upright(tmp_path, suffix):
    # Dark above, light to the right below: no turn or mirroring leaves it as it is.
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[16:, 16:] = 255
    turned = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
              6: upright[:, ::-1].transpose(1, 0, 2), 7: upright[::-1, ::-1].transpose(1, 0, 2),
              8: upright[::-1].transpose(1, 0, 2)}  # fmt: skip
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
        assert [size for _, size in decode.read_sizes([str(path)])] == [(32, 48)]
        for size in ((32, 48), (16, 24)):
            expected = np.asarray(Image.fromarray(upright).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
            off = np.abs(decode.decode_file(str(path), size) - expected)
            assert off.mean() < 4 and off.max() < 128, orientation


def test_damage_inside_a_file_is_found(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "image.png"
    Image.fromarray(random_image(rng, 32, 32)).save(path)
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 100
    for place in rng.integers(start, len(whole) - 100, 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(decode.CorruptImage):
            decode.decode_file(str(path), (32, 32))


def test_a_header_is_read_without_the_pixels(tmp_path, monkeypatch):
    save(tmp_path / "image.png", random_image(np.random.default_rng(0)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert [size for _, size in decode.read_sizes([str(tmp_path / "image.png")])] == [(8, 8)]


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_harms_no_image(tmp_path, exif):
    pixels = random_image(np.random.default_rng(0))
    Image.fromarray(pixels).save(tmp_path / "image.jpg", quality=95, exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.jpg", quality=95)
    assert np.array_equal(*(decode.decode_file(str(tmp_path / f"{name}.jpg"), (8, 8)) for name in ("image", "plain")))


def test_what_is_no_image_is_passed_over_and_said(load, root, caplog):
    (root / "train/ant/more").mkdir()
    save(root / "train/ant/more/0.png", random_image(np.random.default_rng(0)))
    with caplog.at_level(logging.INFO, "autoslim"):
        assert len(load().train) == 12
    assert "train: 2 entries of its class folders are no images" in caplog.text
    assert "and are not read: ant/more, cat/notes.txt" in caplog.text and "hidden" not in caplog.text


def test_networks_that_see_images_which_are_not_square(load, root):
    tall = random_image(np.random.default_rng(0), 30, 12)
    save(root / "train/ant/tall.png", tall)
    data = load(image_size=(10, 6))
    assert data.image_shape == data.train.image_shape == load(image_size=(10, 6)).test.image_shape == (3, 10, 6)
    expected = Image.fromarray(tall).resize((6, 10), Image.Resampling.BILINEAR, box=(0, 5, 12, 25))
    assert np.array_equal(data.train.images[4].permute(1, 2, 0).numpy(), np.asarray(expected))
    assert load(image_size=(6, 10)).image_shape == (3, 6, 10)
    photos = load(image_size=(112, 224))
    assert photos.train.image_shape == (3, 128, 256) and photos.image_shape == (3, 112, 224)
    assert load_data("digits", image_size=(8, 16)).train.image_shape == (1, 8, 16)
    refused("digits", "image size (8, 0)", image_size=(8, 0))


@pytest.mark.parametrize("sides", [(128, 96), (300, 500)])
def test_photos_keep_a_margin_for_cropping(load, root, sides):
    rng = np.random.default_rng(0)
    save(root / "train/ant/large.png", random_image(rng, *sides))
    data = load(image_size=112)
    assert data.train.image_shape == (3, 128, 128)
    assert data.image_shape == (3, 112, 112)


def test_images_of_the_asked_size_are_stored_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    kept = random_image(rng, 96, 96)
    for part in ("train", "val"):
        for name in "ab":
            save(tmp_path / f"set/{part}/{name}/0.png", kept)
    for _ in range(2):  # decoded, then cached
        data = load_data(f"folder:{tmp_path / 'set'}", image_size=96, cache_dir=tmp_path / "cache")
        assert np.array_equal(data.train.images[0].permute(1, 2, 0).numpy(), kept)


def test_mixed_sizes_need_an_image_size(load, root):
    save(root / "test/bee/0.png", random_image(np.random.default_rng(0), 9, 7))
    refused(f"folder:{root}", "8x8", root / "test/bee/0.png", "7x9", "pass an image size")
    assert load(image_size=8).image_shape == (3, 8, 8)


def test_second_load_comes_from_the_cache(load, root, decoded):
    before = sorted(path for path in root.rglob("*"))
    first, second = load(), load()
    assert len(decoded) == 1
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.images, second.test.images)
    assert sorted(path for path in root.rglob("*")) == before
    load(image_size=6)
    assert len(decoded) == 2
    save(root / "train/ant/0.png", random_image(np.random.default_rng(9)))
    assert not torch.equal(load().train.images[0], first.train.images[0])
    assert len(decoded) == 3


def test_another_folder_with_files_of_the_same_names_sizes_and_times_is_decoded(tmp_path):
    for name, grey in (("one", 10), ("other", 240)):
        for part in ("train", "test"):
            for kind in "ab":
                path = tmp_path / name / part / kind / "0.bmp"
                save(path, np.full((8, 8, 3), grey, np.uint8))
                os.utime(path, (1e9, 1e9))
        data = load_data(f"folder:{tmp_path / name}", cache_dir=tmp_path / "cache")
        assert (data.train.images == grey).all()


def test_cache_folder_from_the_environment(root, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOSLIM_CACHE", str(tmp_path / "elsewhere"))
    load_data(f"folder:{root}")
    assert [path.suffix for path in (tmp_path / "elsewhere").iterdir()] == [".npy"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "foreign", "other shape"])
def test_damaged_cache_is_decoded_anew(load, tmp_path, decoded, damage):
    first = load()
    (path,) = (tmp_path / "cache").iterdir()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "foreign":
        np.save(path, np.zeros((18, 8, 8, 3), np.float32))
    else:
        np.save(path, np.zeros((18, 8, 8, 4), np.uint8))
    second = load()
    assert len(decoded) == 2
    assert torch.equal(first.train.images, second.train.images)
    load()
    assert len(decoded) == 2


def test_cache_that_cannot_be_written_only_warns(load, tmp_path, caplog):
    (tmp_path / "blocked").write_text("a file, no folder")
    with caplog.at_level(logging.WARNING, "autoslim"):
        data = load(cache_dir=tmp_path / "blocked")
    assert len(data.train) == 12
    assert "cannot cache" in caplog.text


def test_full_disk_leaves_no_partial_cache(load, tmp_path, caplog, monkeypatch):
    def full(file, array, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with caplog.at_level(logging.WARNING, "autoslim"):
        data = load()
    assert len(data.train) == 12
    assert "No space left" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_corrupt_image_is_named(load, root, tmp_path):
    bad = root / "train/bee/2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    refused(f"folder:{root}", bad, "corrupt image", "skip", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("memory_limit", [2**30, 1])
def test_corrupt_images_are_skipped_on_request(load, root, caplog, decoded, memory_limit):
    whole = load()
    for bad in (root / "train/bee/2.png", root / "test/ant/0.png"):
        bad.write_bytes(b"no image")
    for _ in range(2):  # decoded, then cached
        caplog.clear()
        with caplog.at_level(logging.WARNING, "autoslim"):
            data = load(skip_corrupt=True, memory_limit=memory_limit)
        assert "skipped 2 of 18" in caplog.text
        assert str(root / "train/bee/2.png") in caplog.text
        assert data.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
        assert data.test.labels.tolist() == [0, 1, 1, 2, 2]
        everything = data.train.fetch(torch.arange(11))
        assert torch.equal(everything, whole.train.images[[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]])
    assert len(decoded) == 2


@pytest.mark.parametrize("memory_limit", [8 * 2**30, 0])
def test_files_that_cannot_be_read_are_not_taken_for_corrupt_ones(root, tmp_path, monkeypatch, memory_limit):
    options = {"skip_corrupt": True, "cache_dir": tmp_path / "cache", "memory_limit": memory_limit}
    real, lost = Image.open, str(root / "train/ant/0.png")

    def unsteady(path, *args, **more):
        if path == lost:
            raise OSError(5, "Input/output error")
        return real(path, *args, **more)

    monkeypatch.setattr(Image, "open", unsteady)
    refused(f"folder:{root}", lost, "cannot be read (Input/output error)", **options)
    monkeypatch.setattr(Image, "open", real)
    assert len(load_data(f"folder:{root}", **options).train) == 12


def test_the_digest_of_a_folder_is_that_of_its_files(load, root, tmp_path):
    before = load().digest
    shutil.copytree(root, tmp_path / "moved")
    assert load_data(f"folder:{tmp_path / 'moved'}", cache_dir=tmp_path / "cache").digest == before
    save(root / "test/ant/9.png", random_image(np.random.default_rng(1)))
    assert load().digest == before  # of training images
    save(root / "train/ant/0.png", random_image(np.random.default_rng(1), 9, 9))
    changed = load(image_size=8).digest
    odd = os.fsencode(root / "train/ant") + b"/caf\xe9.png"
    os.rename(root / "train/ant/0.png", odd)
    assert len({before, changed, load(image_size=8).digest}) == 3


def test_class_with_nothing_but_corrupt_images(root, tmp_path):
    for path in (root / "train/bee").iterdir():
        path.write_bytes(b"")
    refused(f"folder:{root}", root / "train/bee", "every image is corrupt", skip_corrupt=True, cache_dir=tmp_path / "c")


def test_folder_beyond_the_memory_limit_stays_on_disk(load, root, tmp_path):
    in_memory = load(image_size=6, memory_limit=18 * 6 * 6 * 3)
    on_disk = load(image_size=6, memory_limit=18 * 6 * 6 * 3 - 1)
    assert isinstance(in_memory.train, ImageSet)
    assert isinstance(on_disk.train, FileImages)
    for part in ("train", "test"):
        left, right = getattr(in_memory, part), getattr(on_disk, part)
        assert torch.equal(left.labels, right.labels)
        assert torch.equal(left.images, right.fetch(torch.arange(len(right))))
    assert in_memory.image_shape == on_disk.image_shape
    (root / "train/cat/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/1\.png"):
        load(memory_limit=1).train.fetch(torch.arange(12))


def test_folder_that_is_missing_or_laid_out_otherwise(root, tmp_path):
    refused("folder:", "names no folder", "folder:DIR")
    refused("folder:/nowhere/at/all", "/nowhere/at/all", "no such folder", "DIR/train/CLASS")
    refused(f"folder:{root / 'train'}", "no train/", "ant, bee, cat", "DIR/train/CLASS")
    refused(f"folder:{root}", "image size 0", image_size=0)
    os.rename(root / "test", root / "exam")
    refused(f"folder:{root}", "no test/ or val/", "DIR/val/CLASS")
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    refused(f"folder:{empty}", empty / "train", "no images", "jpg")
    for name in "ab":
        (empty / "train" / name).mkdir()
    refused(f"folder:{empty}", empty / "train", "no images", "jpg")


def test_folder_with_one_class(root):
    for name in ("ant", "bee"):
        os.rename(root / "train" / name, root / name)
    refused(f"folder:{root}", "only one class", "'cat'", "two or more")


@pytest.mark.parametrize("part", ["train", "test"])
def test_class_folder_without_images(root, part):
    for path in (root / part / "bee").iterdir():
        path.unlink()
    refused(f"folder:{root}", root / part / "bee", "without images", "remove the folder")


def test_test_class_that_is_not_trained(root):
    os.rename(root / "test/bee", root / "test/wasp")
    refused(f"folder:{root}", "'wasp'", root / "train", "remove it")


@pytest.mark.parametrize("spec", ["imagenet", "", ":x", "digits:/tmp", "mnist"])
def test_unknown_data_set(spec):
    refused(spec, repr(spec), "digits", "cifar10:DIR", "folder:DIR", "pkg.module:function")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused("digits", "scikit-learn", "pip install 'autoslim[demo]'")


def write_cifar(kind, root, rng, monkeypatch):
    """Write files as CIFAR's, one image a file or four, and let torchvision accept their sums."""
    base = root / kind.base_folder
    base.mkdir(parents=True)
    written = {}
    for lists in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(kind, lists):
            labels = [0, 1, 2, 3]
            pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            content = pickle.dumps({"data": pixels, "labels": labels, "fine_labels": labels})
            (base / name).write_bytes(content)
            sums.append([name, hashlib.md5(content, usedforsecurity=False).hexdigest()])
            written[name] = pixels.reshape(4, 3, 32, 32)
        monkeypatch.setattr(kind, lists, sums)
    names = [f"class {index}" for index in range(10)]
    content = pickle.dumps({kind.meta["key"]: names})
    (base / kind.meta["filename"]).write_bytes(content)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": hashlib.md5(content, usedforsecurity=False).hexdigest()})
    return written, names


@pytest.mark.parametrize(("spec", "kind"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar(tmp_path, monkeypatch, spec, kind):
    written, names = write_cifar(kind, tmp_path / "c", np.random.default_rng(0), monkeypatch)
    data = load_data(f"{spec}:{tmp_path / 'c'}")
    assert data.image_shape == (3, 32, 32)
    assert data.classes == tuple(names)
    first, test = kind.train_list[0][0], kind.test_list[0][0]
    assert np.array_equal(data.train.images[:4].numpy(), written[first])
    assert np.array_equal(data.test.images.numpy(), written[test])
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert load_data(f"{spec}:{tmp_path / 'c'}", image_size=16).train.image_shape == (3, 16, 16)
    (tmp_path / "c" / kind.base_folder / first).write_bytes(b"damaged")
    refused(f"{spec}:{tmp_path / 'c'}", kind.base_folder, "damaged", "download=True")


def write_idx(path, array):
    kind = struct.pack(">HBB", 0, 8, array.ndim)
    path.write_bytes(kind + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def test_fashion_mnist(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    images = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(6, dtype=np.uint8))
    data = load_data(f"fashion-mnist:{tmp_path}")
    assert data.image_shape == (1, 28, 28)
    assert len(data.classes) == 10
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert data.test.labels.tolist() == list(range(6))
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").write_bytes(whole[:100])
    refused(f"fashion-mnist:{tmp_path}", "FashionMNIST/raw", "damaged", "download=True")


def test_torchvision_files_that_are_missing(tmp_path, root):
    refused("cifar10:", "names no folder", "cifar10:DIR")
    refused(f"cifar10:{tmp_path}", tmp_path / "cifar-10-batches-py", "missing", "python -c", "CIFAR10(", "download=True")
    refused(f"cifar100:{tmp_path}", tmp_path / "cifar-100-python", "CIFAR100(")
    refused(f"fashion-mnist:{tmp_path}", tmp_path / "FashionMNIST/raw", "FashionMNIST(")
    refused(f"cifar10:{root}", "train/CLASS", f"folder:{root}")


CUSTOM = """
import numpy as np, torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

pixels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2) * 5
labels = [0, 1, 2, 1]

class Items(Dataset):
    def __init__(self, convert, label=int, classes=None):
        self.convert, self.label = convert, label
        if classes:
            self.classes = classes
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return self.convert(pixels[index]), self.label(labels[index])

def items(convert, **options):
    return Items(convert, **options), Items(convert, **options)

def pairs(): return (pixels, torch.tensor(labels)), (pixels.numpy(), np.array(labels))
def pil(): return items(lambda x: Image.fromarray(x.permute(1, 2, 0).numpy()), classes=["x", "y", "z", "unseen"])
def grey(): return items(lambda x: Image.fromarray(x[0].numpy()))
def tensors(): return items(lambda x: x, label=torch.tensor)
def arrays(): return items(lambda x: x.numpy(), label=np.int64)
def floats(): return items(lambda x: x.float() / 255)
def tensor_dataset(): return [TensorDataset(pixels, torch.tensor(labels))] * 2

def normalised(): return items(lambda x: x.float() / 100 - 1)
def channels_last(): return items(lambda x: torch.zeros(32, 32, 3, dtype=torch.uint8))
def flat(): return items(lambda x: x[0])
def words(): return items(lambda x: "image")
def longs(): return items(lambda x: x.long())
def float_labels(): return items(lambda x: x, label=float)
def negative(): return items(lambda x: x, label=lambda y: y - 1)
def few_classes(): return items(lambda x: x, classes=["x", "y"])
def mixed(): return items(lambda x: x[:, :, : 1 + int(x[0, 0, 0] > 0)])
def one(): return Items(lambda x: x)
def nothing(): return None
def streams(): return iter([]), iter([])
def float_pairs(): return (pixels.float(), labels), (pixels, labels)
def short_labels(): return (pixels, torch.tensor(labels[:3])), (pixels, torch.tensor(labels))
def shapes(): return (pixels, torch.tensor(labels)), (pixels[:, :1], torch.tensor(labels))
def empty(): return (pixels[:0], torch.tensor(labels[:0])), (pixels, torch.tensor(labels))
def other_classes(): return Items(lambda x: x, classes=["x", "y", "z"]), Items(lambda x: x, classes=["x", "z"])
def deep(): return items(lambda x: Image.fromarray(x[0].numpy().astype(np.uint16)))
def single(): return [(pixels, torch.zeros(4, dtype=torch.int64))] * 2
number = 3
"""


@pytest.fixture
def custom(tmp_path, monkeypatch):
    (tmp_path / "own_data_for_test.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data_for_test", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return "own_data_for_test"


@pytest.mark.parametrize("function", ["pairs", "pil", "tensors", "arrays", "floats", "tensor_dataset", "grey"])
def test_custom_data(custom, function):
    path = list(sys.path)
    data = load_data(f"{custom}:{function}")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2) * 5
    pixels = pixels[:, :1] if function == "grey" else pixels
    for part in (data.train, data.test):
        assert np.array_equal(part.images.numpy(), pixels)
        assert part.labels.tolist() == [0, 1, 2, 1]
    assert data.classes == (("x", "y", "z", "unseen") if function == "pil" else ("0", "1", "2"))
    assert sys.path == path
    larger = load_data(f"{custom}:{function}", image_size=4)
    assert larger.digest == data.digest
    assert larger.test.image_shape[1:] == (4, 4) and larger.original_size == data.original_size == (2, 2)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("normalised", ["train[0]", "-1", "[0, 1]", "normalisation"]),
        ("channels_last", ["[32, 32, 3]", "[H, W, C]"]),
        ("flat", ["[2, 2]", "[C, H, W]"]),
        ("words", ["str", "PIL image"]),
        ("longs", ["int64", "uint8"]),
        ("float_labels", ["label is float", "class number"]),
        ("negative", ["-1", "0 to"]),
        ("few_classes", ["0 to 2", "2 classes allow 0 to 1"]),
        ("mixed", ["train[1]", "[3, 2, 2]", "[3, 2, 1]", "resize"]),
        ("one", ["Items", "(train, test)"]),
        ("nothing", ["NoneType", "(train, test)"]),
        ("streams", ["list_iterator", "without a length"]),
        ("float_pairs", ["float32", "uint8"]),
        ("short_labels", ["int64 [3]", "4 images"]),
        ("shapes", ["[3, 2, 2]", "[1, 2, 2]"]),
        ("empty", ["train", "empty"]),
        ("other_classes", ["classes of train and test differ", "label 1 is 'y' and 'z'"]),
        ("deep", ["train[0]", "mode I;16", "8 bits"]),
        ("single", ["only one class"]),
        ("number", ["int", "not a function"]),
        ("missing", ["no 'missing'", "known forms", "cifar10:DIR"]),
    ],
)
def test_custom_data_that_does_not_fit(custom, function, words):
    refused(f"{custom}:{function}", custom, *words)


def test_module_that_cannot_be_imported(tmp_path, monkeypatch):
    refused("no_such_module_here:make", "no_such_module_here:make", "cannot be imported", "cifar10:DIR")
    refused("Folder:/tmp", "'Folder:/tmp'", "folder:DIR")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_data_for_test.py").write_text("def make(:\n")
    refused("broken_data_for_test:make", "broken_data_for_test:make", "invalid syntax")
    (tmp_path / "raising_data_for_test.py").write_text("def make():\n    raise KeyError('path')\n")
    refused("raising_data_for_test:make", "raising_data_for_test:make", "KeyError", "path")
