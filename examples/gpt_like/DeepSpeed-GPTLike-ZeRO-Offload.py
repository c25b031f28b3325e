"""ZeRO stage 3 with Offload: weights and optimizer states stay in host memory, and DeepSpeedCPUAdam updates them there.

    deepspeed --num_gpus 2 DeepSpeed-GPTLike-ZeRO-Offload.py
"""
import deepspeed
from course import finish, make_model, parse_arguments, train
from deepspeed.ops.adam import DeepSpeedCPUAdam


def main() -> None:
    args = parse_arguments("GPTLike under ZeRO-Offload", ds_config="ds_config_offload.json")
    deepspeed.init_distributed()
    model = make_model(args)
    optimizer = DeepSpeedCPUAdam(model.parameters(), lr=args.lr)
    engine, _, _, _ = deepspeed.initialize(args=args, model=model, optimizer=optimizer, config=args.ds_config)
    train(engine, args)
    engine.save_16bit_model(args.output_dir, "model.pt")
    finish(args)


if __name__ == "__main__":
    main()
