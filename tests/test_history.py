"""The history c_t has one definition, whatever made the vectors, and its memory is linear in the exchanges (A23)."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dualppo.bench import env as environments
from dualppo.bench.candidates import CLEAN
from dualppo.bench.env import EnvConfig, make_envs, represent
from dualppo.bench.features import REFERENCE, history, load_features
from dualppo.policies.policy import make_policy
from dualppo.policies.stored import StateForm, load_ranker, save_policy


def of_definition(query, reply, dialogue, turn, decay=0.5):
    """The sum of notebook 02, term by term."""
    out = torch.zeros_like(query)
    for i in range(len(query)):
        earlier = [j for j in range(len(query)) if dialogue[j] == dialogue[i] and turn[j] < turn[i]]
        for k, j in enumerate(sorted(earlier, key=lambda j: -turn[j])):
            out[i] += decay**k * (query[j] + reply[j]) / 2
    return normalize(out, dim=1)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_history_is_the_sum_of_its_definition(lengths, seed):
    g = torch.Generator().manual_seed(seed)
    dialogue = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    order = torch.randperm(len(dialogue), generator=g)
    turn = torch.cat([torch.arange(n) for n in lengths])[order]
    dialogue = dialogue[order]
    query, reply = (normalize(torch.randn(len(order), 6, generator=g), dim=1) for _ in range(2))
    assert torch.allclose(history(query, reply, dialogue, turn), of_definition(query, reply, dialogue, turn), atol=1e-5)


@pytest.mark.parametrize("kind", ["minilm", "bag_of_words", "one_hot"])
def test_the_context_block_is_made_of_what_the_policy_sees(kind, toy):
    "With bags of words or random vectors it was the sentence encoder's all the same, the meaning they are to lack."
    features, config = load_features(toy), EnvConfig(blocks=("context",), representation=kind, z_score=False)
    blocks, pool = represent(features, kind)
    reply, (dialogue, turn) = pool[features.bank(REFERENCE)], (features.dialogue.tolist(), features.turn.tolist())
    env = make_envs(features, CLEAN, 0, config).train
    some = env.row < 80
    expected = of_definition(blocks["query"][:80], reply[:80], dialogue, turn)
    assert some.any() and torch.allclose(env.x[some], expected[env.row[some]], atol=1e-5)
    other = make_envs(replace(features, query=features.query.flip(0)), CLEAN, 0, config).train
    assert torch.equal(other.x, env.x) == (kind != "minilm"), "only MiniLM's history may depend on its embeddings"


def test_history_needs_no_square_of_the_exchanges():
    m = 60_000  # an M × M mask would have 3.6e9 entries
    x = torch.ones(m, 2)
    dialogue, turn = torch.arange(m) // 4, torch.arange(m) % 4
    c = history(x, x, dialogue, turn)
    assert (c[turn == 0] == 0).all() and torch.allclose(c[turn > 0].norm(dim=1), torch.ones(m * 3 // 4))
    assert not hasattr(environments, "history_block")


def test_a_stored_policy_sees_the_same_history(tmp_path):
    "A ranker's state for the third turn of a dialogue is the environment's."
    g = torch.Generator().manual_seed(0)
    said = dict(zip("abcdefgh", normalize(torch.randn(8, 4, generator=g), dim=1)))
    seen = []
    policy = make_policy("two_tower", 4, 4, hidden=4)
    save_policy(policy, path := tmp_path / "p.safetensors", StateForm(("context",), "letters", "0", 0.5, "none"))
    ranker = load_ranker(path, lambda texts: torch.stack([said[t] for t in texts]), "0")
    ranker.policy.scorer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    table = ranker.rank("e", "f", ["g", "h"], history=[("a", "b"), ("c", "d")])
    assert isinstance(table, pd.DataFrame)
    query, reply = torch.stack([said[t] for t in "ace"]), torch.stack([said[t] for t in "bdf"])
    assert torch.allclose(seen[0], of_definition(query, reply, [0, 0, 0], [0, 1, 2])[2:])
    ranker.rank("e", "f", ["g", "h"])
    assert not seen[1].any(), "no history on a first turn"
