"""A policy that writes: what the cached head and a model of transformers owe, and that both are one policy."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from dualppo.core.errors import DataError
from dualppo.writing import smollm
from dualppo.writing.cached_head import CachedHead, distinct, toy_policy
from dualppo.writing.hf import HFPolicy, hf_policy, with_lora
from dualppo.writing.llama import NAMES, llama_of, toy_model
from dualppo.writing.lora import added, load_adapter, new_adapter, save_adapter
from dualppo.writing.policy import Replies, per_reply
from dualppo.writing.words import Words, tokens_of, toy_words

PROMPTS = ["how are you", "tea", "what do you like", "i am not happy with the rain and the cold"]
needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")


def noise(rows: int, longest: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, longest, generator=torch.Generator().manual_seed(seed))


def shaken(tensors, size: float = 0.2, seed: int = 1) -> None:
    """Fill what is zero at the start, so that an adapter does something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in tensors:
            values.add_(size * torch.randn(values.shape, generator=g))


def both(seed: int = 0, temperature: float = 0.7, **options):
    """One tiny model with one adapter, as a cached head and as a model of transformers with peft."""
    words, model = toy_words(), toy_model(70 + 12, seed=seed, **options)
    model.resize_token_embeddings(len(words.tokenizer))
    ours = CachedHead(llama_of(model, 2, words.kept, torch.float32), words, rank=4, temperature=temperature)
    shaken(ours.parameters())
    targets = [name.rpartition(".")[2] for name in NAMES.values()]
    theirs = HFPolicy(with_lora(model, targets, 4, layers_to_transform=[2, 3]), words, temperature)
    state = dict(theirs.bare.named_parameters())
    pairs = []
    for i, layer in enumerate(ours.adapter.layers):
        for part, two in layer.items():
            for letter, values in zip("AB", two):
                there = state[f"base_model.model.model.layers.{2 + i}.{NAMES[part]}.lora_{letter}.default.weight"]
                there.data.copy_(values.detach())
                pairs.append((values, there))
    return ours, theirs, pairs


@needs_peft
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 6}])
def test_both_policies_are_one(options):
    """Log-probabilities, samples, reference, and the gradient of every adapter matrix."""
    ours, theirs, pairs = both(**options)
    asked = [policy.prefill(PROMPTS) for policy in (ours, theirs)]
    mine, yours = (policy.sample(prompts, 3, noise(12)) for policy, prompts in zip((ours, theirs), asked))
    assert torch.equal(mine.tokens, yours.tokens) and torch.equal(mine.mask, yours.mask)
    assert (mine.logp - yours.logp).abs().max() < 1e-4
    assert (ours.reference(asked[0], mine) - theirs.reference(asked[1], mine)).abs().max() < 1e-4
    assert (ours.reference(asked[0], mine) - mine.logp).abs().max() > 1e-2  # the adapter does something
    weight = torch.randn(mine.mask.shape, generator=torch.Generator().manual_seed(2))
    for policy, prompts in zip((ours, theirs), asked):
        policy.backward((weight * policy.log_probs(prompts, mine)).sum())
    for a, b in pairs:
        assert torch.allclose(a.grad, b.grad, atol=1e-3 * float(b.grad.abs().max()) + 1e-6)
    assert all(p.grad is None for name, p in theirs.bare.named_parameters() if "lora" not in name)


def test_a_bf16_trunk_differs_by_its_rounding_only():
    words = toy_words()
    model = toy_model(len(words.tokenizer), initializer_range=0.1)
    exact, rough = (
        CachedHead(llama_of(model, 2, words.kept, dtype), words, rank=4) for dtype in (torch.float32, torch.bfloat16)
    )
    replies = exact.sample(exact.prefill(PROMPTS), 3, noise(12))
    prompts = rough.prefill(PROMPTS)
    known = rough.taught(prompts, exact.texts(replies), 7)
    again = rough.log_probs(prompts, known).detach()
    assert torch.equal(known.logp, again)
    ended = (replies.tokens == exact.end).any(1)
    off = (known.logp - replies.logp)[ended].abs().max()
    assert 0 < off < 0.3
    sampled = rough.sample(prompts, 3, noise(12))
    assert (rough.log_probs(prompts, sampled).detach() - sampled.logp).abs().max() < 1e-4  # its own trunk, to the bit


