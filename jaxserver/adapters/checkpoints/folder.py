"""What the readers of folders have in common: JSON, shards, and words for errors."""

import json
from pathlib import Path
from typing import Any

from jaxserver.ports.errors import BrokenCheckpoint

CONFIG = "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        BrokenCheckpoint: The file cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise broken(path, "JSON", str(error)) from error
    if not isinstance(content, dict):
        raise broken(path, "a JSON object", type(content).__name__)
    return content


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file beside the index holds which tensor.

    Raises:
        BrokenCheckpoint: The index says no such thing, or leads out of its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise broken(index, "an object `weight_map`", repr(weight_map)[:40])
    for name, file in weight_map.items():
        is_name = isinstance(file, str) and not {*file} & {"/", "\\", "\0", ":"}
        if not is_name or file in ("", ".", ".."):
            raise broken(index, "the name of a file beside it", repr(file)[:80], name)
    return weight_map


def not_in_shard(file: Path, index: str, name: str) -> BrokenCheckpoint:
    """The error for a tensor that is not where an index says that it is."""
    return broken(file, f"it to be here, as {index} says", "no such tensor", name)


def not_there(folder: Path, count: int, name: str) -> BrokenCheckpoint:
    """The error for a tensor that no file has."""
    return broken(folder, f"it among the {count} tensors", "no such tensor", name)


def broken(
    path: Path, expected: str, found: str, tensor: str | None = None
) -> BrokenCheckpoint:
    return BrokenCheckpoint(str(path), tensor, expected=expected, found=found)


def unreadable(path: Path, error: OSError) -> BrokenCheckpoint:
    return broken(path, "a readable file", error.strerror or str(error))
