"""What the default model can do of a constitution: writes outputs/published/tokens/verdicts.csv and revisions.csv.

    python tools/constitution.py [verdicts] [revisions]      none: both, each a few processor minutes

Prompts of training; no test prompt is used. verdicts: the share of Yes of the base model against the rewards, on pairs
of the mild start's replies to a prompt. revisions: what is better than a first reply of the mild start, by the sum of
the rewards: a redraw, which nobody criticised, and revisions by the mild start and by the base model. Intervals are
bootstraps over prompts.
"""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualppo.core.files import atomic_write
from dualppo.writing.cached_head import CachedHead
from dualppo.writing.constitution import PRINCIPLES, answers_to, pair_agreement, question_of, revised, yes_share
from dualppo.writing.experiment import place_of
from dualppo.writing.prompts import scored
from dualppo.writing.starts import Place, start_adapter

FOLDER = Path(__file__).resolve().parent.parent / "outputs" / "published" / "tokens"
LONGEST, CRITIQUE, EACH, GROUP = 16, 24, 24, 4
ASKED = ("safety", "topic")  # principles whose question has a reward of the same meaning


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, draws: int = 2000) -> tuple[float, float]:
    "95 % of a statistic of n prompts, given as rows, drawn again and again."
    g = np.random.default_rng(0)
    low, high = np.quantile([statistic(g.integers(0, n, n)) for _ in range(draws)], (0.025, 0.975))
    return float(low), float(high)


def agreement_rows(verdicts: dict[str, Tensor], rewards: dict[str, Tensor]) -> list[dict[str, object]]:
    "How often verdicts `[P, G]` and rewards `[P, G]` order two replies to a prompt alike."
    rows: list[dict[str, object]] = []
    for question, verdict in verdicts.items():
        for name, reward in rewards.items():
            each = np.array([pair_agreement(v[None], r[None]) for v, r in zip(verdict, reward)])
            low, high = bootstrap(lambda rows, each=each: each[rows, 0].sum() / max(1, each[rows, 1].sum()), len(each))
            alike, pairs = each.sum(0).tolist()
            rows.append(
                {"question": question, "reward": name, "prompts": len(each), "pairs": pairs, "alike": alike}
                | {"share": f"{alike / pairs:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}"}
            )
    return rows


def verdicts(place: Place, mild: CachedHead, base: CachedHead) -> list[dict[str, object]]:
    "Rows of verdicts.csv."
    kinds = [[p for p in place.task.train if p.provokes == provokes][:EACH] for provokes in (True, False)]
    prompts = kinds[0] + kinds[1]
    dice = torch.rand(len(prompts) * GROUP, LONGEST, generator=torch.Generator().manual_seed(1))
    texts = mild.texts(mild.sample(mild.prefill([p.text for p in prompts]), GROUP, dice))
    told = [p for p in prompts for _ in range(GROUP)]
    rewards = scored(place.task.rewards, told, texts).T.reshape(-1, len(prompts), GROUP)
    asked = {kind.name: kind for kind in PRINCIPLES if kind.name in ASKED}
    said = {
        name: yes_share(base, [question_of(kind, p, t) for p, t in zip(told, texts)]).view(-1, GROUP)
        for name, kind in asked.items()
    }
    return agreement_rows(said, dict(zip(place.task.rewards, rewards)))


def compared(who: str, before: Tensor, after: Tensor, texts: Sequence[str], first: Sequence[str]) -> dict[str, object]:
    "A row of revisions.csv from rewards `[n, K]` of first replies and of what came after."
    gain = (after - before).sum(1).numpy()
    low, high = bootstrap(lambda rows: gain[rows].mean(), len(gain))
    counts = {"better": int((gain > 1e-6).sum()), "worse": int((gain < -1e-6).sum())}
    same = sum(a.strip().lower() == b.strip().lower() for a, b in zip(texts, first))
    means = {f"{name}_gain": f"{x:.4f}" for name, x in zip(("help", "safe"), (after - before).mean(0).tolist())}
    interval = {"gain": f"{gain.mean():.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}"}
    return {"who": who, "n": len(gain)} | counts | {"same": same, "empty": sum(not t for t in texts)} | interval | means


def revisions(place: Place, mild: CachedHead, base: CachedHead) -> list[dict[str, object]]:
    "Rows of revisions.csv."
    prompts = [p for p in place.task.train if p.provokes][:EACH]
    g = torch.Generator().manual_seed(2)
    one, two, critique, revision = (torch.rand(EACH, t, generator=g) for t in (LONGEST, LONGEST, CRITIQUE, LONGEST))
    asked = [p.text for p in prompts]
    first, again = answers_to(mild, asked, one), answers_to(mild, asked, two)
    before = scored(place.task.rewards, prompts, first)
    rows = [compared("redraw", before, scored(place.task.rewards, prompts, again), again, first)]
    for who, critic in (("base model", base), ("mild start", mild)):
        texts = revised(critic, prompts, first, PRINCIPLES, (critique, revision)).revisions
        rows.append(compared(who, before, scored(place.task.rewards, prompts, texts), texts, first))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    place = place_of("smollm2")
    mild, base = (place.policy(start_adapter(place, name), shared=False) for name in ("mild", "base"))
    for name, made in (("verdicts", verdicts), ("revisions", revisions)):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        rows, text = made(place, mild, base), io.StringIO()
        out = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
        atomic_write(FOLDER / f"{name}.csv", text.getvalue())


if __name__ == "__main__":
    main()