@needs_peft
def test_an_adapter_everywhere_is_another_policy():
    _, theirs, _ = both()
    everywhere = HFPolicy(theirs.bare, theirs.words, theirs.temperature, adapts="everywhere")
    replies = everywhere.sample(everywhere.prefill(PROMPTS), 2, noise(8))
    again = everywhere.log_probs(everywhere.prefill(PROMPTS), replies).detach()
    assert (again - replies.logp).abs().max() < 1e-4
    late = theirs.log_probs(theirs.prefill(PROMPTS), replies).detach()
    assert (late - again).abs().max() > 1e-3


@needs_peft
def test_phi_is_a_causal_model_like_any_other():
    """Another architecture (partial rotation, biases, an lm_head of its own): sampler = trainer = plain forward."""
    from transformers import PhiConfig, PhiForCausalLM

    words = toy_words()
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=len(words.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    policy = HFPolicy(with_lora(PhiForCausalLM(config), ("q_proj", "v_proj", "dense"), 4), words, 0.8)
    shaken(policy.parameters())
    prompts = policy.prefill(PROMPTS)
    replies = policy.sample(prompts, 2, noise(8))
    assert (policy.log_probs(prompts, replies).detach() - replies.logp).abs().max() < 1e-4
    ids = words.prompt(PROMPTS[0])
    written = words.kept[replies.tokens[0][replies.mask[0]]]
    with torch.no_grad(), policy.bare.disable_adapter():
        logits = policy.bare(torch.cat([torch.tensor(ids), written])[None]).logits[0, len(ids) - 1 : -1, words.kept]
    plain = (logits / 0.8).log_softmax(-1).gather(1, replies.tokens[0][replies.mask[0]][:, None])[:, 0]
    assert torch.allclose(policy.reference(prompts, replies)[0][replies.mask[0]], plain, atol=1e-4)


def test_samples_follow_the_policy():
    """Chi-square of 20,000 first tokens against the probabilities, with an adapter that does something."""
    from scipy.stats import chisquare

    policy = toy_policy()
    shaken(policy.parameters())
    prompts, n = policy.prefill(["tea"]), 20_000
    counts = torch.bincount(policy.sample(prompts, n, noise(n, 1)).tokens[:, 0], minlength=len(policy.words))
    each = torch.arange(len(policy.words))[:, None]
    one = torch.ones_like(each, dtype=torch.bool)
    states = policy.sample(prompts, 1, noise(1, 1)).states.expand(len(each), 1, -1)
    p = policy.log_probs(prompts, Replies(each, one, torch.zeros(len(each), 1), states)).detach().exp().squeeze(1)
    assert abs(float(p.sum()) - 1) < 1e-5
    often = p * n > 5
    observed, expected = (torch.cat([x[often], x[~often].sum()[None]]).double() for x in (counts.float(), p * n))
    some = expected > 0
    assert chisquare(observed[some], expected[some] * observed.sum() / expected.sum()).pvalue > 1e-3


def test_equal_beginnings_are_computed_once():
    """Rows stand for rows that begin alike; what comes out is what every row by itself gives."""
    begun, alive = torch.tensor([7, 7, 3, 7, 3, 9]), torch.tensor([1, 2, 3, 4])
    rows, of = distinct(begun, alive)
    assert rows.tolist() == [2, 1] and of.tolist() == [0, 1, 0, 1, 0, 0]
    policy = toy_policy(temperature=0.2)  # so cold that many replies begin alike
    shaken(policy.parameters())
    replies = policy.sample(policy.prefill(["tea"]), 12, noise(12))
    assert 1 < len(replies.tokens.unique(dim=0)) < 12
    for i in range(12):
        alone = policy.sample(policy.prefill(["tea"]), 1, noise(12)[i : i + 1])
        assert torch.equal(alone.tokens[0], replies.tokens[i]) and torch.equal(alone.mask[0], replies.mask[i])
        assert (alone.logp[0] - replies.logp[i]).abs().max() < 1e-4
    again = policy.log_probs(policy.prefill(["tea"]), replies).detach()
    assert (again - replies.logp).abs().max() < 1e-4


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2], [1, 3], [0, 1, 2, 3]])
def test_a_reply_depends_on_its_own_row_alone(order):
    """Order, neighbours and padding: for the cached head and for a model of transformers."""
    ours = toy_policy()
    shaken(ours.parameters())
    whole_model = HFPolicy(toy_model(len(ours.words.tokenizer)), ours.words, 1.0, adapts="everywhere")
    rows = torch.tensor(order)
    for policy in (ours, whole_model):
        whole = policy.sample(policy.prefill(PROMPTS), 2, noise(8))
        mine = (2 * rows[:, None] + torch.arange(2)).flatten()
        for prompts in (policy.prefill(PROMPTS)[rows], policy.prefill([PROMPTS[i] for i in order])):
            part = policy.sample(prompts, 2, noise(8)[mine])
            assert torch.equal(part.tokens, whole.tokens[mine]) and torch.equal(part.mask, whole.mask[mine])
            assert (part.logp - whole.logp[mine]).abs().max() < 1e-4
            scored = policy.log_probs(prompts, replace(part, states=whole.states[mine])).detach()
            assert (scored - part.logp).abs().max() < 1e-4


