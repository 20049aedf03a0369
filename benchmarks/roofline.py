"""The least time of one update on a machine, and which part of an update takes how much longer than that.

Steps follow each other; within a step arithmetic and traffic overlap: Σ max(flops / rate, bytes / bandwidth).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from machine import cache_bytes, sgemm_rate, triad_rate
from torch import Tensor
from torch.nn import functional as F

from dualppo.methods.closed_form import logit_gradient
from dualppo.bench.env import Env, Splits
from dualppo.bench.masking import mask_logits
from dualppo.methods.ppo import PPO, PPOConfig, Rollout

FLOAT = 4  # bytes
PARTS = ("products", "Adam", "gather", "softmax and elementwise")


@dataclass(frozen=True)
class Shape:
    """Sizes of one pass: B states of D features, N candidates of width A, H hidden units in each network."""

    batch: int
    features: int
    width: int
    candidates: int
    hidden: int

    @property
    def parameters(self) -> int:
        """How many numbers both networks have."""
        return (self.features + 1) * 2 * self.hidden + (self.hidden + 1) * self.width + self.hidden + 1


@dataclass(frozen=True)
class Step:
    """Work that cannot be avoided: flops; bytes of parameters, gradients and moments; bytes from the data in memory."""

    name: str
    part: str
    flops: int = 0
    near: int = 0
    far: int = 0


@dataclass(frozen=True)
class Machine:
    """Measured in the same run: flop/s of a large product, bytes/s at the parameters' and at the data's size."""

    rate: float
    near: float
    far: float
    cache: int


def shape_of(env: Env, config: PPOConfig, batch: int) -> Shape:
    """The sizes of a pass over so many states."""
    return Shape(batch, env.x.shape[1], env.pool.shape[1], env.cand.shape[1], config.hidden)


def forward(s: Shape, cache: int) -> list[Step]:
    """Gather and the products up to the logits; a gathered copy moves only if it is larger than the cache."""
    b, d, a, n, h = s.batch, s.features, s.width, s.candidates, s.hidden
    copy = spilled(b * n * a * FLOAT, cache)
    return [
        Step("gather", "gather", near=copy, far=b * (n * a + d + a) * FLOAT),
        Step("first layers", "products", 2 * b * d * 2 * h, d * 2 * h * FLOAT),
        Step("policy's output", "products", 2 * b * h * a, h * a * FLOAT),
        Step("critic's output", "products", 2 * b * h, h * FLOAT),
        Step("logits", "products", 2 * b * n * a, copy),
    ]


def backward(s: Shape, cache: int) -> list[Step]:
    """The products from the logits' gradient to the parameters'; there is none with respect to the input."""
    b, d, a, n, h = s.batch, s.features, s.width, s.candidates, s.hidden
    return [
        Step("gradient of the policy's output", "products", 2 * b * n * a, spilled(b * n * a * FLOAT, cache)),
        Step("critic's hidden units", "products", 2 * b * h, h * FLOAT),
        Step("critic's output weights", "products", 2 * b * h, h * FLOAT),
        Step("policy's output weights", "products", 2 * b * h * a, h * a * FLOAT),
        Step("policy's hidden units", "products", 2 * b * h * a, h * a * FLOAT),
        Step("first layers' weights", "products", 2 * b * d * 2 * h, d * 2 * h * FLOAT),
    ]


def adam(s: Shape) -> Step:
    """Parameters, gradients and both moments read; parameters and moments written."""
    return Step("Adam", "Adam", near=7 * s.parameters * FLOAT)


def update_steps(s: Shape, cache: int) -> list[Step]:
    """All steps of one update."""
    return [*forward(s, cache), *backward(s, cache), adam(s)]


def spilled(size: int, cache: int) -> int:
    """Bytes of an activation that leave the cache."""
    return size if size > cache else 0


def least(steps: Sequence[Step], m: Machine) -> float:
    """Seconds below which the machine cannot do the steps one after the other."""
    return sum(max(step.flops / m.rate, step.near / m.near + step.far / m.far) for step in steps)


def measure(s: Shape) -> Machine:
    """Rate and bandwidths now."""
    near, far = triad_rate(4 * s.parameters * FLOAT), triad_rate(384 * 2**20, repeats=8)
    return Machine(sgemm_rate(), near, far, cache_bytes())


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor time of one call, over many."""
    clock = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - clock) / repeats


def narrow(env: Env) -> Env:
    """As many states with two features, embeddings of width two and two candidates."""
    cut = ("cand", "reward", "p_harm", "p_grade", "unsafe", "allowed", "good", "similarity", "kind")
    slots = {name: getattr(env, name)[:, :2].contiguous() for name in cut} | {"gold": torch.full_like(env.gold, -1)}
    slots["allowed"] = torch.ones_like(slots["allowed"])
    return replace(
        env,
        x=env.x[:, :2].contiguous(),
        anchor=env.anchor[:, :2].contiguous(),
        pool=env.pool[:, :2].contiguous(),
        **slots,
    )


def narrow_learner(splits: Splits, config: PPOConfig) -> PPO:
    """A learner of the same code whose tensors cost nothing: what it takes is Python and dispatch."""
    env = narrow(splits.train)
    return PPO(replace(splits, train=env, dev_weights=env, dev_stop=env, test=env), replace(config, hidden=2), 0)


