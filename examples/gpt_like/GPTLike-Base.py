"""The base: GPTLike in fp32 on one device, trained by plain PyTorch. The other programs of this folder start from here.

    python GPTLike-Base.py
"""
from pathlib import Path

import torch
from course import LossPrinter, make_loader, make_model, parse_arguments
from gpt_like import next_byte_loss


def main() -> None:
    args = parse_arguments("GPTLike without DeepSpeed", ds_config=None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(args).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loader = make_loader(args, batch_size=16)
    printer = LossPrinter(rank=0)
    for epoch in range(1, args.epochs + 1):
        loader.sampler.set_epoch(epoch)
        for number, (tokens, targets) in enumerate(loader, start=1):
            loss = next_byte_loss(model(tokens.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            printer.add(epoch, number, loss)
        printer.end_epoch(epoch)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), Path(args.output_dir) / "model.pt")
    print(f"saved in {args.output_dir}")


if __name__ == "__main__":
    main()
