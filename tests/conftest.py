"""Shared by all tests: one thread a process, what several files need and none changes.

And the optional folder of real dialogue texts.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

# What is drawn is the same in every run, so that a change is judged by what it changed. `HYPOTHESIS_PROFILE=search`
# draws anew, and so does the fuzzing campaign in tests/fuzz. No test is timed: machines are shared.
settings.register_profile("again", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "again"))


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A small features file."""
    from toys import write_toy

    return write_toy(tmp_path_factory.mktemp("toy") / "toy.safetensors", dialogues=440, turns=2)


@pytest.fixture(scope="session")
def stress():
    """The environments of seed 0 on the shipped features."""
    from dualppo.bench.candidates import STRESS
    from dualppo.bench.env import make_envs
    from dualppo.bench.features import load_features

    return make_envs(load_features(), STRESS, seed=0)


@pytest.fixture
def without_processes(monkeypatch):
    """A grid's runs in this process: what their own processes do is asked in test_runs and test_survival."""
    from dualppo.runs import execution, parallel

    def done(run, outputs, *_):
        execution.run_once(run, outputs)
        return parallel.Outcome(run, "done")

    monkeypatch.setattr(parallel, "run_child", done)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of texts that $DUALPPO_DATA names, else ../shared/data; without one the test is skipped."""
    for folder in (os.environ.get("DUALPPO_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "wow").is_dir():
            return Path(folder)
    pytest.skip("needs dialogue texts: set DUALPPO_DATA to a folder that holds wow/")
