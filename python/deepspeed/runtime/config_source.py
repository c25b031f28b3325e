"""Reads what users call a configuration: a dictionary, a file, JSON text with comments, or base64 of JSON text."""
from __future__ import annotations

import base64
import binascii
import json
import os
from typing import Any, Mapping


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    made: dict = {}
    repeated = []
    for key, value in pairs:
        if key in made:
            repeated.append(key)
        made[key] = value
    if repeated:
        raise ValueError(f"the configuration has duplicate keys: {', '.join(sorted(set(repeated)))}: keep one of each")
    return made


def _plain(value: Any) -> Any:
    """JSON for values that configurations built in Python contain."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy and torch scalars
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    name = str(value)
    if name.startswith("torch."):
        return {"torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float32": "fp32"}.get(name, name)
    raise TypeError(f"a configuration cannot contain {type(value).__name__}: {value!r}")


def without_comments(text: str) -> str:
    """Removes //, # and /* */ comments and trailing commas, leaving strings alone."""
    out: list[str] = []
    position, length = 0, len(text)
    while position < length:
        char = text[position]
        if char == '"':
            end = position + 1
            while end < length and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            out.append(text[position:end + 1])
            position = end + 1
        elif char == "#" or text.startswith("//", position):
            end = text.find("\n", position)
            position = length if end < 0 else end
        elif text.startswith("/*", position):
            end = text.find("*/", position + 2)
            position = length if end < 0 else end + 2
        elif char in "]}":
            while out and out[-1].isspace():
                out.pop()
            if out and out[-1] == ",":
                out.pop()
            out.append(char)
            position += 1
        else:
            out.append(char)
            position += 1
    return "".join(out)


def _from_text(text: str) -> dict:
    parsed = json.loads(without_comments(text), object_pairs_hook=_no_duplicates)
    if not isinstance(parsed, dict):
        raise ValueError(f"a configuration is a JSON object, found {type(parsed).__name__}")
    return parsed


def _checked(text: str, origin: str) -> dict:
    try:
        return _from_text(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{origin} is not valid JSON: {error}") from error


def _from_base64(text: str) -> dict | None:
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("utf-8")
        return _from_text(decoded)
    except (binascii.Error, UnicodeDecodeError, json.JSONDecodeError):
        return None


def read_source(source: Any) -> tuple[dict, str]:
    """(the user's dictionary, JSON text for the core). A dictionary is returned as it is, not copied."""
    if isinstance(source, dict):
        return source, json.dumps(source, default=_plain)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        raise ValueError("expected a dictionary, a path to a JSON file, or base64 of JSON text as configuration, "
                         f"found {type(source).__name__}")
    if os.path.isdir(source):
        raise ValueError(f"the configuration {source!r} is a directory; expected the path of a JSON file")
    if os.path.isfile(source):
        with open(source, encoding="utf-8") as file:
            text = file.read()
        return _checked(text, source), text
    if source.lstrip().startswith("{"):
        return _checked(source, "the text given as configuration"), source
    decoded = _from_base64(source)
    if decoded is None:
        raise ValueError(f"the configuration {source!r} is neither an existing file nor base64 of JSON text")
    return decoded, json.dumps(decoded)
