"""Shared by all tests: one thread a process, and the optional folder of real dialogue texts."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of texts that $DUALPPO_DATA names, else ../shared/data; without one the test is skipped."""
    for folder in (os.environ.get("DUALPPO_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "wow").is_dir():
            return Path(folder)
    pytest.skip("needs dialogue texts: set DUALPPO_DATA to a folder that holds wow/")
