import hashlib

import pytest
import torch

from ph_l2o.data import split_indices

PERMUTATION_SHA256 = "237c03c1f2c28b9fb06a19dbed31626adf2f761beb417e5bd97418c14cfdd2c8"


def test_default_sizes_and_disjointness() -> None:
    parts = [split_indices(60_000, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [20_000, 10_000, 30_000]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(60_000))
    assert all(part.dtype == torch.int64 for part in parts)


def test_halves_of_50000_stay_equal() -> None:
    assert [len(split_indices(50_000, split)) for split in ("train", "val", "test")] == [
        16_667,
        8_333,
        25_000,
    ]


@pytest.mark.parametrize("num_images", [6, 7, 8, 11, 100, 101])
def test_every_image_is_in_one_part(num_images: int) -> None:
    parts = [split_indices(num_images, split) for split in ("train", "val", "test")]
    assert all(len(part) > 0 for part in parts)
    assert torch.cat(parts).sort().values.tolist() == list(range(num_images))


def test_study_has_the_published_halves() -> None:
    train, val, test = (split_indices(60_000, split, "study") for split in ("train", "val", "test"))
    shuffle = torch.randperm(60_000, generator=torch.Generator().manual_seed(10))
    assert torch.equal(train, shuffle[:30_000])
    assert torch.equal(val, train)
    assert torch.equal(test, shuffle[30_000:])


def test_both_schemes_have_the_same_test_half() -> None:
    assert torch.equal(split_indices(60_000, "test"), split_indices(60_000, "test", "study"))


def test_permutation_is_pinned() -> None:
    whole = torch.cat([split_indices(60_000, split) for split in ("train", "val", "test")])
    assert hashlib.sha256(whole.numpy().tobytes()).hexdigest() == PERMUTATION_SHA256


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    split_indices(60_000, "train")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, "train"), "num_images=5: must be >= 6"),
        ((60, "dev"), "split='dev': must be one of train, val, test"),
        ((60, "train", "mine"), "scheme='mine': must be one of default, study"),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_indices(*arguments)
