"""Learned weights in TRL: what its trainers log and compute under them, resuming, processes, and what is refused."""

import importlib
import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.ci

trl = pytest.importorskip("trl", reason="needs TRL: pip install 'dualppo[trl]'")

from tiny_trl import GROUP, START, help, make, model, safe, tokenizer  # noqa: E402

from dualppo.core.errors import DataError  # noqa: E402
from dualppo.losses.surrogate import clipped_surrogate  # noqa: E402
from dualppo.losses.weights import RULES, Fixed, Hypergradient, Lagrangian, MinMax  # noqa: E402
from dualppo.methods.grpo import group_advantage  # noqa: E402
from dualppo.trl import LearnedWeights, reward_gram, trl_signal  # noqa: E402
from dualppo.writing.cached_head import CachedHead, through  # noqa: E402
from dualppo.writing.llama import llama_of  # noqa: E402
from dualppo.writing.policy import Replies  # noqa: E402
from dualppo.writing.words import Words  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "nbs" / "writing" / "5f_trl.ipynb").read_text(encoding="utf-8"))


def fast(name):
    """The rule of that name with a step that shows within a few updates."""
    rule = RULES[name]
    step = 1.0 if name == "minmax" else 0.3
    return rule(eta=step) if "eta" in {field.name for field in fields(rule)} else rule()


# ---- what the trainers log and compute


def test_loss_on_the_same_model_is_trls(tmp_path):
    """Our log-probabilities of TRL's completions, and the clipped loss of both, to 1e-6: one model, one arithmetic."""
    words = Words.made(tokenizer(), "<end>", form="{}")
    policy = CachedHead(llama_of(model(), 1, words.kept, torch.float32), words, temperature=1.0)
    seen = []

    class Compared(trl.GRPOTrainer):
        def _compute_loss(self, model, inputs):
            ids, mask = inputs["completion_ids"], inputs["completion_mask"].bool()
            asked = policy.prefill(self.processing_class.batch_decode(inputs["prompt_ids"], skip_special_tokens=True))
            fed = policy.model.embed[torch.cat([asked.last[:, None], ids[:, :-1]], 1)]
            states = through(fed, policy.model.trunk, policy.model, asked, asked.trunk)
            ours = policy.log_probs(asked, Replies(ids, mask, torch.zeros(mask.shape), states)).detach()
            old = ours + 0.3 * torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
            theirs = super()._compute_loss(model, inputs | {"old_per_token_logps": old})
            advantage = inputs["advantages"][:, None].expand_as(old)
            seen.append((clipped_surrogate(ours[mask], old[mask], advantage[mask], 0.2), theirs.detach()))
            return theirs

    trainer, _ = make(tmp_path, trainer_class=Compared, loss_type="bnpo", max_steps=1, bf16=False)
    trainer.train()
    ((ours, theirs),) = seen
    assert abs(float(ours)) > 1e-3 and abs(float(ours - theirs)) < 1e-6


def ours(kind, scale, reward, weights):
    """Advantages `[n]` that a trainer should have computed from rewards `[n, K]`: by the house's own function."""
    grouped = reward.view(-1, GROUP, reward.shape[-1])
    if kind == "RLOO":
        total = grouped @ weights
        return ((total - total.mean(1, keepdim=True)) * GROUP / (GROUP - 1)).flatten()
    # TRL divides by the standard deviation of a sample, to which it adds 1e-4
    n, spread = (GROUP, (grouped @ weights).std(1, keepdim=True)) if scale == "sum_first" else (len(reward), 1.0)
    return (group_advantage(grouped, weights, scale) * math.sqrt((n - 1) / n) * spread / (spread + 1e-4)).flatten()


CASES = [("GRPO", "sum_first", name) for name in RULES]
CASES += [("RLOO", "sum_first", name) for name in ("lagrangian", "minmax", "hypergradient")]
CASES += [("GRPO", "each_first", name) for name in ("lagrangian", "minmax", "dynamic")]


