"""Answers for the CPU the two calls that ZeRO-Inference's run_model.py makes of torch.cuda itself, past the accelerator.

Python loads a module of this name when it starts. Only that program has this folder on its path, and only where there is no GPU.
"""
import torch

if not torch.cuda.is_available():
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda device=None: None
