"""Training sets of their own, with labels that are wrong, on made-up and real images."""

import pytest
import torch

from ph_l2o.data import ImageData
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD
from ph_l2o.tasks import Autoencoder, ImageClassification

KEYS = ProblemKeys(3, "train", 2, (0, 5, 1))
CLASSES = 4


@pytest.fixture
def numbered(monkeypatch):
    """Images whose first pixels say which image of the 600 it is, so that labels can be looked up; 200 for training."""
    images = torch.zeros(600, 1, 3, 3, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(600) % 256, torch.arange(600) // 256
    labels = torch.randint(CLASSES, (600,), generator=torch.Generator().manual_seed(0))
    data = ImageData(images, labels, images[:40], labels[:40], CLASSES)
    monkeypatch.setattr("ph_l2o.tasks.image_task.load_images", lambda name, root: data)
    return data


def which(batch) -> torch.Tensor:
    pixels = (batch.inputs[..., 0, 0, :2] * 255).round().long()
    return pixels[..., 0] + 256 * pixels[..., 1]


def seen(problem, data, steps: int = 40) -> list[dict[int, int]]:
    """Of each problem, the label that it sees of each image; the same one whenever it is drawn."""
    found: list[dict[int, int]] = [{} for _ in range(problem.num_problems)]
    batches = [*problem.batches(0, steps), *problem.final_batches(5), *(b for b, _ in problem.training_sample(10**6))]
    for batch in batches:
        for one, images, labels in zip(found, which(batch).flatten(1), batch.labels, strict=True):
            for image, label in zip(images.tolist(), labels.tolist(), strict=True):
                assert one.setdefault(image, label) == label
    return found


def sampled(keys=KEYS, **arguments):
    return ImageClassification(hidden_sizes=(4,), batch_size=32, **arguments).sample(keys)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [None, 50])
def test_each_problem_has_its_own_images_and_its_share_of_wrong_labels(numbered, size, noise):
    whole = {which(b)[0, k].item() for b, n in sampled().training_sample(10**6) for k in range(n)}
    assert len(whole) == 200
    found = seen(sampled(train_images=size, label_noise=noise), numbered)
    for one in found:
        assert set(one) <= whole and len(one) == (size or 200)
        wrong = sum(label != numbered.train_labels[image] for image, label in one.items())
        assert wrong == round(noise * len(one)) and all(0 <= label < CLASSES for label in one.values())
    if size is not None:
        assert set(found[0]) != set(found[1])
    if noise:
        assert found[0] != found[1]
    again = seen(sampled(ProblemKeys(3, "train", 2, (1, 0)), train_images=size, label_noise=noise), numbered)
    assert again == [found[2], found[0]]  # of a problem's key alone


def test_wrong_labels_are_of_any_other_class(numbered):
    keys = ProblemKeys(0, "train", 0, range(30))
    shifts = torch.zeros(CLASSES, dtype=torch.long)
    for one in seen(sampled(keys, label_noise=1.0), numbered, 1):
        for image, label in one.items():
            shifts[(label - numbered.train_labels[image]) % CLASSES] += 1
    assert shifts[0] == 0
    share = shifts[1:] / shifts.sum()
    assert (share - 1 / (CLASSES - 1)).abs().max() < 0.03  # 6,000 draws: six standard deviations


def test_a_smaller_set_is_part_of_a_larger_one_and_noise_changes_no_image(numbered):
    small, large, noisy = (
        seen(sampled(train_images=n, label_noise=p), numbered) for n, p in ((20, 0.0), (60, 0.0), (60, 0.5))
    )
    for a, b, c in zip(small, large, noisy, strict=True):
        assert set(a) < set(b) and set(b) == set(c)
    plain, wrong = (next(sampled(label_noise=p).batches(7, 1)) for p in (0.0, 0.2))
    assert torch.equal(plain.inputs, wrong.inputs) and not torch.equal(plain.labels, wrong.labels)


def test_what_is_left_as_it_is_draws_what_it_did(mnist_root):
    """Numbers from before there were these options."""
    problem = ImageClassification(data_dir=mnist_root).sample(ProblemKeys(0, "val", 0, range(2)))
    assert problem._sets is None
    _, losses = run(SGD(lr=0.1), problem, 3)
    batch = next(problem.batches(5, 1))
    assert batch.labels[:, :8].tolist() == PINNED_LABELS
    torch.testing.assert_close(losses[-1], torch.tensor(PINNED_LOSSES), rtol=1e-5, atol=0)


PINNED_LABELS = [[7, 5, 2, 2, 9, 6, 3, 0], [8, 4, 6, 9, 3, 4, 1, 5]]
PINNED_LOSSES = [2.30253267288208, 2.337083339691162]


def test_test_metrics_see_right_labels(numbered):
    plain, noisy = sampled(), sampled(train_images=50, label_noise=1.0)
    for name, value in plain.test_metrics(plain.params, {}).items():
        assert torch.equal(value, noisy.test_metrics(plain.params, {})[name])


def test_the_sample_is_the_training_set(numbered):
    problem = sampled(train_images=50, label_noise=0.2)
    parts = list(problem.training_sample(10**6))
    assert [n for _, n in parts] == [50]
    assert [n for _, n in problem.training_sample(7)] == [7]
    rows = which(parts[0][0])
    assert all(len(row.unique()) == 50 for row in rows)
    autoencoder = Autoencoder(hidden_sizes=(4, 2), image_size=None, train_images=9).sample(KEYS)
    assert [n for _, n in autoencoder.training_sample(100)] == [9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"train_images": 0},
            "task.train_images=0: must be >= 1 (images of each problem's training set; null takes all)",
        ),
        ({"label_noise": 1.5}, "task.label_noise=1.5: must be in [0, 1] (share of the training labels that are wrong)"),
        (
            {"label_noise": True},
            "task.label_noise=True: must be in [0, 1] (share of the training labels that are wrong)",
        ),
        ({"label_noise": "a"}, "task.label_noise=a: must be in [0, 1] (share of the training labels that are wrong)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        ImageClassification(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "when", [ImageClassification.prepare, lambda task: task.sample(ProblemKeys(0, "val", 0, (0,)))]
)
def test_more_images_than_there_are_is_said(numbered, when):
    with pytest.raises(ValueError) as error:
        when(ImageClassification(train_images=101))
    text = "task.train_images=101: must be <= 100, the images of the val split; null takes all"
    assert str(error.value) == text