@pytest.mark.parametrize("kind, scale, name", CASES)
def test_rewards_and_advantages_are_those_of_the_learned_weights(kind, scale, name, tmp_path):
    order = {"multi_objective_aggregation": "normalize_then_sum"} if scale == "each_first" else {}
    trainer, watch = make(tmp_path, kind, fast(name), **order)
    trainer.train()
    weights, first = watch.weights(), torch.tensor(START)
    assert len(watch.rows) == 6 and torch.equal(weights[0], first)
    means = torch.stack([watch.column("rewards/help/mean"), watch.column("rewards/safe/mean")], 1)
    assert torch.allclose((weights * means).sum(1), watch.column("reward"), atol=1e-6)
    assert torch.allclose(torch.stack([reward.mean(0) for reward in watch.rewards]), means, atol=1e-6)
    off, stale = (
        max((ours(kind, scale, r, w) - a).abs().max() for r, w, a in zip(watch.rewards, used, watch.advantages))
        for used in (weights, first.expand_as(weights))
    )
    assert off < (1e-5 if scale == "sum_first" else 1e-2), "the 1e-4 of single objectives is not in ours"
    if name == "fixed":
        assert torch.equal(weights, first.expand_as(weights))
    else:
        assert stale > 10 * off, "with the first weights the advantages would be others"


def test_each_weight_is_what_the_rule_made_of_the_row_before(tmp_path):
    rule = Lagrangian(budget=0.3, eta=0.3)
    trainer, watch = make(tmp_path, rule=rule)
    trainer.train()
    history = [row for row in trainer.state.log_history if "reward" in row]
    for row, seen, after in zip(history, watch.rows, history[1:]):
        used = torch.tensor([row["weights/help"], row["weights/safe"]])
        signal = SimpleNamespace(cost=1 - row["rewards/safe/mean"], safe=1)
        assert torch.allclose(rule(used, signal), torch.tensor([after["weights/help"], after["weights/safe"]]))
        assert row["weights/help/next"] == after["weights/help"] and seen["weights/help"] == row["weights/help"]
    assert "weights/help/next" not in watch.rows[0], "a reporter draws one line per weight"


def test_the_multiplier_moves_harm_toward_the_budget(tmp_path):
    harm = {}
    for budget in (0.1, 0.8):
        trainer, watch = make(tmp_path, rule=Lagrangian(budget=budget, eta=0.05), max_steps=30)
        trainer.train()
        harm[budget] = 1 - watch.column("rewards/safe/mean")
        weight = watch.weights()[:, 1]
        assert torch.equal(weight.diff() > 0, harm[budget][:-1] > budget)
    assert harm[0.1][-5:].mean() < harm[0.8][-5:].mean() - 0.05
    assert harm[0.1][-5:].mean() < harm[0.1][:5].mean() - 0.1


def test_bounds_say_what_lagging_means(tmp_path):
    trainer, _ = make(tmp_path)
    mean, used = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])
    assert torch.allclose(LearnedWeights(trainer, MinMax()).learned(used, mean), used)
    lagging = LearnedWeights(trainer, MinMax(), floor=[0.4, 0.0], ceiling=[1.0, 0.6])
    assert lagging.learned(used, mean)[0] > 0.6, "help has gone a sixth of its way, safety five sixths"
    seen = []

    def rule(weights, signal):
        seen.append(signal.cost)
        return weights

    LearnedWeights(trainer, rule, ceiling=[1.0, 0.6]).learned(used, mean)
    assert seen == [pytest.approx(0.1)]


# ---- the geometry of the rules that look at gradients


