"""Lets programs that the suites' tests start with several processes meet on CPUs. Python imports this file at its start.

Accelerate chooses no backend where it sees no GPU and then takes every process for the only one, and programs name NCCL: both get Gloo.
Transformers takes bf16 for something that only GPUs have.
Nothing is imported here: each patch is made when the module that it concerns has been imported.
"""
import importlib.abc
import importlib.machinery
import os
import sys


def _patch_accelerate_state(module):
    original = module.PartialState._prepare_backend

    def prepare_backend(self, *args, **kwargs):
        backend, distributed_type = original(self, *args, **kwargs)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if backend is None and several and os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            backend = "gloo"
        return backend, distributed_type

    module.PartialState._prepare_backend = prepare_backend


def _patch_torch_distributed(module):
    original = module.init_process_group

    def init_process_group(backend=None, *args, **kwargs):
        return original("gloo" if backend == "nccl" else backend, *args, **kwargs)

    module.init_process_group = init_process_group


def _patch_training_args(module):
    module.is_torch_bf16_gpu_available = lambda: True


PATCHES = {
    "accelerate.state": _patch_accelerate_state,
    "torch.distributed": _patch_torch_distributed,
    "transformers.training_args": _patch_training_args,
}


class _PatchingLoader(importlib.abc.Loader):
    def __init__(self, loader, patch):
        self._loader, self._patch = loader, patch

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name):  # get_source and the like
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        patch = PATCHES.get(fullname)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, patch)
        return spec


sys.meta_path.insert(0, _Finder())
