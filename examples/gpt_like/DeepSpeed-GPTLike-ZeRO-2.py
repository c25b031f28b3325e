"""ZeRO stage 2: each rank keeps its share of gradients and of the optimizer's states. The optimizer is the program's own AdamW, and wins
over the configuration's; the scheduler is the configuration's.

    deepspeed --num_gpus 2 DeepSpeed-GPTLike-ZeRO-2.py
"""
import deepspeed
import torch
from course import finish, make_model, parse_arguments, save_weights, train


def main() -> None:
    args = parse_arguments("GPTLike under ZeRO stage 2", ds_config="ds_config_zero2.json")
    deepspeed.init_distributed()
    model = make_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    engine, _, _, _ = deepspeed.initialize(args=args, model=model, optimizer=optimizer, config=args.ds_config)
    train(engine, args)
    save_weights(engine.module.state_dict(), args)
    finish(args)


if __name__ == "__main__":
    main()