def test_the_gram_matrix_leaves_out_what_was_not_scored():
    reward = torch.rand(3, 5, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    plain = reward_gram(reward)
    groups = sum(torch.cov(group.T, correction=0) for group in reward) / 3
    assert torch.allclose(plain, groups)
    shifted = reward + torch.arange(3)[:, None, None]
    assert torch.allclose(reward_gram(shifted), plain), "what prompts differ by is not the policy's doing"
    reward[:, 2, 1] = math.nan
    gram, kept = reward_gram(reward), reward[..., 1][:, [0, 1, 3, 4]]
    assert gram[0, 0] == plain[0, 0] and gram.isfinite().all()
    assert torch.allclose(gram[1, 1], kept.var(1, correction=0).mean() * 4 / 5)


def test_alignment_is_a_cosine_and_constant_rewards_have_none():
    reward = torch.rand(4, GROUP, 3, generator=torch.Generator().manual_seed(0))
    reward[..., 2] = reward[..., 1] * 2 - 1
    signal = trl_signal(reward.mean((0, 1)), torch.zeros(3), torch.ones(3), lambda: reward)
    only_second = signal.alignment(torch.tensor([0.0, 1.0, 0.0]))
    assert torch.allclose(only_second[1:], torch.ones(2)) and only_second.abs().max() <= 1 + 1e-5
    assert torch.isclose(signal.influence().sum(), reward_gram(reward).sum() / reward_gram(reward).trace())
    still = trl_signal(torch.ones(3), torch.zeros(3), torch.ones(3), lambda: torch.ones(4, GROUP, 3))
    assert not still.alignment(torch.ones(3)).any() and not still.influence().any()


# ---- going on, and more than one process


@pytest.mark.parametrize("name", ["lagrangian", "dynamic"])
def test_a_resumed_run_goes_on_with_the_same_weights(name, tmp_path):
    trainer, whole = make(tmp_path, rule=fast(name), save_strategy="steps", save_steps=3)
    trainer.train()
    other, rest = make(tmp_path / "resumed", rule=fast(name))
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert rest.column("step").tolist() == [4, 5, 6]
    assert torch.equal(rest.weights()[0], whole.weights()[3])
    assert torch.allclose(rest.weights(), whole.weights()[3:], atol=1e-6)
    assert torch.allclose(other.reward_weights, trainer.reward_weights, atol=1e-6)
    plain, _ = make(tmp_path / "plain", max_steps=4)
    plain.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert plain.reward_weights.tolist() == pytest.approx(START), "TRL alone begins with its configuration"


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests" / "tiny_trl.py"), str(tmp_path), "lagrangian", "hypergradient"]
    done = subprocess.run(launch + script, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for one, two in zip(*ranks, strict=True):
        assert one["world"] == two["world"] == 2
        assert one["own"] == two["own"] == [16] * 4 and one["all"] == [32] * 4, "each process writes half"
        assert one["weights"] == two["weights"] and one["last"] == two["last"] and one["means"] == two["means"]
        assert one["weights"][0] == pytest.approx(START) and one["weights"][-1] != one["weights"][0]


# ---- logs of another rhythm


def test_the_rule_acts_once_a_log_on_the_mean_of_its_interval(tmp_path):
    trainer, watch = make(tmp_path, rule=fast("lagrangian"), logging_steps=3)
    trainer.train()
    assert watch.column("step").tolist() == [3, 6]
    means = torch.stack([watch.column("rewards/help/mean"), watch.column("rewards/safe/mean")], 1)
    assert torch.allclose((watch.weights() * means).sum(1), watch.column("reward"), atol=1e-6)
    assert watch.weights()[0].tolist() == pytest.approx(START) and watch.weights()[1][1] > START[1]


def test_steps_without_a_generation_leave_the_weights_alone(tmp_path):
    trainer, watch = make(tmp_path, rule=fast("lagrangian"), num_iterations=2)
    trainer.train()
    assert watch.column("step").tolist() == [1, 3, 5] and trainer.state.global_step == 6
    assert len({row["loss"] for row in trainer.state.log_history if "loss" in row}) > 3
    assert len(watch.weights()[:, 0].unique()) == 3


def test_an_evaluation_does_not_move_the_weights(tmp_path):
    runs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 16}):
        trainer, watch = make(tmp_path, rule=fast("hypergradient"), max_steps=2, **options)
        trainer.train()
        runs.append((trainer.state.log_history, watch))
    evaluated = [row for row in runs[1][0] if "eval_reward" in row]
    assert len(evaluated) == 2 and not any("weights/help" in row for row in evaluated)
    assert torch.equal(runs[0][1].weights()[:2], runs[1][1].weights()[:2])


def test_without_a_log_there_is_nothing_to_learn_from(tmp_path):
    trainer, _ = make(tmp_path, rule=fast("lagrangian"), logging_strategy="no")
    with pytest.raises(DataError, match="logging_strategy is 'no'; set logging_steps=1"):
        trainer.train()


