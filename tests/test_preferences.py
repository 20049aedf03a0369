"""The pair losses against TRL's trainers on a tiny model, and laws that hold for every pair."""

import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given, strategies as st
from tiny_trl import model, tokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from dualppo.losses.preference import (
    conservative_dpo_loss,
    identity_loss,
    kto_loss,
    log_ratio_gap,
    modpo_loss,
    scaled_beta,
)
from dualppo.methods.best_of_n import best_of_n
from dualppo.methods.offline import offline_weight
from dualppo.methods.ppo_max import joined_moments

COMMON = {"per_device_train_batch_size": 6, "report_to": [], "use_cpu": True, "bf16": False, "max_steps": 1}
LENGTH = 3  # tokens of a completion, the end included


def other_model():
    start = model()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in start.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return start


def said(i, first):
    return f" w{(i + first) % 30} w{(2 * i + first) % 30}"


def log_likelihood(net, ids, mask):
    "Of the tokens under the mask, summed row by row."
    logp = net(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return (logp * mask[:, 1:]).sum(1)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "robust"])
def test_a_pair_costs_what_trl_says(kind, tmp_path):
    rows = {
        "prompt": [f"w{i} w{i + 1}" for i in range(6)],
        "chosen": [said(i, 3) for i in range(6)],
        "rejected": [said(i, 11) for i in range(6)],
    }
    smoothing = 0.2 if kind == "robust" else 0.0
    options = DPOConfig(str(tmp_path), loss_type=[kind], beta=0.3, label_smoothing=smoothing, **COMMON)
    net, ref = other_model(), model()
    trainer = DPOTrainer(net, ref, args=options, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer())
    batch = next(iter(trainer.get_train_dataloader()))
    ids, mask = batch["input_ids"], batch["completion_mask"]
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch))
        new, old = (log_likelihood(m, ids, mask).chunk(2) for m in (net, ref))
    h = log_ratio_gap(*new, *old)
    if kind == "sigmoid":
        ours = conservative_dpo_loss(h, 0.3)
    elif kind == "ipo":  # per token, as its authors told TRL
        assert (mask.sum(1) == LENGTH).all()
        ours = identity_loss(h / LENGTH, 0.3)
    else:  # robust DPO takes the labels' noise out again: ours for both orders, unmixed
        clean, flipped = conservative_dpo_loss(h, 0.3), conservative_dpo_loss(-h, 0.3)
        ours = ((1 - smoothing) * clean - smoothing * flipped) / (1 - 2 * smoothing)
        assert torch.isclose(
            conservative_dpo_loss(h, 0.3, smoothing), (1 - smoothing) * clean + smoothing * flipped, atol=1e-6
        )
    assert torch.isclose(ours, theirs, atol=1e-5) and ours > 0


def test_a_thumb_costs_what_trl_says(tmp_path):
    rows = {
        "prompt": [f"w{i} w{i + 1}" for i in range(6)],
        "completion": [said(i, 5) for i in range(6)],
        "label": [True, False, True, True, False, False],
    }
    options = KTOConfig(str(tmp_path), beta=0.3, desirable_weight=1.0, undesirable_weight=1.4, **COMMON)
    net, ref = other_model(), model()
    trainer = KTOTrainer(net, ref, args=options, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer())
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch))
        ratio, shifted = (
            log_likelihood(net, batch[f"{own}input_ids"], batch[f"{own}completion_mask"])
            - log_likelihood(ref, batch[f"{own}input_ids"], batch[f"{own}completion_mask"])
            for own in ("", "KL_")
        )
    good = torch.as_tensor(batch["label"], dtype=torch.bool)
    ours = kto_loss(ratio, good, shifted.mean().clamp(min=0), 0.3, (1.0, 1.4))
    assert torch.isclose(ours, theirs, atol=1e-5)


gaps = st.lists(st.floats(-30, 30), min_size=1, max_size=8)


@given(gaps, st.floats(0.01, 2), st.floats(0, 0.49))
def test_turning_a_pair_around_turns_the_smoothing_around(values, beta, smoothing):
    h = torch.tensor(values, dtype=torch.double)
    assert torch.isclose(
        conservative_dpo_loss(h, beta, smoothing), conservative_dpo_loss(-h, beta, 1 - smoothing), atol=1e-9
    )
    plain = conservative_dpo_loss(h, beta)  # −log σ(−x) = −log σ(x) + x
    assert torch.isclose(conservative_dpo_loss(h, beta, smoothing), plain + smoothing * beta * h.mean(), atol=1e-9)
    assert torch.isclose(modpo_loss(h, torch.zeros_like(h), beta, 1.0), conservative_dpo_loss(h, beta), atol=1e-9)


@given(gaps, st.floats(0, 3), st.floats(0, 3))
def test_a_clearer_pair_never_pulls_less(margins, w, k):
    margin = torch.tensor(margins, dtype=torch.double).abs().sort().values
    beta = scaled_beta(margin, 0.1, w, k)
    assert (beta.diff() >= -1e-12).all() and (beta >= 0.1 - 1e-12).all() and (beta <= 0.1 * (1 + w) + 1e-12).all()


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_best_of_n_is_a_policy_that_never_scores_less(seed, n):
    g = torch.Generator().manual_seed(seed)
    logp = torch.randn(4, 7, generator=g, dtype=torch.double).mul(2).log_softmax(1)
    score = torch.randint(0, 4, (4, 7), generator=g).double()  # with ties
    law = best_of_n(logp, score, n)
    assert torch.allclose(law.exp().sum(1), torch.ones(4, dtype=torch.double), atol=1e-9)
    mean, more = ((p.exp() * score).sum(1) for p in (law, best_of_n(logp, score, n + 1)))
    assert (more >= mean - 1e-9).all()
    assert ((law.exp() * (law - logp)).sum(1) <= math.log(n) - (n - 1) / n + 1e-9).all()


@given(st.integers(0, 2**31))
def test_an_offline_weight_is_never_negative_and_forgets_what_is_worse(seed):
    g = torch.Generator().manual_seed(seed)
    logp, ref = (torch.randn(9, generator=g).sub(2) for _ in range(2))
    reward, value = torch.rand(9, generator=g), torch.rand(9, generator=g)
    for variant in ("a_lol", "a_lol_ref_free", "a_lol_kl", "r_lol", "wbc", "r_gold", "nll"):
        weight = offline_weight(variant, logp, ref, reward, value, 0.9)
        assert (weight >= 0).all()
        if variant.startswith("a_lol"):
            assert (weight[reward <= value] == 0).all() and (weight[reward > value] > 0).all()


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=5))
def test_moments_do_not_depend_on_how_values_come(parts):
    together = torch.zeros(3, dtype=torch.double)
    for part in parts:
        together = joined_moments(together, torch.tensor(part, dtype=torch.double))
    once = joined_moments(torch.zeros(3, dtype=torch.double), torch.tensor(sum(parts, []), dtype=torch.double))
    assert torch.allclose(together, once, atol=1e-8)
