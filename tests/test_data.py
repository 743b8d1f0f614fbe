"""Image sets, splits and batches, against numpy and hand arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from autoslim.data import FileImages, ImageSet, Loader, augment, channel_statistics, load_data, split
from autoslim.errors import DataError

PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255] * 3}  # leaves pixels as 0..255


def make_set(count=20, channels=3, high=8, wide=8, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, channels, high, wide), dtype=np.uint8))
    return ImageSet(images, torch.arange(count) % classes)


def batches(loader):
    return [(x.clone(), y.clone()) for x, y in loader]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(left, right, strict=True)
    )


def test_image_set_gives_back_what_it_was_given():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (12, 3, 5, 7), dtype=np.uint8)
    images = ImageSet(torch.from_numpy(pixels), torch.arange(12))
    assert len(images) == 12
    assert images.image_shape == (3, 5, 7)
    assert np.array_equal(images.images.numpy(), pixels)
    assert np.array_equal(images.fetch(torch.tensor([7, 0, 7])).numpy(), pixels[[7, 0, 7]])
    part = images.subset([3, 11, 5]).subset([2, 0])
    assert part.labels.tolist() == [5, 3]
    assert np.array_equal(part.images.numpy(), pixels[[5, 3]])
    assert np.array_equal(part.fetch(torch.tensor([1])).numpy(), pixels[[3]])


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "float32.*uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"int64 \[3\].*int64 \[2\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "float32.*int64"),
    ],
)
def test_image_set_refuses_other_tensors(images, labels, words):
    with pytest.raises(DataError, match=words):
        ImageSet(images, labels)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "pad"), [((8, 8), 4), ((5, 6), 2), ((8, 8), 0)])
def test_windows_equal_slices_of_a_padded_image(flip, size, pad):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    top = rng.integers(0, 8 + 2 * pad - size[0] + 1, 30)
    left = rng.integers(0, 8 + 2 * pad - size[1] + 1, 30)
    flips = rng.random(30) < 0.5 if flip else None
    got = augment.cut_windows(
        torch.from_numpy(pixels),
        torch.from_numpy(top),
        torch.from_numpy(left),
        None if flips is None else torch.from_numpy(flips),
        size,
        pad,
        torch.tensor([10, 20, 30], dtype=torch.uint8),
    )
    for index in range(30):
        image = pixels[index][:, ::-1] if flip and flips[index] else pixels[index]
        padded = np.empty((8 + 2 * pad, 8 + 2 * pad, 3), np.uint8)
        padded[:] = (10, 20, 30)
        padded[pad : pad + 8, pad : pad + 8] = image
        expected = padded[top[index] : top[index] + size[0], left[index] : left[index] + size[1]]
        assert np.array_equal(got[index].numpy(), expected)


def test_normalisation_by_hand():
    images = make_set(6)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    ((x, y),) = Loader(images, batch_size=6, mean=mean, std=std)
    expected = images.images.numpy().astype(np.float64) / 255
    expected = (expected - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(x.numpy(), expected, atol=2e-6)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert torch.equal(y, images.labels)


def test_padding_is_zero_once_normalised():
    images = ImageSet(torch.full((64, 3, 4, 4), 255, dtype=torch.uint8), torch.arange(64))
    loader = Loader(images, batch_size=64, mean=[0.2, 0.4, 0.6], std=[0.5, 0.5, 0.5], crop="pad", pad=4)
    ((x, _),) = loader
    padded = x[:, 0] < 1
    assert padded.any()
    assert x.permute(0, 2, 3, 1)[padded].abs().max() < 1e-6


def test_pad_crop_and_flip_of_a_loader_are_windows_of_the_images():
    images = make_set(40)
    loader = Loader(images, batch_size=40, crop="pad", pad=2, flip=True, seed=3, **PLAIN)
    ((x, _),) = loader
    offsets, mirrored = set(), 0
    for pixels, result in zip(images.images.numpy(), x.round().numpy(), strict=True):
        found = []
        for flip, image in enumerate((pixels, pixels[:, :, ::-1])):
            padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
            found += [
                (flip, top, left)
                for top in range(5)
                for left in range(5)
                if np.array_equal(padded[:, top : top + 8, left : left + 8], result)
            ]
        assert len(found) == 1
        mirrored += found[0][0]
        offsets.add(found[0][1:])
    assert 8 <= mirrored <= 32
    assert len(offsets) > 12


def test_flip_alone_and_centre_crop():
    images = make_set(40, high=9, wide=12)
    pixels = images.images.numpy()
    ((plain, _),) = Loader(images, batch_size=40, image_size=6, **PLAIN)
    assert np.array_equal(plain.round().numpy(), pixels[:, :, 1:7, 3:9])
    ((oblong, _),) = Loader(images, batch_size=40, image_size=(5, 12), **PLAIN)
    assert np.array_equal(oblong.round().numpy(), pixels[:, :, 2:7])
    ((flipped, _),) = Loader(images, batch_size=40, image_size=6, flip=True, **PLAIN)
    middle = pixels[:, :, 1:7, 3:9]
    kinds = [
        (np.array_equal(got, want), np.array_equal(got, want[:, :, ::-1]))
        for got, want in zip(flipped.round().numpy(), middle, strict=True)
    ]
    assert set(kinds) == {(True, False), (False, True)}


@pytest.mark.parametrize("flip", [False, True])
def test_resized_boxes_equal_bilinear_sampling_by_hand(flip):
    rng = np.random.default_rng(4)
    image = rng.random((9, 11, 2)).astype(np.float32)
    top, left, height, width = 1.3, 2.1, 6.4, 7.7
    got = augment.resize_boxes(
        torch.from_numpy(image)[None],
        torch.tensor([[top, left, height, width]], dtype=torch.float64),
        torch.tensor([True]) if flip else None,
        (4, 5),
    )[0].numpy()
    if flip:
        got = got[:, ::-1]
    for row in range(4):
        for column in range(5):
            y = top + (row + 0.5) * height / 4 - 0.5
            x = left + (column + 0.5) * width / 5 - 0.5
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            fy, fx = y - y0, x - x0
            upper = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
            lower = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
            np.testing.assert_allclose(got[row, column], upper * (1 - fy) + lower * fy, atol=1e-5)


def test_boxes_lie_inside_and_keep_their_range():
    boxes = augment.draw_boxes(5000, 20, 30, 0.25, torch.Generator().manual_seed(0)).numpy()
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 20 + 1e-9).all()
    assert (left + width <= 30 + 1e-9).all()
    inside = (height < 20) & (width < 30)
    share, ratio = (height * width / 600)[inside], (width / height)[inside]
    assert 0.25 <= share.min() < 0.27
    assert 0.75 <= ratio.min() < 0.77
    assert 1.30 < ratio.max() <= 4 / 3 + 1e-9


def test_resized_crop_has_the_asked_size():
    ((x, _),) = Loader(make_set(5, high=12, wide=12), batch_size=5, crop="resized", flip=True, image_size=7, **PLAIN)
    assert x.shape == (5, 3, 7, 7)
    assert x.is_contiguous()
    assert x.min() >= -1e-3
    assert x.max() <= 255 + 1e-3


OPTIONS = [{"crop": "pad", "flip": True}, {"crop": "resized", "flip": True}, {"crop": "none"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_epochs_depend_on_seed_and_number_only(options):
    images = make_set(30)
    options = {"batch_size": 8, "shuffle": True, **PLAIN, **options}
    loader = Loader(images, seed=5, **options)
    run = [batches(loader) for _ in range(3)]
    assert not same(run[0], run[1])
    assert not same(run[0], batches(Loader(images, seed=6, **options)))
    resumed = Loader(images, seed=5, **options)
    resumed.set_epoch(2)
    assert same(run[2], batches(resumed))
    resumed.set_epoch(1)
    next(iter(resumed))  # a pass that is broken off counts as one
    assert same(run[2], batches(resumed))


def test_neighbouring_seeds_and_epochs_do_not_coincide():
    images = make_set(30)
    first, second = (Loader(images, batch_size=30, shuffle=True, seed=seed, **PLAIN) for seed in (0, 1))
    first.set_epoch(1)
    assert not same(batches(first), batches(second))


def test_shuffled_epoch_has_every_image_once():
    images = ImageSet(torch.zeros(23, 1, 2, 2, dtype=torch.uint8), torch.arange(23))
    loader = Loader(images, batch_size=5, mean=[0.5], std=[0.5], shuffle=True)
    labels = [y for _, y in loader]
    assert [len(y) for y in labels] == [5, 5, 5, 5, 3]
    assert len(loader) == 5
    assert sorted(torch.cat(labels).tolist()) == list(range(23))
    assert torch.cat(labels).tolist() != list(range(23))
    dropped = Loader(images, batch_size=5, mean=[0.5], std=[0.5], drop_last=True)
    assert len(dropped) == len(list(dropped)) == 4


@pytest.mark.parametrize("options", OPTIONS)
def test_global_random_state_is_untouched(options):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images = make_set(30)
    train, _ = split(images, 0.2, seed=1)
    mean, std = channel_statistics(train)
    batches(Loader(train, batch_size=8, mean=mean, std=std, shuffle=True, **options))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 21, "drop_last": True}, "batch size 21.*20 images.*lower it to 20"),
        ({"batch_size": 0}, "batch size 0"),
        ({"crop": "random"}, "'random'.*none, pad, resized"),
        ({"image_size": 9}, "image size 9.*8x8.*image_size=9"),
        ({"mean": [0.5]}, "3 numbers"),
        ({"std": [1.0, 0.0, 1.0]}, "above 0"),
        ({"pad": -1}, "pad -1"),
        ({"min_scale": 0.0}, "min_scale 0.0"),
    ],
)
def test_loader_options_out_of_range(options, words):
    with pytest.raises(DataError, match=words):
        Loader(make_set(20), **{"batch_size": 4, **PLAIN, **options})


@pytest.mark.parametrize("held_out", [0.2, 20, 7, 0.5])
def test_split_is_disjoint_seeded_and_stratified(held_out):
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    images = ImageSet(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), labels)
    wanted = held_out if held_out >= 1 else round(100 * held_out)
    train, search = split(images, held_out, seed=4)
    kept, held = train.images.flatten().tolist(), search.images.flatten().tolist()
    assert len(held) == wanted
    assert sorted(kept + held) == list(range(100))
    assert kept != sorted(kept)
    for label, size in enumerate((50, 30, 20)):
        assert abs(int((search.labels == label).sum()) - size * wanted / 100) < 1
    again = split(images, held_out, seed=4)[1].images.flatten().tolist()
    other = split(images, held_out, seed=5)[1].images.flatten().tolist()
    assert held == again
    assert held != other


def test_split_leaves_every_class_an_image():
    labels = torch.tensor([0] * 8 + [1] + [2] * 2)
    images = ImageSet(torch.zeros(11, 1, 1, 1, dtype=torch.uint8), labels)
    for count in range(1, 9):
        train, search = split(images, count, seed=0)
        assert len(search) == count
        assert sorted(set(train.labels.tolist())) == [0, 1, 2]


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (0, "0 images.*1 and 16"),
        (17, "17 images.*1 and 16"),
        (0.0, "fraction 0.0.*between 0 and 1"),
        (1.0, "fraction 1.0"),
        (-0.1, "fraction -0.1"),
        (float("nan"), "fraction nan"),
        (5.5, "fraction 5.5.*whole"),
        (True, "fraction True"),
        (0.01, "0.01 of 20 images"),
        (0.95, "0.95 of 20 images"),
    ],
)
def test_split_that_is_impossible(held_out, words):
    with pytest.raises(DataError, match=words):
        split(make_set(20), held_out, seed=0)


def test_channel_statistics_equal_numpy():
    images = make_set(300, high=5, wide=6)
    pixels = images.images.numpy() / 255
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-9)
    flat = ImageSet(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8), torch.arange(4))
    assert channel_statistics(flat) == ([pytest.approx(0.2)], [1.0])


def test_images_on_disk_behave_like_images_in_memory(tmp_path):
    images = make_set(37)
    paths = []
    for index, pixels in enumerate(images.images.permute(0, 2, 3, 1).numpy()):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(pixels).save(paths[-1])
    files = FileImages(paths, images.labels, (8, 8))
    assert files.image_shape == images.image_shape
    assert channel_statistics(files) == channel_statistics(images)
    options = {"batch_size": 8, "shuffle": True, "crop": "pad", "flip": True, "seed": 2, **PLAIN}
    for part in (0, 1):
        on_disk, in_memory = split(files, 0.3, seed=1)[part], split(images, 0.3, seed=1)[part]
        assert same(batches(Loader(on_disk, **options)), batches(Loader(in_memory, **options)))


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    data = load_data("digits")
    assert data.classes == tuple("0123456789")
    assert len(data.classes) == 10
    assert data.image_shape == (1, 8, 8)
    assert len(data.train) + len(data.test) == 1797
    assert len(data.test) == 359
    both = torch.cat([data.train.images, data.test.images]).flatten(1).long()
    source = datasets.load_digits().data
    assert sorted(map(tuple, (both * 16 / 255).round().long().tolist())) == sorted(map(tuple, source.astype(int)))
    again = load_data("digits")
    assert torch.equal(again.test.images, data.test.images)
    larger = load_data("digits", image_size=16)
    assert larger.image_shape == larger.train.image_shape == (1, 16, 16)
    means = [part.train.images.float().mean((1, 2, 3)) for part in (larger, data)]
    assert (means[0] - means[1]).abs().mean() < 3