def test_rules_that_look_at_gradients_want_every_step(tmp_path):
    trainer, _ = make(tmp_path, rule=Hypergradient(), logging_steps=2)
    with pytest.raises(DataError, match="Hypergradient.*set logging_steps=1"):
        trainer.train()
    trainer, _ = make(tmp_path)
    trainer._logs = {}
    trainer.state.logging_steps = 1
    learned = LearnedWeights(trainer, Hypergradient())
    with pytest.raises(DataError, match=f"TRL {re.escape(trl.__version__)} does not keep.*such as Lagrangian"):
        learned.learned(torch.tensor(START), torch.tensor([0.5, 0.5]))
    assert LearnedWeights(trainer, MinMax()).learned(torch.tensor(START), torch.tensor([0.9, 0.1]))[0] < START[0]


# ---- rewards that are missing or wrong


def test_a_function_that_scores_nothing_leaves_the_weights_waiting(tmp_path):
    calls = []

    def judge(completions, **more):
        calls.append(1)
        return [None] * len(completions) if len(calls) in (2, 3) else safe(completions)

    trainer, watch = make(tmp_path, rule=Lagrangian(eta=0.3), funcs=(help, judge))
    trainer.train()
    weights = watch.weights(("help", "judge"))
    assert watch.rows[1]["rewards/judge/mean"] is None and len(watch.rows) == 6
    assert torch.equal(weights[1], weights[2]) and torch.equal(weights[2], weights[3])
    assert weights[4][1] > weights[3][1] > weights[0][1]


@pytest.mark.parametrize("name", ["lagrangian", "hypergradient"])
def test_completions_without_a_score_are_left_out(name, tmp_path):
    def judge(completions, **more):
        return [None if i % 2 else reward for i, reward in enumerate(safe(completions))]

    trainer, watch = make(tmp_path, rule=fast(name), funcs=(help, judge), max_steps=4)
    trainer.train()
    weights = watch.weights(("help", "judge"))
    assert weights.isfinite().all() and len(weights[:, 0].unique()) == 4


def test_a_reward_that_is_no_number_is_one_sentence(tmp_path):
    def broken(completions, **more):
        return [math.inf] * len(completions)

    trainer, _ = make(tmp_path, rule=Lagrangian(), funcs=(help, broken))
    with pytest.raises(
        DataError, match="step 1: rewards/broken/mean is infinite; a reward function must return finite"
    ):
        trainer.train()
    assert trainer.reward_weights.tolist() == pytest.approx(START), "the last weights that were weights"


def test_the_wrong_number_of_rewards_or_bounds_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reward weights"):
        make(tmp_path, reward_weights=[1.0, 1.0, 1.0])

    def short(completions, **more):
        return safe(completions)[1:]

    trainer, _ = make(tmp_path, rule=fast("lagrangian"), funcs=(help, short))
    with pytest.raises((ValueError, RuntimeError)):
        trainer.train()
    for bounds, words in (
        ({"floor": [0.0]}, "floor must hold one number per reward function, 2 of them, got 1"),
        ({"ceiling": [1.0, 1.0, 1.0]}, "ceiling must hold one number"),
        ({"floor": [0.0, 1.0]}, "floor must lie under ceiling"),
    ):
        with pytest.raises(DataError, match=words):
            LearnedWeights(trainer, MinMax(), **bounds)


def test_equal_names_and_single_functions_are_refused(tmp_path):
    trainer, _ = make(tmp_path, funcs=(help, help))
    with pytest.raises(DataError, match="different names, got help, help"):
        LearnedWeights(trainer, Fixed())
    trainer, _ = make(tmp_path, funcs=(help,))
    with pytest.raises(DataError, match="two or more reward functions, got help"):
        LearnedWeights(trainer, Fixed())


@pytest.mark.parametrize(
    "made",
    [
        lambda w: w[:1],
        lambda w: w.tolist(),
        lambda w: w * math.nan,
        lambda w: -w,
        lambda w: w * 0,
        lambda w: None,
    ],
)
def test_what_a_rule_may_not_make_of_weights(made, tmp_path):
    trainer, _ = make(tmp_path)
    learned = LearnedWeights(trainer, lambda weights, signal: made(weights))
    with pytest.raises(DataError, match="it must make 2 finite weights"):
        learned.learned(torch.tensor(START), torch.tensor([0.5, 0.5]))


