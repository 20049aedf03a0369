"""A random Llama of thirty words for TRL's trainers, and what a watcher of its training sees.

As a program, FOLDER RULE …: one process of several; writes what it learned by each rule to FOLDER/RANK.json.
"""

import json
import os
import sys
from pathlib import Path

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from dualppo.losses.weights import RULES
from dualppo.trl import LearnedWeights

GROUP, START = 4, [0.9, 0.1]
WORDS = ["<pad>", "<end>", *(f"w{i}" for i in range(30))]


def tokenizer():
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


def model():
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **shape, pad_token_id=0, bos_token_id=1, eos_token_id=1))


def prompts():
    return Dataset.from_dict({"prompt": [f"w{i} w{i + 1} w{i + 2}" for i in range(24)]})


def share(completion, low, high):
    words = [int(word[1:]) for word in completion.split() if word.startswith("w")]
    return sum(low <= word < high for word in words) / max(1, len(words))


def help(completions, **more):
    return [share(c, 0, 16) for c in completions]


def safe(completions, **more):
    return [1 - share(c, 8, 24) for c in completions]


class Watch(TrainerCallback):
    """Logs as a reporter gets them, which TRL lists before our callback, and the trainer's own numbers with each."""

    def __init__(self):
        self.rows, self.rewards, self.advantages = [], [], []

    def on_log(self, args, state, control, logs=None, **more):
        if "reward" in logs:
            kept = self.trainer._logs
            self.rows.append({"step": state.global_step, **logs})
            self.rewards.append(torch.tensor([list(kept["rewards"][n]) for n in self.trainer.reward_func_names]).T)
            self.advantages.append(torch.tensor(list(kept["advantages"])))

    def column(self, key):
        return torch.tensor([row[key] for row in self.rows])

    def weights(self, names=("help", "safe")):
        return torch.stack([self.column(f"weights/{name}") for name in names], 1)


def make(folder, kind="GRPO", rule=None, funcs=(help, safe), trainer_class=None, **options):
    """A trainer on the tiny model, with `rule` if there is one, and its watcher."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "num_generations": GROUP,
        "max_completion_length": 8,
        "max_steps": 6,
        "logging_steps": 1,
        "learning_rate": 5e-3,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "reward_weights": START if len(funcs) == 2 else None,
        "beta": 0.0,
        "seed": 0,
    }
    watch = Watch()
    trainer = (trainer_class or getattr(trl, f"{kind}Trainer"))(
        model=model(),
        reward_funcs=list(funcs),
        args=getattr(trl, f"{kind}Config")(**settings | options),
        train_dataset=prompts(),
        eval_dataset=prompts().select(range(4)),
        processing_class=tokenizer(),
        callbacks=[watch],
    )
    watch.trainer = trainer
    if rule:
        trainer.add_callback(LearnedWeights(trainer, rule))
    return trainer, watch


def one_of_several(folder, name):
    """What this process saw and learned in a run of several."""
    trainer, watch = make(folder, rule=RULES[name](eta=0.3), ddp_backend="gloo", max_steps=4)
    own, counted = [], trainer._calculate_rewards

    def look(inputs, *rest):
        own.append(len(inputs))
        return counted(inputs, *rest)

    trainer._calculate_rewards = look
    trainer.train()
    return {
        "world": trainer.accelerator.num_processes,
        "own": own,
        "all": [len(rewards) for rewards in watch.rewards],
        "weights": watch.weights().tolist(),
        "last": trainer.reward_weights.tolist(),
        "means": [[row["rewards/help/mean"], row["rewards/safe/mean"]] for row in watch.rows],
    }


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps([one_of_several(folder, name) for name in names]))
