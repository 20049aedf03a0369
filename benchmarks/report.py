"""Write RESULTS.md and scale.png from results/*.json; a test compares them. `python benchmarks/report.py`."""

import io
import json
from pathlib import Path

from machine import RESULTS

from dualppo.core.files import atomic_write

HERE = Path(__file__).resolve().parent


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table, first column to the left."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] + ["--:"] * (len(head) - 1), *rows])


def on(machine: dict) -> str:
    """One line about the machine."""
    return (
        f"*{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}, PyTorch {machine['torch']}; one thread.*"
    )


def speed_section(d: dict) -> str:
    """Epochs and time to reward."""
    race, goal = d["race"], d["to_reward"]
    rows = [
        [
            name,
            f"{race['seconds_per_epoch'][name]:.2f}",
            f"{race['ratio_to_maskable'][name]:.2f}×",
            ", ".join(f"{value:.2f}" for value in race["all_seconds"][name]),
        ]
        for name in race["seconds_per_epoch"]
    ]
    reached = [
        [
            name,
            "not reached" if at is None else f"{at:.2f}",
            "–" if at is None else f"{goal['speed_up'][name]:.1f}×",
            str(len(goal["curves"][name]) - 1),
            f"{max(reward for _, reward in goal['curves'][name]):.4f}",
        ]
        for name, at in goal["seconds_to_goal"].items()
    ]
    return "\n\n".join(
        [
            "## Speed",
            on(d["machine"]),
            f"One outer epoch: a rollout of {race['states']:,} states and {race['updates']} updates of both networks, "
            f"mini-batch 32, no weights to learn, γ = 0.",
            table(["", "s per epoch (best)", "against MaskablePPO", "all rounds"], rows),
            "Seconds of training until dev's average reward reaches the best that MaskablePPO reached "
            f"({goal['goal']:.4f}).",
            table(["", "s", "against MaskablePPO", "looks", "best reward seen"], reached),
            f"One seed of the `quick` profile, from features to metrics: {d['quick_run']['seconds']:.1f} s, of which "
            f"environments {d['quick_run']['seconds_environment']:.1f} s.",
        ]
    )


def roofline_section(d: dict) -> str:
    """The least time of an update, the share of it that is reached, and what is missing by part."""
    ms, rate, shape = lambda s: f"{1e3 * s:.2f}", d["rate"], d["shape"]
    rows = [
        [
            name,
            ms(part["least"]),
            ms(part["measured"]),
            ms(part["measured"] - part["least"]),
            f"{100 * (part['measured'] - part['least']) / d['whole']:.0f} %",
        ]
        for name, part in d["parts"].items()
    ]
    rows.append(
        ["update", ms(d["least"]), ms(d["whole"]), ms(d["whole"] - d["least"]), f"{100 * (1 - d['share']):.0f} %"]
    )
    reached = d["flops"] / d["parts"]["products"]["measured"]
    return "\n\n".join(
        [
            "## Roofline",
            on(d["machine"]),
            f"One update in closed form, a run of its own: {shape['batch']} states of {shape['features']} features, "
            f"{shape['candidates']} candidates of width {shape['width']}, {shape['hidden']} hidden units in each "
            f"network. It has {d['flops'] / 1e6:.0f} Mflop, moves {d['near_bytes'] / 1e6:.1f} MB of parameters, "
            f"gradients and moments and reads {d['far_bytes'] / 1e6:.1f} MB of data. In the same run a 1024×1024 "
            f"product reached {rate['rate'] / 1e9:.0f} Gflop/s, a triad or copy {rate['near'] / 1e9:.0f} GB/s at the "
            f"parameters' size and {rate['far'] / 1e9:.0f} GB/s in memory: **{ms(d['least'])} ms** at least. "
            f"Processor time of the best of {len(d['all_whole'])} epochs: **{ms(d['whole'])} ms**, "
            f"**{100 * d['share']:.0f} %** of the roofline ({'reached' if d['share'] >= 0.6 else 'missed'}: 60 %); "
            f"all epochs: {', '.join(map(ms, d['all_whole']))} ms; wall-clock time was at most "
            f"{d['wall_over_cpu']:.2f} times processor time.",
            table(["part", "least, ms", "measured, ms", "missing, ms", "of the update"], rows),
            "Parts are timed alone, less what the same calls take on tensors of width 2; an update of width 2 is "
            "*Python and dispatch*. *Not in the parts* is what an update takes beyond their sum: caches that the "
            f"parts leave cold for each other, shuffling. The products alone ran at {reached / 1e9:.0f} Gflop/s. Of "
            f"the matrix-multiply rate the update reaches {100 * d['flops'] / d['whole'] / rate['rate']:.0f} %; at "
            f"the roofline it would be {100 * d['flops'] / d['least'] / rate['rate']:.0f} %.",
        ]
    )


