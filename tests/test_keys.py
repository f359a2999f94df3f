"""The random streams: Philox written out in Python integers is the oracle."""

import itertools
import math

import numpy as np
import pytest

from ph_l2o.keys import SPLITS, ProblemKeys, Purpose, integers, normals

_MASK = 2**64 - 1


def philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """One block of Philox-4x64 with ten rounds, from the paper (Salmon et al. 2011)."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return c


def oracle_words(keys: ProblemKeys, purpose: Purpose, step: int, index: int, per_step: int) -> list[int]:
    """The words of one problem in one step. NumPy counts up before each block, hence the + 1."""
    blocks = -(-per_step // 4)
    key = [keys.seed, 16 * purpose + SPLITS.index(keys.split)]
    words = [
        word
        for block in range(step * blocks, (step + 1) * blocks)
        for word in philox_4x64_10([block + 1, 0, index, keys.episode], key)
    ]
    return words[:per_step]


@pytest.mark.parametrize("per_step", [1, 3, 4, 5, 130])
def test_words_are_philox_of_the_key(per_step):
    keys = ProblemKeys(2**63 + 11, "val", 5, (4, 0, 2**31, 4))
    words = keys.words(Purpose.BATCH, 7, 3, per_step)
    assert words.shape == (3, 4, per_step) and words.dtype == np.uint64
    for step, row in itertools.product(range(3), range(4)):
        expected = oracle_words(keys, Purpose.BATCH, 7 + step, keys.indices[row], per_step)
        assert words[step, row].tolist() == expected


def test_words_do_not_depend_on_the_window_or_the_other_problems():
    everything = ProblemKeys(3, "train", 1, range(6)).words(Purpose.NOISE, 0, 12, 6)
    for first, count, indices in ((0, 1, [0]), (11, 1, [5]), (3, 7, [2, 1]), (5, 4, [4, 4, 0])):
        part = ProblemKeys(3, "train", 1, indices).words(Purpose.NOISE, first, count, 6)
        np.testing.assert_array_equal(part, everything[first : first + count][:, indices])


def test_draws_differ_in_every_part_of_the_key():
    seen = set()
    for seed, split, episode, index, purpose in itertools.product(range(3), SPLITS, range(3), range(3), Purpose):
        words = ProblemKeys(seed, split, episode, [index]).words(purpose, 0, 4, 8)
        seen.update(words.flatten().tolist())
    assert len(seen) == 3**4 * len(Purpose) * 4 * 8  # not one word occurs twice


def test_purposes_keep_their_numbers():
    assert {p.name: int(p) for p in Purpose} == {
        "PROBLEM": 1,
        "BATCH": 2,
        "NOISE": 3,
        "RESCALE": 4,
        "HORIZON": 5,
        "MODULE": 6,
        "FINAL_BATCH": 7,
        "BOOTSTRAP": 8,
        "PERTURBATION": 9,
        "MIXTURE": 10,
        "HIDE_LOSS": 11,
        "TRAINING_SET": 12,
        "LABEL_NOISE": 13,
    }


PINNED_WORDS = [[[18182226056429393892, 3716790127095585809], [8473549202567721842, 79512786340888641]]]
PINNED_INTEGERS = [[[59139, 12089], [27561, 258]]]
PINNED_NORMALS = [[0.051007690482249235, 0.16212626621153428], [1.2468904990072458, 0.033777821467437165]]
PINNED_SEEDS = [7625133849371812335, 1453344344978239595]
PINNED_GENERATOR = [1.4428260959549375, 0.9988784898124504]
PINNED_EPISODE = [157, 835, 52]


def test_streams_keep_their_values():
    keys = ProblemKeys(1, "test", 2, (3, 40))
    words = keys.words(Purpose.BATCH, 5, 1, 2)
    assert words.tolist() == PINNED_WORDS
    assert integers(words, 60_000).tolist() == PINNED_INTEGERS
    np.testing.assert_allclose(normals(words)[0], PINNED_NORMALS, rtol=1e-14)
    assert [keys.torch_seed(Purpose.MODULE, 3, step) for step in (0, 1)] == PINNED_SEEDS
    # NumPy doesn't promise to keep these two; a failure here says that problems change with its version.
    np.testing.assert_allclose(keys.generator(Purpose.PROBLEM, 40).standard_normal(2), PINNED_GENERATOR, rtol=1e-14)
    assert keys.episode_generator(Purpose.HORIZON).integers(1000, size=3).tolist() == PINNED_EPISODE


def test_torch_seeds_fit_torch_and_differ():
    seeds = {
        ProblemKeys(0, split, 0, []).torch_seed(Purpose.MODULE, index, step)
        for split, index, step in itertools.product(SPLITS, range(20), range(20))
    }
    assert len(seeds) == 3 * 400
    assert min(seeds) >= 0 and max(seeds) < 2**63


def test_generator_starts_anew_and_shares_nothing_with_the_episode():
    keys = ProblemKeys(0, "train", 0, range(2))
    first, again = (keys.generator(Purpose.PROBLEM, 1).random(8) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.isin(keys.episode_generator(Purpose.PROBLEM).random(8), first).any()


@pytest.mark.parametrize("high", [1, 7, 60_000])
def test_integers_are_multiply_and_shift(high):
    words = np.array([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0x0123456789ABCDEF], dtype=np.uint64)
    drawn = integers(words, high)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == [((int(w) >> 32) * high) >> 32 for w in words]
    assert drawn.min() == 0 and drawn.max() == high - 1


@pytest.mark.parametrize("high", [2, 10, 97])
def test_integers_are_uniform(high):
    words = ProblemKeys(0, "train", 0, range(10)).words(Purpose.BATCH, 0, 40, 250)
    counts = np.bincount(integers(words, high).flatten(), minlength=high)
    expected = words.size / high
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - (high - 1)) < 5 * math.sqrt(2 * (high - 1))


def test_normals_are_box_and_muller():
    words = ProblemKeys(0, "train", 0, range(2)).words(Purpose.NOISE, 0, 3, 6)
    expected = np.empty(words.shape)
    for i, j, k in np.ndindex(3, 2, 3):
        u, v = ((int(words[i, j, 2 * k + part]) // 2**11 + 0.5) / 2**53 for part in (0, 1))
        radius = math.sqrt(-2 * math.log(u))
        expected[i, j, k], expected[i, j, 3 + k] = (radius * f(2 * math.pi * v) for f in (math.cos, math.sin))
    np.testing.assert_allclose(normals(words), expected, rtol=1e-13, atol=1e-13)


def test_normals_of_the_extreme_words_are_finite():
    words = np.array([[0, 0], [2**64 - 1, 2**64 - 1]], dtype=np.uint64)
    assert np.isfinite(normals(words)).all()


def test_normals_have_the_moments_of_a_standard_normal():
    x = normals(ProblemKeys(1, "val", 0, range(10)).words(Purpose.NOISE, 0, 100, 200)).flatten()
    n = x.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * math.sqrt(variance / n)
    halves = x.reshape(-1, 2, 100)
    assert abs((halves[:, 0] * halves[:, 1]).mean()) < 5 / math.sqrt(n / 2)  # cosines against sines


def test_normals_of_a_step_are_standard_and_belong_to_their_key():
    keys = ProblemKeys(1, "train", 2, (3, 40))
    x = keys.normals(Purpose.PERTURBATION, 5, 20_000)
    assert abs(x.mean()) < 5 / math.sqrt(x.size) and abs(x.var() - 1) < 5 * math.sqrt(2 / x.size)
    np.testing.assert_array_equal(ProblemKeys(1, "train", 2, (40,)).normals(Purpose.PERTURBATION, 5, 7)[0], x[1, :7])
    others = [x[:1], keys.normals(Purpose.PERTURBATION, 6, 20_000), x[1:].copy()]
    others += [ProblemKeys(1, "train", 3, (3,)).normals(Purpose.PERTURBATION, 5, 20_000)]
    values = np.concatenate(others)
    correlation = values @ values.T / 20_000 - np.eye(len(values))
    assert np.abs(correlation).max() < 5 / math.sqrt(20_000) + 5 * math.sqrt(2 / 20_000)
