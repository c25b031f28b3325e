"""optimizer.params and scheduler.params, checked against the constructor that will get them.

Their keys are the constructor's own, so the core cannot check them; here each wrong one is named by its JSON path, with what was
found, what was expected, and the key that was probably meant.
"""
from __future__ import annotations

import difflib
import inspect
import math
from typing import Any, Callable, Collection, Mapping

from deepspeed.runtime.config import ConfigValidationError

# Keys that other programs use for the same thing, where spelling does not give it away.
_OFTEN_MEANT = {"learning_rate": "lr", "wd": "weight_decay", "decay": "weight_decay", "warmup_steps": "warmup_num_steps",
                "total_steps": "total_num_steps", "num_training_steps": "total_num_steps"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_not_negative(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_betas(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(beta) and 0 <= beta < 1 for beta in value)


def _is_eps(value: Any) -> bool:
    parts = value if isinstance(value, (list, tuple)) else [value]  # Adafactor has two, of which one may be null
    return any(part is not None for part in parts) and all(part is None or _is_not_negative(part) for part in parts)


def _is_number_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_number, value))


def _is_flag(value: Any) -> bool:
    return value in (True, False)


_RATE = (_is_not_negative, "a finite number that is not negative")
_FLAG = (_is_flag, "true or false")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("lr", "muon_lr", "adam_lr", "weight_decay", "momentum", "max_coeff", "min_coeff"), _RATE),
    **dict.fromkeys(("bias_correction", "adam_w_mode", "torch_adam", "fp32_optimizer_states", "eps_inside_sqrt", "amsgrad", "nesterov",
                     "per_head_muon"), _FLAG),
    "eps": (_is_eps, _RATE[1]), "betas": (_is_betas, "two numbers, each at least 0 and less than 1, such as [0.9, 0.999]")}

# What a constructor's annotation asks for; annotations with any other part are not checked.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: _is_number(value) and int(value) == value, "an integer"), "float": (_is_number, "a finite number"),
    "bool": _FLAG, "str": (lambda value: isinstance(value, str), "a text"), "None": (lambda value: value is None, "null"),
    **dict.fromkeys(("list", "list[float]"), (_is_number_list, "a list of numbers"))}


def check_values(section: str, params: Mapping[str, Any]) -> None:
    """Refuses values that no optimizer can train with."""
    for key, value in params.items():
        fits, expected = _RULES.get(key, (None, ""))
        if fits is not None and not fits(value):
            raise ConfigValidationError(f"{section}.params.{key} is {value!r}; expected {expected}")


def _fits_annotation(section: str, key: str, value: Any, annotation: Any) -> None:
    parts = str(getattr(annotation, "__name__", annotation)).split(" | ")
    if all(part in _KINDS for part in parts) and not any(_KINDS[part][0](value) for part in parts):
        expected = " or ".join(_KINDS[part][1] for part in parts)
        raise ConfigValidationError(f"{section}.params.{key} is {value!r}; expected {expected}")


def unknown_key(section: str, key: str, value: Any, owner: str, known: Collection[str]) -> str:
    """What to say of a key that its owner does not have."""
    close = [_OFTEN_MEANT[key]] if _OFTEN_MEANT.get(key) in known else difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{section}.params.{key} (found {value!r}) is not an option of {owner}: {hint}It takes {', '.join(known) or 'no options'}"


def construct(section: str, make: type, subject: Any, params: Mapping[str, Any], *, fixed: Mapping[str, Any] | None = None,
              also: Collection[str] = (), called: str = "") -> Any:
    """make(subject, **params, **fixed). `also`: keys of the section that were used before; `called`: the section's own name for the
    class. ConfigValidationError names what is wrong."""
    fixed = fixed or {}
    owner = make.__name__ if called.lower() in ("", make.__name__.lower()) else f"{called} ({make.__name__})"
    signature = [p for p in list(inspect.signature(make).parameters.values())[1:] if p.name not in fixed]
    options = {p.name: p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = list(dict.fromkeys([*options, *also]))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature)
    for key, value in params.items():
        if key in options:
            _fits_annotation(section, key, value, options[key].annotation)
        elif not takes_any:
            raise ConfigValidationError(unknown_key(section, key, value, owner, known))
    missing = [name for name, p in options.items() if p.default is p.empty and name not in params]
    if missing:
        names = " and ".join(f"{section}.params.{name}" for name in missing)
        raise ConfigValidationError(f"{names} must be given: {owner} has no default for it (\"auto\" counts as not given). Where "
                                    f"the value is a Python object, make the {section} in the program and pass it to initialize()")
    try:
        return make(subject, **params, **fixed)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigValidationError(f"{section}.params {dict(params)} cannot be used by {owner}: {error}") from error


def given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters that somebody decided: "auto" means the default."""
    return {key: value for key, value in (params or {}).items() if value != "auto"}