def scale_section(d: dict) -> str:
    """Time and memory against the number of states."""
    names = list(d["rows"][0]["steps"])
    rows = [
        [
            f"{row['states']:,}",
            f"{row['pool']:,}",
            *(f"{row['steps'][name]['seconds']:.2f}" for name in names),
            f"{max(step['peak_mb'] for step in row['steps'].values()) / 1e3:.2f}",
        ]
        for row in d["rows"]
    ]
    return "\n\n".join(
        [
            "## Scale",
            on(d["machine"]),
            f"Synthetic features, {d['rows'][0]['candidates']} candidates a state; seconds of each step for all four "
            "splits, and the peak memory of the whole process.",
            table(["training states", "pool", *names, "peak GB"], rows),
            "![time and memory against states](scale.png)",
        ]
    )


def encoding_section(d: dict) -> str:
    """The encoder in three precisions."""
    rows = [
        [
            name,
            f"{row['texts_per_second']:.0f}",
            f"{row['ratio']:.2f}×",
            f"{row['least_cosine']:.4f}",
            f"{row['mean_cosine']:.4f}",
        ]
        for name, row in d["rows"].items()
    ]
    return "\n\n".join(
        [
            "## Encoding",
            on(d["machine"]),
            f"all-MiniLM-L6-v2 on {d['texts']} texts of the tutorial.",
            table(["", "texts per second", "against fp32", "least cosine to fp32", "mean cosine"], rows),
        ]
    )


