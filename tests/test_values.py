"""Every field of every configuration says its range, and a value outside it gets one sentence on the command line.

What is asked is read from the fields themselves, so that a new field or method is covered without a new line here.
"""

import json
import math
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from test_cli import refused

from dualppo.bench.candidates import STRESS
from dualppo.bench.env import EnvConfig
from dualppo.methods.rows import all_methods

pytestmark = pytest.mark.ci

OWNERS = {("sft", "env"): EnvConfig(), ("sft", "candidates"): STRESS}  # a method and a part of an address
for _row in all_methods().values():
    if type(_row.config) not in map(type, OWNERS.values()):
        OWNERS[_row.name, "config"] = _row.config
FIELDS = {}  # fields of one name and one type are asked once
for (_method, _part), _owner in OWNERS.items():
    _hints = get_type_hints(type(_owner), include_extras=True)
    for _field in fields(_owner):
        if _field.name != "name" or _part == "config":
            key = _field.name, str(_hints[_field.name])
            FIELDS.setdefault(key, (_method, _part, _field.name, _hints[_field.name]))
TEXTS = (str, str | None)  # the name of a column: which there are is asked when the data are there


def named(value: object) -> str:
    """A case's name: its method, part and field."""
    return value if isinstance(value, str) else ""


def parts(hint: object) -> list:
    """A type and everything it is made of."""
    return [hint, *(inner for arg in get_args(hint) for inner in parts(arg))]


def limits(hint: object, *kinds: type) -> list:
    """The bounds of some kinds that a type declares."""
    return [m for part in parts(hint) for m in getattr(part, "__metadata__", ()) if isinstance(m, kinds)]


def is_number(hint: object) -> bool:
    return {int, float} & {part for part in parts(hint) if isinstance(part, type)} != set()


def outside(hint: object) -> list:
    """Values next to the declared range, and far from it."""
    values = [2**70, math.nan, "litteral", [[]]] if is_number(hint) else ["litteral", {}, 3.5]
    for bound in limits(hint, Ge, Gt, Le, Lt):
        edge = getattr(bound, type(bound).__name__.lower())
        step = 1 if int in parts(hint) else max(abs(edge) * 1e-6, 1e-9)
        inside = isinstance(bound, (Ge, Le))
        values.append(edge + step * inside * (1 if isinstance(bound, (Le, Lt)) else -1))
    return [[v] for v in values if isinstance(v, (int, float))] + ["x"] if limits(hint, MinLen) else values


@pytest.mark.parametrize(("method", "part", "field", "hint"), FIELDS.values(), ids=named)
def test_a_number_has_two_ends(method, part, field, hint):
    if is_number(hint):
        assert limits(hint, Ge, Gt) and limits(hint, Le, Lt), f"{field} of {method} may be any number"


@pytest.mark.parametrize(
    ("method", "part", "field", "hint"), [one for one in FIELDS.values() if one[3] not in TEXTS], ids=named
)
def test_a_value_outside_its_range_is_one_sentence(method, part, field, hint, capsys):
    for value in outside(hint):
        said = refused(capsys, "train", method, "--set", f"{part}.{field}={json.dumps(value)}")
        assert field in said, (value, said)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ppo_lag_bandit", "--budget 0"),
        ("dual_ppo_bandit", "--set weights=[0,0]"),
        ("dual_ppo_bandit", "--set weights=[]"),
        ("dual_ppo_bandit", "--set weights=[1,-1]"),
        ("dual_ppo_bandit", "--weights 0 0"),
        ("dual_ppo_bandit", "--weights -1 2"),
        ("dual_ppo_bandit", "--dialogues-per-epoch 0"),
        ("dual_ppo_bandit", "--dialogues-per-epoch -1"),
        ("dual_ppo_bandit", "--kappa 1e300"),
        ("dual_ppo_bandit", "--hidden 1000000"),
        ("sft", "--minibatch 0"),
        ("sft", "--minibatch 9223372036854775808"),
        ("sft", "--epochs 0"),
        ("sft", "--lr -1"),
        ("molma", "--weight-decay -1"),
        ("dual_ppo_bandit", "--set candidates.families=-1"),
        ("dual_ppo_bandit", "--rule-eta -5"),
        ("dual_ppo_bandit", "--policy-lr 1e300"),
        ("dual_ppo_bandit", "--critic x"),
        ("dual_ppo_bandit", "--advantage x"),
        ("dual_ppo_aligned", "--advantage litteral"),
        ("dual_ppo_bandit", "--tau-rel 2"),
        ("dpo", "--beta 0"),
        ("dpo", "--beta -1"),
    ],
)
def test_the_samples_that_were_found(method, given, capsys):
    """Values that once ended in a traceback, or were taken in silence."""
    field = given.removeprefix("--set ").removeprefix("--").partition("=")[0].partition(" ")[0]
    said = refused(capsys, "train", method, *given.split())
    assert field.partition(".")[2] or field.replace("-", "_") in said.replace("-", "_")
