"""Claims from plain values, and what is wrong with them in one line."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from ph_l2o.claims.parsing import parse_claims
from ph_l2o.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOOD = yaml.safe_load("""
title: A claim
summary: (a) something
claimed: It is so.
trainings:
  one: [optimizer=adam]
  many: {overrides: [optimizer=sgd], seeds: [0, 1]}
measurements:
  table:
    task: [task=quadratic]
    horizon: 5
    num_problems: 4
    rows:
      one: {training: one, published: 1}
      many: {training: many}
      adam: {baseline: adam@0.1}
contrasts:
  - {says: It is, measurement: table, row: one, below: adam}
figure:
  says: All.
  panels: [{measurement: table}]
""")


def changed(path: str, value) -> dict:
    """The claim with another value at a dotted path; of `-`, without it."""
    node = made = copy.deepcopy(GOOD)
    *above, last = path.split(".")
    for key in above:
        node = node[int(key) if isinstance(node, list) else key]
    if value == "-":
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return made


def test_what_it_becomes():
    claim = parse_claims({"mine": GOOD})["mine"]
    assert list(claim.trainings) == ["one", "many_seed0", "many_seed1"]
    assert claim.trainings["many_seed1"].overrides == ("optimizer=sgd", "seed=1")
    (table,) = claim.measurements.values()
    assert table.measure == "final" and table.rows["many"].trainings == ("many_seed0", "many_seed1")
    assert table.rows["adam"].other == "adam@0.1" and table.rows["one"].recipe == "fair"
    (contrast,) = claim.contrasts
    assert contrast.against == ("adam",) and contrast.of == ("mean", "geometric_mean")
    assert claim.panels[0].draw == "curves"


def test_trainings_that_no_row_needs_are_left_out():
    rows = changed("measurements.table.rows", {"one": {"training": "one"}, "adam": {"baseline": "adam"}})
    assert list(parse_claims({"mine": rows})["mine"].trainings) == ["one"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("title", "-", ": lacks the key title"),
        ("titel", "x", "titel=…: no such key; did you mean title?"),
        ("title", 3, "title=3: must be a text"),
        ("trainings.One", ["a"], "trainings.One: must be a word"),
        ("trainings.one", {"override": ["a"]}, "trainings.one.override=…: no such key; did you mean overrides?"),
        ("measurements", {}, "measurements={}: must have at least one"),
        ("measurements.table.kind", "comparisn", "…kind=comparisn: did you mean comparison?"),
        ("measurements.table.horizon", 0, "…horizon=0: must be a whole number >= 1"),
        ("measurements.table.num_problems", 1, "…num_problems=1: must be a whole number >= 2"),
        ("measurements.table.horizon", True, "…horizon=True: must be a whole number"),
        ("measurements.table.rows", {}, "…rows={}: must have at least one"),
        ("measurements.table.reference", "tow", "…reference=tow: Valid names: one"),
        ("measurements.table.published", {"a book": "2"}, "…published.a book=2: must be a number > 0"),
        ("measurements.table.rows.one", {}, "…rows.one={}: must have one of the keys"),
        ("measurements.table.rows.one.training", "on", "…rows.one.training=on: did you mean one?"),
        ("measurements.table.rows.adam.baseline", "adma", "…rows.adam.baseline=adma: no base"),
        ("measurements.table.rows.adam.set", {"a": 1}, "…rows.adam.set={'a': 1}: is for a tr"),
        ("measurements.table.rows.one.tuned_on", ["x"], "…rows.one.tuned_on=['x']: is for a b"),
        ("measurements.table.rows.one.recipe", "own", "…rows.one.recipe=own: Valid names"),
        ("contrasts.0.below", "-", "contrasts[0]: must have one of the keys below and above"),
        ("contrasts.0.below", "adma", "contrasts[0]: adma is no row of table; did you mean adam?"),
        ("contrasts.0.measurement", "tabel", "contrasts[0].measurement=tabel: did you mean table?"),
        ("contrasts.0.bar", 1, "contrasts[0].bar=1: must be true or false"),
        ("contrasts.0.of", ["sum"], "contrasts[0].of=[…, sum]: Valid names: mean"),
        ("contrasts.0.of", ["slope"], "contrasts[0]: of=[slope] is for two or more"),
        ("contrasts.0.across", {"tabel": 1}, "contrasts[0].across.tabel: must be a measurement"),
        ("contrasts.0.across", {"table": 0}, "contrasts[0].across.table=0: must be a number > 0"),
        ("figure.panels.0.draw", "bars", "figure.panels[0].draw=bars: Valid names: curves"),
        ("figure.panels.0.draw", "scaling", "figure.panels[0].across={}: is for draw=scaling"),
        ("figure.panels.0.rows", ["two"], "figure.panels[0]: two is no row of table"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(path, value, message):
    with pytest.raises(ConfigError) as error:
        parse_claims({"mine": changed(path, value)})
    expected = (
        "claims.mine"
        + "." * (message[0] != ":")
        + message.replace("…", "measurements.table.", 1 if message[0] == "…" else 0)
    )
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def test_two_claims_share_a_training_or_name_theirs_differently():
    assert set(parse_claims({"a": GOOD, "b": GOOD})) == {"a", "b"}
    with pytest.raises(
        ConfigError, match=r"claims\.b.trainings.one=.*: another claim has a training of this name with"
    ):
        parse_claims({"a": GOOD, "b": changed("trainings.one", ["optimizer=sgd"])})


def test_the_claim_of_the_documentation():
    text = (ROOT / "docs" / "extending.md").read_text()
    (content,) = re.findall(r"^`my_conf/claim/small_steps.yaml`:\n\n```yaml\n(.*?)^```", text, re.M | re.S)
    claim = parse_claims({"small_steps": yaml.safe_load(content)})["small_steps"]
    assert set(claim.trainings) == {"small_lstm"} and len(claim.contrasts) == 3
