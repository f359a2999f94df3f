import json
import math
from collections import Counter

import pytest
import torch

from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD
from ph_l2o.tasks import Landscape, Mixture, Quadratic, Task


def keys(indices=range(4), *, seed=0, split="train", episode=0) -> ProblemKeys:
    return ProblemKeys(seed, split, episode, indices)


def mixture(**arguments) -> Mixture:
    tasks = {"two": Quadratic(2), "three": Quadratic(3), "five": Quadratic(5), "hills": Landscape("ackley", 4)}
    return Mixture(**{"tasks": tasks, **arguments})


def chosen(task: Mixture, episodes: range, **where) -> list[str]:
    return [task.choose(keys(episode=e, **where)) for e in episodes]


def test_a_batch_is_one_of_a_member():
    task = mixture()
    for episode in range(8):
        k = keys(episode=episode)
        problem, member = task.sample(k, dtype=torch.float64), task.tasks[task.choose(k)]
        expected = member.sample(k, dtype=torch.float64)
        assert type(problem) is type(expected) and problem.params.flat.dtype == torch.float64
        assert torch.equal(problem.params.flat, expected.params.flat)
        assert torch.equal(run(SGD(lr=1e-3).double(), problem, 2)[1], run(SGD(lr=1e-3).double(), expected, 2)[1])


def test_the_member_depends_on_seed_split_and_episode_alone():
    task, episodes = mixture(), range(40)
    whole = chosen(task, episodes)
    for indices in (range(2), range(2, 4), [7], [3, 3, 0], ()):  # of the processes that share a batch, say
        assert chosen(task, episodes, indices=indices) == whole
    assert chosen(mixture(), episodes) == whole
    others = [chosen(task, episodes, seed=1), chosen(task, episodes, split="val"), chosen(task, episodes, split="test")]
    assert len({tuple(names) for names in (whole, *others)}) == 4
    parts = [task.sample(keys(part, episode=5)).params.flat for part in (range(2), range(2, 4))]
    assert torch.equal(torch.cat(parts), task.sample(keys(episode=5)).params.flat)


def test_each_member_comes_once_in_each_round_in_random_order():
    names = chosen(mixture(), range(400))
    rounds = [tuple(names[k : k + 4]) for k in range(0, 400, 4)]
    assert all(set(r) == {"two", "three", "five", "hills"} for r in rounds)
    assert len(set(rounds)) > 15  # of 24 orders


def test_weights():
    count = Counter(chosen(mixture(weights={"five": 5, "two": 0.5}), range(3000)))
    for name, weight in (("two", 0.5), ("three", 1.0), ("five", 5.0), ("hills", 1.0)):
        share = weight / 7.5
        assert abs(count[name] / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000), name


def test_members():
    task = mixture()
    assert task.members() == list(task.tasks.items())
    assert task.num_architectures == 4 and not task.can_be_negative and task.name == "mixture"
    nested = Mixture({"all": task, "one": Quadratic(1)}, name="nested")
    assert [name for name, _ in nested.members()] == ["all_two", "all_three", "all_five", "all_hills", "one"]
    assert nested.num_architectures == 5 and nested.name == "nested"
    single = Quadratic(3)
    assert single.members() == [("quadratic", single)]
    unnamed = Mixture([Quadratic(2, name="a"), Quadratic(3, name="b")])
    assert [(name, t.dim) for name, t in unnamed.members() if isinstance(t, Quadratic)] == [("a", 2), ("b", 3)]


def test_all_members_are_prepared():
    prepared: list[str] = []

    class Recording(Quadratic):
        def prepare(self) -> None:
            prepared.append(self.name)

    Mixture([Recording(name="a"), Recording(name="b")]).prepare()
    assert prepared == ["a", "b"]


def test_spec():
    tasks = {"two": Quadratic(2), "other": Quadratic(3)}
    variants = [
        mixture(),
        mixture(weights={"two": 2}),
        mixture(name="n"),
        Mixture(tasks),
        Mixture(dict(list(tasks.items())[:1])),
    ]
    specs = [json.dumps(v.spec(), sort_keys=True) for v in variants]
    assert len(set(specs)) == 5
    assert json.loads(specs[3])["tasks"]["two"] == Quadratic(2).spec()


class Negative(Quadratic):
    can_be_negative = True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": {}}, "task.tasks=[]: must be tasks, at least one, by names that differ"),
        (
            {"tasks": [Quadratic(2), Quadratic(3)]},
            "task.tasks=[quadratic, quadratic]: must be tasks, at least one, by names that differ",
        ),
        ({"tasks": {"a": 3}}, "task.tasks.a=int: must be a task"),
        ({"tasks": {"a": Negative()}}, "task.tasks.a=Negative: must have losses >= 0"),
        ({"weights": {"fiv": 1}}, "task.weights.fiv: must be the name of a member; did you mean five?"),
        ({"weights": {"five": 0}}, "task.weights.five=0: must be > 0 and finite"),
        ({"weights": {"five": math.nan}}, "task.weights.five=nan: must be > 0 and finite"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        mixture(**arguments)
    assert str(error.value) == message


def test_a_task_of_a_user_need_not_know_of_members():
    class Own(Task):
        name = "own"

        def sample(self, keys, *, device="cpu", dtype=torch.float32):
            return Quadratic(2).sample(keys, device=device, dtype=dtype)

    own = Own()
    assert own.members() == [("own", own)] and Mixture([own]).members() == [("own", own)]
