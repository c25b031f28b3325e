"""What a training run shows and leaves behind: a progress bar, metrics.jsonl, loss.png and sample.txt.

metrics.jsonl has one JSON object per line: {"step", "loss", "tokens_per_s", "lr", "memory_mib", "elapsed_s"} for every
optimizer step and {"step", "eval_loss", "elapsed_s"} for every evaluation. A resumed run appends.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm


def peak_memory_mib() -> float:
    """The most memory this process has held: of the GPU where there is one, else of the process. 0 where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Report:
    """Only the rank that is `visible` prints and writes; on the others every method returns at once."""

    def __init__(self, folder: Path, *, total_steps: int, first_step: int, visible: bool) -> None:
        self.visible, self.folder = visible, folder
        self.started = time.monotonic()
        self.smooth_speed = 0.0
        self.eval_losses: list[tuple[int, float]] = []
        if not visible:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics_path = folder / "metrics.jsonl"
        self.metrics = open(self.metrics_path, "a" if first_step else "w", encoding="utf-8")
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def say(self, message: str) -> None:
        if self.visible:
            self.bar.write(message, file=sys.stdout)
            sys.stdout.flush()

    def stepped(self, step: int, loss: float, tokens_per_s: float, lr: float) -> None:
        if not self.visible:
            return
        self.smooth_speed = tokens_per_s if self.smooth_speed == 0.0 else 0.9 * self.smooth_speed + 0.1 * tokens_per_s
        memory = peak_memory_mib()
        self._write(step=step, loss=loss, tokens_per_s=round(tokens_per_s, 1), lr=lr, memory_mib=round(memory, 1))
        self.bar.set_postfix_str(f"loss {loss:.3f}, {self.smooth_speed:,.0f} tokens/s, lr {lr:.2e}, {memory:,.0f} MiB", refresh=False)
        self.bar.update(1)

    def evaluated(self, step: int, loss: float) -> None:
        if not self.visible:
            return
        self.eval_losses.append((step, loss))
        self._write(step=step, eval_loss=loss)
        self.say(f"step {step}: evaluation loss {loss:.4f}")

    def finish(self, sampled: str) -> None:
        """Closes the bar, draws the curve, stores and prints the sampled text."""
        if not self.visible:
            return
        self.bar.close()
        self.metrics.close()
        (first_step, first), (last_step, last) = self.eval_losses[0], self.eval_losses[-1]
        print(f"evaluation loss {first:.4f} at step {first_step} -> {last:.4f} at step {last_step}: "
              f"down by {first - last:.2f} nats in {(time.monotonic() - self.started) / 60:.1f} minutes")
        if sampled:
            (self.folder / "sample.txt").write_text(sampled, encoding="utf-8")
            print(f"sampled text:\n{sampled}\n")
        drawn = draw_curve(self.metrics_path, self.folder / "loss.png")
        written = ["metrics.jsonl", *(["loss.png"] if drawn else []), *(["sample.txt"] if sampled else [])]
        print(f"written to {self.folder}: {', '.join(written)}" + ("" if drawn else " (no loss.png: matplotlib is not installed)"))

    def _write(self, **values: float) -> None:
        self.metrics.write(json.dumps({**values, "elapsed_s": round(time.monotonic() - self.started, 3)}) + "\n")
        self.metrics.flush()


def draw_curve(metrics: Path, target: Path) -> bool:
    """Draws training and evaluation loss over steps as PNG. False when matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axes.plot([x for x, _ in points], [y for _, y in points], style, label=label)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title="GPT training")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return True
