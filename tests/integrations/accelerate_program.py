"""What a user of Accelerate writes; test_accelerate.py starts it with `accelerate launch`. Each rank prints one line of JSON."""
from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]

import torch  # noqa: E402
from accelerate import Accelerator, InitProcessGroupKwargs  # noqa: E402

from tiny import build, llama, text_blocks  # noqa: E402


def main() -> None:
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    model = build(llama(pad_token_id=None))  # with one, Transformers 4.57 cannot build under stage 3 without loading
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batches = torch.utils.data.DataLoader(text_blocks(32), batch_size=2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    losses = []
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach().reshape(1)).mean().item())
    stage = getattr(model, "zero_optimization_stage", lambda: None)()
    line = {"rank": accelerator.process_index, "world": accelerator.num_processes, "engine": type(model).__name__, "stage": stage,
            "steps": model.global_steps, "losses": losses}
    sys.stdout.write(json.dumps(line) + "\n")  # in one piece: ranks write to one pipe
    sys.stdout.flush()
    accelerator.end_training()


if __name__ == "__main__":
    main()