# ---- one callback, for its own trainer, of a version that reads the weights


def test_one_callback_for_its_own_trainer(tmp_path):
    one, _ = make(tmp_path, rule=Fixed())
    one.add_callback(LearnedWeights(one, Fixed()))
    other, _ = make(tmp_path)
    other.add_callback(LearnedWeights(one, Fixed()))
    for trainer in (one, other):
        with pytest.raises(DataError, match="takes one LearnedWeights, made for it"):
            trainer.train()


@pytest.mark.parametrize("weights", [None, [0.9, 0.1], torch.ones(3)])
def test_a_trainer_without_such_weights_is_one_sentence(weights, tmp_path):
    trainer, _ = make(tmp_path)
    if weights is None:
        del trainer.reward_weights
    else:
        trainer.reward_weights = weights
    with pytest.raises(DataError, match=f"GRPOTrainer of TRL {re.escape(trl.__version__)} does not follow"):
        LearnedWeights(trainer, Fixed())


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_a_version_that_no_longer_reads_the_attribute_is_one_sentence(kind, tmp_path):
    base = getattr(trl, f"{kind}Trainer")

    class Forgetful(base):
        """Weighs by its configuration, whatever the attribute says."""

        def _generate_and_score_completions(self, inputs):
            learned, self.reward_weights = self.reward_weights, torch.tensor(self.args.reward_weights)
            try:
                return super()._generate_and_score_completions(inputs)
            finally:
                self.reward_weights = learned

    trainer, watch = make(tmp_path, kind, fast("lagrangian"), trainer_class=Forgetful)
    with pytest.raises(DataError, match="Forgetful of TRL .* would change nothing"):
        trainer.train()
    assert len(watch.rows) == 1, "the second generation shows it"
    trainer, watch = make(tmp_path, kind, Fixed(), trainer_class=Forgetful)
    trainer.train()
    assert len(watch.rows) == 6, "weights that stay are followed by anybody"


@pytest.mark.parametrize("settable", [True, False])
def test_a_version_that_keeps_other_weights_than_it_is_given_is_one_sentence(settable, tmp_path):
    def keep(self, value):
        if "weights" not in vars(self):
            vars(self)["weights"] = value
        elif not settable:
            raise AttributeError("can't set attribute")

    class Stubborn(trl.GRPOTrainer):
        reward_weights = property(lambda self: vars(self)["weights"], keep)

    trainer, _ = make(tmp_path, rule=fast("lagrangian"), trainer_class=Stubborn)
    with pytest.raises(DataError, match="Stubborn of TRL .* would change nothing"):
        trainer.train()


# ---- without TRL, and as the page shows it


def test_the_import_names_the_extra_where_trl_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "dualppo.trl")
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(DataError, match=r"pip install 'dualppo\[trl\]'"):
        importlib.import_module("dualppo.trl")


def test_the_notebook_says_so_and_runs_where_trl_is_missing(tmp_path):
    cells = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(["import sys", 'sys.modules["trl"] = None', *cells]), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trl is not installed" in done.stdout


@pytest.mark.slow
def test_the_ten_lines_run(tmp_path):
    model().save_pretrained(tmp_path / "tiny")
    tokenizer().save_pretrained(tmp_path / "tiny")
    notebook = "".join("".join(c["source"]) for c in NOTEBOOK["cells"])
    readme = (ROOT / "GUIDE.md").read_text(encoding="utf-8")
    (lines,), (shown,) = (re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in (notebook, readme))
    assert lines == shown, "GUIDE.md and nbs/writing/5f_trl.ipynb show the same lines"
    assert len([line for line in lines.splitlines() if line]) <= 10
    if not torch.cuda.is_available():
        lines = lines.replace("logging_steps=1)", "logging_steps=1, use_cpu=True)")
    script = tmp_path / "ten_lines.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from tiny_trl import help, prompts, safe\nmodel, prompts = 'tiny', prompts().select(range(2))\n" + lines
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = re.findall(r"^(\d\.\d{3}) (\d\.\d{3})$", done.stdout, re.MULTILINE)
    assert len(shown) > 3 and float(shown[0][0]) == START[1] and float(shown[-1][0]) > START[1], done.stdout
