"""ZeRO stage 3: each rank keeps its share of weights, gradients and optimizer states. No rank has whole weights, so the final ones
are gathered while they are written.

    deepspeed --num_gpus 2 DeepSpeed-GPTLike-ZeRO-3.py
"""
import deepspeed
import torch
from course import finish, make_model, parse_arguments, train


def main() -> None:
    args = parse_arguments("GPTLike under ZeRO stage 3", ds_config="ds_config_zero3.json")
    deepspeed.init_distributed()
    model = make_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    engine, _, _, _ = deepspeed.initialize(args=args, model=model, optimizer=optimizer, config=args.ds_config)
    train(engine, args)
    engine.save_16bit_model(args.output_dir, "model.pt")
    finish(args)


if __name__ == "__main__":
    main()
