"""What defines an image task, for the cache of tuned baselines, and what cannot."""

import functools
import json

import pytest
import torch
from example_modules import conv_net
from torch import nn

from ph_l2o.data import DATASETS
from ph_l2o.tasks import ACTIVATIONS, ImageClassification


class Scaled(nn.Linear):
    """A layer that shows its scale neither in its text nor in its tensors."""

    def __init__(self, scale: float):
        super().__init__(36, 4)
        self.scale = scale


def from_zero() -> nn.Module:
    layer = nn.Linear(36, 4)
    nn.init.zeros_(layer.weight)
    return layer


VARIANTS = {
    "default": {},
    "dataset": {"dataset": "fashion_mnist"},
    "sizes": {"hidden_sizes": (20, 20)},
    "no hidden layer": {"hidden_sizes": ()},
    "activation": {"activation": "relu"},
    "two activations": {"activation": ["relu", "tanh"]},
    "other order": {"activation": ["tanh", "relu"]},
    "batch": {"batch_size": 64},
    "split": {"split": "study"},
    "name": {"name": "other"},
    "model": {"model": conv_net},
    "partial": {"model": functools.partial(conv_net, 3)},
    "partial of a partial": {"model": functools.partial(functools.partial(conv_net, 3), dropout=0.5)},
    "keyword": {"model": functools.partial(conv_net, channels=2)},
    "dropout": {"model": functools.partial(conv_net, dropout=0.5)},
    "lambda": {"model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4))},
    "other lambda": {"model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh())},
    "start": {"model": lambda: nn.Sequential(nn.Flatten(), from_zero())},
    "hidden": {"model": lambda: Scaled(1.0)},
    "other hidden": {"model": lambda: Scaled(2.0)},
}


def test_spec_differs_with_the_content():
    specs = {name: json.dumps(ImageClassification(**v).spec(), sort_keys=True) for name, v in VARIANTS.items()}
    assert len(set(specs.values())) == len(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_spec_is_the_same_elsewhere(name):
    arguments = VARIANTS[name]
    spec = ImageClassification(**arguments).spec()
    assert spec == ImageClassification(**arguments, data_dir="/quite/elsewhere").spec()
    text = json.dumps(spec)
    assert "elsewhere" not in text and " at 0x" not in text and "data_dir" not in text
    assert spec["class"] == "ph_l2o.tasks.images.ImageClassification"


def test_spec_leaves_the_random_numbers_alone():
    torch.manual_seed(4)
    state = torch.get_rng_state()
    ImageClassification(model=conv_net).spec()
    assert torch.equal(torch.get_rng_state(), state)


NAMES = ", ".join(ACTIVATIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dataset": "mnits"},
            f"task.dataset=mnits: must be one of {', '.join(DATASETS)}, or registered by one of plugins=[…]; "
            "did you mean mnist or kmnist?",
        ),
        ({"hidden_sizes": (20, 0)}, "task.hidden_sizes=(20, 0): must be a list of whole numbers >= 1 (units)"),
        ({"hidden_sizes": [2.5]}, "task.hidden_sizes=[2.5]: must be a list of whole numbers >= 1 (units)"),
        ({"hidden_sizes": 20}, "task.hidden_sizes=20: must be a list of whole numbers >= 1 (units)"),
        ({"activation": []}, "task.activation=[]: must name at least one activation"),
        ({"activation": "rleu"}, f"task.activation=rleu: must be one of {NAMES}; did you mean relu?"),
        ({"activation": ["relu", "step"]}, f"task.activation=step: must be one of {NAMES}"),
        ({"activation": [3]}, f"task.activation=3: must be one of {NAMES}"),
        ({"batch_size": 0}, "task.batch_size=0: must be >= 1 (images of a mini-batch)"),
        ({"batch_size": 2.5}, "task.batch_size=2.5: must be a whole number >= 1 (images of a mini-batch)"),
        ({"split": "thirds"}, "task.split=thirds: must be one of default, study"),
        (
            {"model": nn.Linear(2, 2)},
            "task.model=Linear: must be a function that makes a module, such as a class or a functools.partial; "
            "in a configuration, a node with _partial_: true",
        ),
        (
            {"model": "conv"},
            "task.model=str: must be a function that makes a module, such as a class or a functools.partial; "
            "in a configuration, a node with _partial_: true",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        ImageClassification(**arguments)
    assert str(error.value) == message
