"""ZeRO stage 2 over several machines. The same command on every machine, each with its own --node_rank:

    torchrun --nnodes=2 --nproc_per_node=1 --node_rank=0 --master_addr=172.25.0.100 --master_port=29500 \
        DeepSpeed-GPTLike-Multihosts.py --ds_config ds_config.json --n_layer 6 --d_model 768 --n_head 12

or once, with a hostfile: deepspeed --hostfile hostfile DeepSpeed-GPTLike-Multihosts.py. The configuration names train_batch_size, so
the sum over all machines stays the same when their number changes: it must be micro-batch * accumulation steps * ranks. --output_dir
must be a folder that all machines see.
"""
import deepspeed
import torch
from course import finish, make_model, parse_arguments, save_weights, train


def main() -> None:
    args = parse_arguments("GPTLike on several machines", ds_config="ds_config.json")
    deepspeed.init_distributed()
    model = make_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    engine, _, _, _ = deepspeed.initialize(args=args, model=model, optimizer=optimizer, config=args.ds_config)
    if engine.local_rank == 0:
        print(f"rank {engine.global_rank} of {engine.world_size} is the first of its machine", flush=True)
    train(engine, args)
    save_weights(engine.module.state_dict(), args)
    finish(args)


if __name__ == "__main__":
    main()