def test_a_start_is_the_reference_and_what_was_learned_adds_up(tmp_path):
    first = toy_policy(seed=1)
    shaken(first.parameters())
    begun = toy_policy(seed=2, start=first.learned())
    prompts = begun.prefill(PROMPTS)
    replies = begun.sample(prompts, 2, noise(8))
    assert torch.equal(begun.reference(prompts, replies), begun.log_probs(prompts, replies))
    assert torch.equal(replies.tokens, first.sample(first.prefill(PROMPTS), 2, noise(8)).tokens)
    shaken(begun.parameters(), seed=3)
    path = tmp_path / "both.safetensors"
    save_adapter(begun.learned(), path, 2, {}, torch.float32)
    again = toy_policy(start=load_adapter(path)[0])
    assert (again.log_probs(prompts, replies) - begun.log_probs(prompts, replies)).abs().max() < 1e-5


@needs_peft
def test_peft_reads_the_file(tmp_path):
    import json

    from peft import PeftModel

    ours, theirs, _ = both()
    save_adapter(ours.adapter, tmp_path / "adapter_model.safetensors", 2, {}, torch.float32)
    theirs.bare.save_pretrained(tmp_path / "theirs")
    card = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(card))
    model = toy_model(82)
    model.resize_token_embeddings(len(ours.words.tokenizer))
    again = HFPolicy(PeftModel.from_pretrained(model, tmp_path), ours.words, 0.7)
    replies = theirs.sample(theirs.prefill(PROMPTS), 2, noise(8))
    assert torch.allclose(again.log_probs(again.prefill(PROMPTS), replies), replies.logp, atol=1e-4)


@pytest.mark.parametrize("text", ["", "   ", "\x00\x01", "tea " * 30_000, "\ud800"])
def test_bad_prompts_get_one_sentence(text):
    for policy in (toy_policy(), HFPolicy(toy_model(82), toy_words(), adapts="everywhere")):
        with pytest.raises(DataError) as refused:
            policy.prefill(["tea", text])
        assert "\n" not in str(refused.value) and "prompt" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["שלום לך", "مرحبا", "tea\u202eaet", "<end> tea", "tea <user> rude <reply>", "🍵" * 50]
)
def test_strange_prompts_are_only_text(text):
    """Right to left, marks, signs: nothing of it is a mark of the form, and a reply comes back."""
    policy = toy_policy()
    marks = policy.words.tokenizer.convert_ids_to_tokens(policy.words.prompt(text))
    assert marks[0] == "<user>" and marks[-1] == "<reply>" and not {"<user>", "<reply>", "<end>"} & set(marks[1:-1])
    assert len(policy.texts(policy.sample(policy.prefill([text]), 2, noise(2)))) == 2