def scale_png(d: dict) -> bytes:
    """Time and memory over states, both axes logarithmic, with a line of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    states = [row["states"] for row in d["rows"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), dpi=90, layout="constrained")
    for name in d["rows"][0]["steps"]:
        left.plot(states, [row["steps"][name]["seconds"] for row in d["rows"]], "o-", label=name)
    left.plot(states, [states_ * left.get_ylim()[1] / 4 / states[-1] for states_ in states], "k:", label="linear")
    right.plot(states, [max(step["peak_mb"] for step in row["steps"].values()) / 1e3 for row in d["rows"]], "o-k")
    right.axhline(4, color="C3", ls=":")
    left.set(xscale="log", yscale="log", xlabel="training states", ylabel="seconds")
    right.set(xscale="log", xlabel="training states", ylabel="peak GB, the bound dotted", ylim=(0, 4.4))
    left.legend(fontsize=7, frameon=False)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    plt.close(figure)
    return out.getvalue()


def molma_section(d: dict) -> str:
    """A gradient per objective, and what is done with it."""
    rows = [
        [
            name,
            f"{s:.2f}",
            f"{d['ratio_to_so_help'][name]:.2f}×",
            ", ".join(f"{one:.2f}" for one in d["all_seconds"][name]),
        ]
        for name, s in d["seconds"].items()
    ]
    return "\n\n".join(
        [
            "## MOLMA",
            on(d["machine"]),
            f"{d['iterations']} iterations of 64 prompts in 8 mini-batches, rollouts included. Seed 003's Table 3 "
            f"prints {d['printed']:.2f}× for MOLMA.",
            table(["", "s (best)", "against SOhelp", "all rounds"], rows),
        ]
    )


def open_section(d: dict) -> str:
    """The open setting: what a pass, a look at dev and the grading of a seed cost."""
    first = next(iter(d["rows"].values()))
    sizes, states, few = first["sizes"], first["states"], first["few"]

    def grading(row: dict) -> float:
        judged, cheap = row["grade_s"] / few, row["unjudged_s"] / few
        return 2 * judged * sizes["test"] + cheap * (sizes["test"] + sizes["train"])

    rows = [
        [
            name,
            f"{row['parameters']:,}",
            f"{1e3 * row['pass_s'] / states:.1f}",
            f"{row['pass_s'] / states * sizes['train'] + row['once_s']:.0f}",
            f"{row['look_s'] / few * sizes['dev_stop']:.1f}",
            f"{grading(row):.0f}",
            f"{row['peak_mb'] / 1e3:.2f}",
        ]
        for name, row in d["rows"].items()
    ]
    return "\n\n".join(
        [
            "## Open setting",
            on(d["machine"]),
            f"All {first['replies']:,} replies are candidates. Processor seconds, measured on {states} states of "
            f"training and {few} of dev and test, scaled to {sizes['train']:,}, {sizes['dev_stop']} and "
            f"{sizes['test']:,}. A pass of dual PPO includes its weight rule; the grading asks the judge twice about "
            "every reply of every test state.",
            table(["arm", "parameters", "ms a state", "s a pass", "s a look", "s to grade", "peak GB"], rows),
        ]
    )


def writing_section(d: dict) -> str:
    """The writing policy: against TRL, trick by trick, its rate, and how it grows."""
    ours, trl, n = d["arms"]["all tricks"], min(d["trl"]["seconds"]), d["prompts"] * d["group"]
    rows = [
        [
            name,
            *(f"{row[part]:.2f}" for part in ("whole", "sampling", "reference", "update")),
            f"{row['whole'] / n:.3f}",
            f"{row['whole'] / ours['whole']:.2f}×",
        ]
        for name, row in d["arms"].items()
    ]
    rows.append(["TRL's GRPOTrainer", f"{trl:.2f}", "", "", "", f"{trl / n:.3f}", f"{d['ratio']:.2f}×"])
    rates = [
        f"{part} {d['flops'][part] / ours[part] / 1e9:.0f} Gflop/s "
        f"({100 * d['flops'][part] / ours[part] / d['rate']:.0f} %)"
        for part in ("sampling", "reference", "update")
    ]
    grown = [
        [name, *(f"{n}: {s:.2f}" for n, s in sizes.items()), f"{max(sizes.values()) / min(sizes.values()):.2f}×"]
        for name, sizes in d["growth"].items()
    ]
    return "\n\n".join(
        [
            "## A policy that writes",
            on(d["machine"]),
            f"{d['model']}; an iteration of {d['prompts']} prompts × {d['group']} replies × {d['longest']} tokens at "
            f"most ({ours['tokens']:.1f} on average; TRL: {d['trl']['tokens']:.1f}), GRPO with KL to the start, LoRA "
            "r = 8 on the last four layers in both, the whole model in fp32. Processor seconds, best of "
            f"{len(d['all_seconds']['all tricks'])} (TRL: of {len(d['trl']['seconds'])}); rewards cost nothing. "
            f"**{d['ratio']:.1f}×** less than TRL ({'reached' if d['ratio'] >= 10 else 'missed'}: 10×). Peak memory "
            f"{d['peak_mb'] / 1e3:.2f} GB ({'within' if d['peak_mb'] <= 3000 else 'above'} 3 GB) of a "
            "process that loads the model and does one iteration.",
            table(["", "s", "sampling", "reference", "update", "s a reply", "against all tricks"], rows),
            f"Each row leaves one trick out. A prompt is read once, in {d['prefill_seconds']:.2f} s; all replies are "
            f"written from {d['kept']:,} tokens. Of the rate of a 1024×1024 product in the same run "
            f"({d['rate'] / 1e9:.0f} Gflop/s): {'; '.join(rates)}.",
            table(["grows", "least", "middle", "most", "for four times as much"], grown),
        ]
    )


def pictures_section(d: dict) -> str:
    """Opening and encoding pictures, and what the block costs an epoch."""
    rows = [
        [
            f"{row['states']:,}",
            f"{row['without']:.2f}",
            f"{row['with']:.2f}",
            f"{row['with'] / row['without']:.2f}×",
            f"{row['adding']:.2f}",
        ]
        for row in d["rows"]
    ]
    ratio = d["pictures_per_second"] / d["texts_per_second"]
    return "\n\n".join(
        [
            "## Pictures",
            on(d["machine"]),
            f"{d['pictures']} pictures of 256 × 256: {d['opened_per_second']:.0f} opened and scaled a second, "
            f"{d['pictures_per_second']:.1f} encoded by EfficientNet-lite0, {ratio:.2f} of the texts that MiniLM "
            f"encodes in the same run. Twice as many took {d['twice_as_many']:.2f} times as long. Peak memory "
            f"{d['peak_mb'] / 1e3:.2f} GB, {d['peak_before_mb'] / 1e3:.2f} GB before the first picture.",
            f"{d['epochs']} epochs of the exact gradient in `stress`, without and with 1,280 columns of pictures and "
            f"one of presence; best of {d['rounds']}.",
            table(["training states", "s without", "s with", "price", "s to add the block"], rows),
        ]
    )


SECTIONS = {
    "speed": speed_section,
    "roofline": roofline_section,
    "scale": scale_section,
    "encoding": encoding_section,
    "pictures": pictures_section,
    "molma": molma_section,
    "open_setting": open_section,
    "writing": writing_section,
}


def results_text() -> str:
    """RESULTS.md: a section for every file of results."""
    read = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in SECTIONS
        if (RESULTS / f"{name}.json").exists()
    }
    head = (
        "# Benchmarks\n\nWritten by `python benchmarks/report.py` from `benchmarks/results/`; "
        "how the figures came about and what was tried: [NOTES.md](NOTES.md)."
    )
    return "\n\n".join([head, *(SECTIONS[name](figures) for name, figures in read.items())]) + "\n"


if __name__ == "__main__":
    if (RESULTS / "scale.json").exists():
        atomic_write(HERE / "scale.png", scale_png(json.loads((RESULTS / "scale.json").read_text())))
    atomic_write(HERE / "RESULTS.md", results_text())
