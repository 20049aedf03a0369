"""A stored writing policy: by name, from a damaged file, and at the command line."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from conftest import ROOT

import dualppo
from dualppo.core.errors import DataError
from dualppo.writing.cached_head import toy_policy
from dualppo.writing.stored import load_speaker, save_writer


@pytest.fixture
def stored(tmp_path):
    policy = toy_policy()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    save_writer(policy, tmp_path / "mine.safetensors", "toy", "shaken")
    return policy, tmp_path / "mine.safetensors"


def test_by_name_and_by_file(stored, monkeypatch):
    policy, path = stored
    monkeypatch.setenv("DUALPPO_WRITERS", str(path.parent))
    one, two = dualppo.load("mine"), dualppo.load(path)
    said, again, base = (
        [speaker.reply("how are you", seed) for seed in range(5)] for speaker in (one, two, dualppo.load("toy"))
    )
    assert said == again != base and one.about == "shaken"
    asked = policy.prefill(["how are you"])
    replies = policy.sample(asked, 2, torch.rand(2, 6, generator=torch.Generator().manual_seed(0)))
    assert (one.policy.log_probs(asked, replies) - replies.logp).abs().max() < 0.1


def test_what_does_not_fit_gets_one_sentence(stored, tmp_path):
    policy, path = stored
    whole = path.read_bytes()
    tensors, header = safetensors.torch.load(whole), json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    own = json.loads(header["__metadata__"]["adapter"])

    def again(changed, kept=tensors):
        return safetensors.torch.save(kept, {"adapter": json.dumps(own | changed)})

    some = next(iter(tensors))
    wrong = [
        whole[:50], whole[:-3], b"", b"\x80\x04.", b"[" * 1000, again({"rank": 3}), again({"layers": 9}),
        again({"notes": {}}), again({"scale": "much"}), again({"split": -1}), safetensors.torch.save(tensors),
        again({"notes": own["notes"] | {"model": "x"}}), again({"notes": own["notes"] | {"base": "y"}}),
        again({}, {n: t for n, t in tensors.items() if n != some}),
        again({}, tensors | {some: tensors[some] * torch.nan}),
    ]  # fmt: skip
    for i, content in enumerate(wrong):
        path.write_bytes(content)
        with pytest.raises(DataError) as refused:
            load_speaker(path)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value), i
    with pytest.raises(DataError, match="did you mean toy"):
        load_speaker("toyy", [tmp_path / "none"])
    with pytest.raises(DataError, match="base"):
        save_writer(policy, path, "gpt")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        save_writer(policy, tmp_path / "file" / "x.safetensors", "toy")


def chat(lines: bytes, *args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    call = [sys.executable, "-c", "import sys; from dualppo.cli import main; sys.exit(main())", "chat", *args]
    return subprocess.run(call, input=lines, capture_output=True, env=env)


def test_chat_answers_line_by_line():
    said = "how are you\n\x07\x1b\nשלום\n" + "tea " * 30_000 + "\nwhat do you like\n\nnever asked\n"
    done = chat(said.encode(), "toy", "--longest", "5")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0 and not done.stderr, done.stderr
    speaker = load_speaker("toy")
    assert lines[1] == speaker.reply("how are you", 0, 5) and lines[-1] == speaker.reply("what do you like", 4, 5)
    assert "empty" in lines[2] and "shorten" in " ".join(lines[4:-1])


@pytest.mark.slow
def test_chat_refuses_what_it_does_not_know():
    for args in (["nobody"], ["toy", "--longest", "0"]):
        done = chat(b"", *args)
        assert done.returncode != 0 and b"Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 4
