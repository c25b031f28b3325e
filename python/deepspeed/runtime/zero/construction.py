"""What zero.Init patches while models are built, and how it is undone.

Three things: every module class's __init__ (parameters are sharded when the outermost __init__ of an object returns), the
functions behind Module.apply and Transformers' initialisation (an initialiser must see whole parameters), and torch's tensor constructors. Nested contexts
share the patches; the innermost context decides how a module is sharded.
"""
from __future__ import annotations

import functools
import sys
from typing import Any, Callable

import torch
import torch.nn as nn

_ORIGINAL_FILLS = {name: getattr(nn.init, name) for name in ("kaiming_uniform_", "uniform_", "normal_")}
_FILLS_OF = {nn.Linear: ("kaiming_uniform_", "uniform_"), nn.Embedding: ("normal_",)}
_contexts: list[Any] = []  # active zero.Init contexts, innermost last
_undo: list[Callable[[], None]] = []  # how to take the patches back, newest last


def enter(context: Any) -> None:
    if not _contexts:
        _contexts.append(context)
        _patch()
    else:
        _contexts.append(context)
        _patch_constructors()


def leave(context: Any) -> None:
    _contexts.remove(context)
    if not _contexts:
        _unpatch()
    elif _undo:
        _patch_constructors()


def without_values(module: nn.Module) -> bool:
    """Whether a new module's parameters hold whatever was in memory, because somebody who is about to load a checkpoint has switched
    torch's initialisers off (Transformers' from_pretrained does)."""
    fills = _FILLS_OF.get(type(module), ())
    return bool(fills) and all(getattr(nn.init, name) is not _ORIGINAL_FILLS[name] and _does_nothing(getattr(nn.init, name)) for name in fills)


def _does_nothing(fill: Callable) -> bool:
    probe = torch.full((2, 2), 7.0)
    try:
        fill(probe)
    except Exception:  # one that wants other arguments does something
        return False
    return bool((probe == 7.0).all())


def suspend() -> None:
    _unpatch()


def resume() -> None:
    if _contexts and not _undo:
        _patch()


def _set(owner: Any, name: str, value: Any) -> None:
    """owner.name = value, to be undone; a name that the owner only inherited is removed again."""
    own = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    _undo.append(lambda: delattr(owner, name) if own is _MISSING else setattr(owner, name, own))


_MISSING = object()


def _patch() -> None:
    pending = [nn.Module]
    seen = {nn.Module}
    while pending:
        for cls in pending.pop().__subclasses__():
            if cls not in seen:
                seen.add(cls)
                pending.append(cls)
                _wrap_init(cls)
    _set(nn.Module, "__init_subclass__", classmethod(_on_new_class))
    if _contexts[-1].override_module_apply:
        _set(nn.Module, "apply", _apply_with_whole_parameters(nn.Module.apply))
        _patch_transformers()
    _patch_constructors()


def _patch_constructors() -> None:
    for name, constructor in _contexts[-1].tensor_constructors().items():
        _set(torch, name, constructor)


def _unpatch() -> None:
    while _undo:
        _undo.pop()()


def _on_new_class(cls, **kwargs: Any) -> None:
    super(nn.Module, cls).__init_subclass__(**kwargs)
    _wrap_init(cls)
    if _contexts[0].override_module_apply:
        _patch_transformers()  # a program's first model imports Transformers' modules inside the context


def _wrap_init(cls: type) -> None:
    if "__init__" not in vars(cls):
        return
    original = vars(cls)["__init__"]

    @functools.wraps(original)
    def construct(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        # Base classes run their own wrapped __init__ on the same object: only the outermost one ends construction.
        outermost = "_ds_constructing" not in module.__dict__
        if outermost:
            module.__dict__["_ds_constructing"] = True
        try:
            original(module, *args, **kwargs)
        finally:
            if outermost:
                module.__dict__.pop("_ds_constructing", None)
        if outermost and _contexts and _undo:
            _contexts[-1].convert_own(module)

    setattr(cls, "__init__", construct)
    _undo.append(lambda: _unwrap_init(cls, construct, original))


def _unwrap_init(cls: type, construct: Callable, original: Callable) -> None:
    """Who has wrapped __init__ since (a decorator of a class that was defined inside the context) keeps its wrapper: `construct` beneath
    it does nothing outside of contexts."""
    if vars(cls).get("__init__") is construct:
        setattr(cls, "__init__", original)


def _whole(*parts: nn.Module) -> Any:
    """A context in which the sharded parameters of `parts` themselves are whole; what rank 0 writes into them stays."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, is_zero_param
    return GatheredParameters([p for part in parts for p in part.parameters(recurse=False) if is_zero_param(p)], modifier_rank=0)


def _apply_with_whole_parameters(apply: Callable) -> Callable:

    @functools.wraps(apply)
    def apply_whole(module: nn.Module, fn: Callable[[nn.Module], None]) -> nn.Module:
        if getattr(fn, "_ds_gathers", False):
            return apply(module, fn)

        @functools.wraps(fn)
        def gathered(part: nn.Module) -> None:
            with _whole(part):
                fn(part)

        gathered._ds_gathers = True
        return apply(module, gathered)

    return apply_whole


def _patch_transformers() -> None:
    """Transformers since 4.52 initialises weights in a walk of its own instead of Module.apply, and would write into the empty tensors
    of sharded parameters. Older versions use apply; the newest gather the parameters themselves where they know of stage 3."""
    models = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if models is None or not hasattr(models, "initialize_weights") or hasattr(models._initialize_weights, "_ds_initializes_whole"):
        return
    initialize = models._initialize_weights

    @functools.wraps(initialize)
    def initialize_whole(model: nn.Module, part: nn.Module, *args: Any, **kwargs: Any) -> None:
        if _transformers_gathers():
            initialize(model, part, *args, **kwargs)
        elif not getattr(part, "_is_hf_initialized", False):
            # Some models write into the layers of a block when they are given the block (GPT-2: c_proj.weight).
            layers = [child for child in part.children() if next(child.children(), None) is None]
            with _whole(part, *layers):
                initialize(model, part, *args, **kwargs)

    initialize_whole._ds_initializes_whole = True
    _set(models, "_initialize_weights", initialize_whole)


def _transformers_gathers() -> bool:
    """Whether Transformers calls its initialisers with whole parameters, on rank 0 alone: while an HfDeepSpeedConfig has stage 3."""
    integration = sys.modules.get("transformers.integrations.deepspeed")
    return hasattr(integration, "initialize_weights_zero3") and integration.is_deepspeed_zero3_enabled()