def part_works(learner: PPO, roll: Rollout) -> dict[str, Callable[[], object]]:
    """Each part of `closed_form.minibatch` and Adam's step alone; the gather takes a new mini-batch each call."""
    env, policy, config = learner.env, learner.policy, learner.config
    w, g = learner.optimiser.weights, learner.optimiser.gradients
    order = torch.randperm(len(roll.states))[: len(roll.states) // config.minibatch * config.minibatch]
    batches = [
        [v[o][None] for v in (roll.states, roll.returns, roll.actions, roll.logp_old, roll.advantage)]
        for o in order.split(config.minibatch)
    ]
    turn = {"gather": 0}

    def gather() -> tuple[Tensor, ...]:
        s = batches[turn["gather"] % len(batches)][0]
        turn["gather"] += 1
        return (
            F.embedding(s, env.x),
            F.embedding(s, env.anchor),
            F.embedding(env.cand[s.flatten()], env.pool),
            env.allowed[s],
        )

    x, anchor, candidates, allowed = gather()
    _, returns, *batch = batches[0]
    hidden = torch.baddbmm(w.b1, x, w.w1.mT)
    out = torch.baddbmm(w.actor[1], hidden[..., : w.split], w.actor[0].mT)
    value = torch.baddbmm(w.critic[1], hidden[..., w.split :], w.critic[0].mT)
    v, dvalue, kappa = F.normalize(out, dim=-1), value - returns, policy.scorer.kappa
    logits = torch.bmm(v.view(-1, 1, v.shape[-1]), candidates.mT)
    dz, dh = torch.softmax(logits, -1), torch.randn_like(hidden)
    dv = torch.bmm(dz, candidates).view(v.shape)
    back = [torch.bmm(dv, w.actor[0]), torch.bmm(dvalue, w.critic[0])]

    def products() -> None:
        mine, theirs = hidden[..., : w.split], hidden[..., w.split :]
        torch.baddbmm(w.b1, x, w.w1.mT)
        torch.baddbmm(w.critic[1], theirs, w.critic[0].mT)
        torch.baddbmm(w.actor[1], mine, w.actor[0].mT)
        torch.bmm(v.view(-1, 1, v.shape[-1]), candidates.mT)
        torch.bmm(dz, candidates)
        torch.bmm(dvalue, w.critic[0])
        torch.bmm(dvalue.mT, theirs, out=g.critic[0])
        torch.bmm(dv.mT, mine, out=g.actor[0])
        torch.bmm(dv, w.actor[0])
        torch.bmm(dh.mT, x, out=g.w1)

    def elementwise() -> Tensor:
        hidden.relu_()
        out.add_(anchor)
        norm = torch.linalg.vector_norm(out, dim=-1, keepdim=True).clamp(min=1e-12)
        unit = out / norm
        masked = mask_logits(logits.view(*allowed.shape) * kappa, allowed, policy.mask)
        _, ratio = logit_gradient(masked.log_softmax(-1), *batch, None, config)
        scaled = dv * kappa
        du = (scaled - unit * (unit * scaled).sum(-1, keepdim=True)) / norm
        slope = (value - returns) * (2 / returns.shape[1])
        torch.sum(slope, 1, keepdim=True, out=g.critic[1])
        torch.sum(du, 1, keepdim=True, out=g.actor[-1])
        torch.sum(torch.cat(back, -1).mul_(hidden > 0), 1, keepdim=True, out=g.b1)
        return (ratio - 1).abs() > config.clip

    return dict(zip(PARTS, (products, learner.optimiser.step, gather, elementwise), strict=True))


def balance(
    steps: Sequence[Step], m: Machine, parts: dict, narrow_parts: dict, whole: float, narrow_whole: float
) -> dict:
    """Least and measured seconds of every part of an update; dispatch is a row of its own."""
    rows = {
        name: {
            "least": least([step for step in steps if step.part == name], m),
            "measured": parts[name] - narrow_parts[name],
        }
        for name in PARTS
    }
    rows["Python and dispatch"] = {"least": 0.0, "measured": narrow_whole}
    rest = whole - sum(row["measured"] for row in rows.values())
    return rows | {"not in the parts": {"least": 0.0, "measured": rest}}


def roofline(splits: Splits, config: PPOConfig, rounds: int, repeats: int = 160) -> dict:
    """Share of the roofline that an update in closed form reaches, by processor time, and what is missing by part."""
    shape = shape_of(splits.train, config, config.minibatch)
    learners = {"full": PPO(splits, config, 0), "narrow": narrow_learner(splits, config)}
    rolls = {name: learner.sample() for name, learner in learners.items()}
    works = {name: part_works(learner, rolls[name]) for name, learner in learners.items()}
    updates = {name: config.inner_epochs * -(-len(roll.states) // config.minibatch) for name, roll in rolls.items()}
    machines, times, walls = [], {}, []
    for _ in range(rounds):
        machines.append(measure(shape))
        for name, learner in learners.items():
            wall = time.perf_counter()
            spent = cpu_seconds(lambda learner=learner, name=name: learner.improve(rolls[name]), 1)
            walls.append((time.perf_counter() - wall) / spent)
            times.setdefault((name, "whole"), []).append(spent / updates[name])
            for part, work in works[name].items():
                times.setdefault((name, part), []).append(cpu_seconds(work, repeats))
    best = {key: min(values) for key, values in times.items()}
    m = Machine(*(max(getattr(one, name) for one in machines) for name in ("rate", "near", "far", "cache")))
    steps, whole = update_steps(shape, m.cache), best["full", "whole"]
    parts, narrow_parts = ({name: best[which, name] for name in PARTS} for which in ("full", "narrow"))
    return {
        "shape": vars(shape),
        "rate": vars(m),
        "flops": sum(step.flops for step in steps),
        "least": least(steps, m),
        "near_bytes": sum(step.near for step in steps),
        "far_bytes": sum(step.far for step in steps),
        "whole": whole,
        "all_whole": times["full", "whole"],
        "share": least(steps, m) / whole,
        "wall_over_cpu": max(walls),
        "parts": balance(steps, m, parts, narrow_parts, whole, best["narrow", "whole"]),
    }