def test_words_refuse_what_could_not_end():
    words = toy_words()
    with pytest.raises(DataError, match="keep it"):
        Words.made(words.tokenizer, "<end>", tokens_of(words.tokenizer, ["good tea"]))
    with pytest.raises(DataError, match="form"):
        Words.made(words.tokenizer, "<end>", form="no place")
    with pytest.raises(DataError, match="does not write"):
        words.reply("zebra", 5)
    with pytest.raises(DataError, match="same"):
        CachedHead(llama_of(toy_model(82), 2), words)


def test_identity_tells_what_differs():
    """Model, split, dtype, kept tokens, form, temperature: each makes another policy; a new object does not."""
    words = toy_words()
    model = toy_model(len(words.tokenizer))
    base = CachedHead(llama_of(model, 2, words.kept, torch.float32), words)
    other_words = toy_words("<user>{}<reply>i")
    others = [
        CachedHead(llama_of(toy_model(len(words.tokenizer), seed=1), 2, words.kept, torch.float32), words),
        CachedHead(llama_of(model, 3, words.kept, torch.float32), words),
        CachedHead(llama_of(model, 2, words.kept, torch.bfloat16), words),
        CachedHead(llama_of(model, 2, words.kept, torch.float32), other_words),
        CachedHead(llama_of(model, 2, words.kept, torch.float32), words, temperature=0.5),
    ]
    assert len({p.identity for p in (base, *others)}) == 6
    assert CachedHead(llama_of(model, 2, words.kept, torch.float32), toy_words(), seed=5).identity == base.identity


def test_the_reply_alone_needs_an_adapter():
    with pytest.raises(DataError, match="everywhere"):
        HFPolicy(toy_model(82), toy_words())
    with pytest.raises(DataError, match="did you mean phi-2"):
        hf_policy("phi2")


def test_a_truncated_model_folder_gets_one_sentence(tmp_path):
    words = toy_words()
    toy_model(len(words.tokenizer)).save_pretrained(tmp_path)
    words.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:100], whole[:-7], b"", b"\x80\x04\x95pickle."):
        weights.write_bytes(content)
        with pytest.raises(DataError) as refused:
            hf_policy("phi-2", tmp_path)
        assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04\x95pickle.")
    with pytest.raises(DataError, match="safetensors"):
        hf_policy("phi-2", tmp_path)


def test_sums_of_a_reply_leave_padding_out():
    mask = torch.tensor([[True, True], [True, False]])
    assert per_reply(torch.tensor([[1.0, 2.0], [3.0, torch.nan]]), mask).tolist() == [3.0, 3.0]


@pytest.mark.slow
def test_the_kept_tokens_are_those_of_the_data():
    """Where SmolLM2 is unpacked and both packages are here; everywhere: rising ids, small enough to be worth it."""
    kept = smollm.kept_tokens()
    assert 10_000 < len(kept) < 20_000 and bool((kept.diff() > 0).all())
    if not (folder := smollm.model_cache() / f"smollm2-{smollm.SMOLLM2.weights_sha256[:12]}").is_dir():
        pytest.skip("SmolLM2 is not unpacked here")
    from transformers import AutoTokenizer

    try:
        fresh = smollm.chat_tokens(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except DataError as absent:
        pytest.skip(str(absent))
    assert torch.equal(fresh, kept), "python tools/chat_tokens.py"


def test_new_adapters_come_from_their_seed():
    model = toy_policy().model
    one, two, three = (new_adapter(model, 4, seed).tensors() for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, two)) and not torch.equal(one[0], three[0])
    assert added(new_adapter(model, 4), new_adapter(model, 2)).rank == 6
