"""The starter of one node's ranks in multi-node runs, by name; not built yet. The program `deepspeed` starts ranks on this machine."""
from deepspeed._lazy import not_built

main = not_built("deepspeed.launcher.launch.main", "starting one node of a multi-node run")

if __name__ == "__main__":
    main()
