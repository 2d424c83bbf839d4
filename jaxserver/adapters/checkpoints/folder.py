"""What the readers of folders have in common: JSON, shards, and words for errors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic_core

from jaxserver.ports.errors import BrokenCheckpoint

CONFIG = "config.json"
_MAX_NAME_BYTES = 255
Place = TypeVar("Place")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        BrokenCheckpoint: The file cannot be read or holds something else.
    """
    try:
        content = pydantic_core.from_json(path.read_bytes())
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
        if not isinstance(file, str) or not _is_name(file):
            raise broken(index, "the name of a file beside it", repr(file)[:80], name)
    return weight_map


def files_of(index: Path) -> tuple[str, ...]:
    """Paths of the files that an index names, in order.

    Raises:
        BrokenCheckpoint: As `read_weight_map` does.
    """
    names = sorted({*read_weight_map(index).values()})
    return tuple(str(index.parent / name) for name in names)


def _is_name(file: str) -> bool:
    """Whether it names one file beside another; half a surrogate pair is no text."""
    if not file.isprintable() or {*file} & {"/", "\\", ":"}:
        return False
    return file not in ("", ".", "..") and len(file.encode()) <= _MAX_NAME_BYTES


def of_shards(
    index: Path, read: Callable[[Path], Mapping[str, Place]], parted_by: str = "."
) -> dict[str, Place]:
    """Every tensor that an index names, from the file that it says.

    Args:
        index: The file.
        read: What is in one of the files beside it, by name, parts joined by dots.
        parted_by: What joins the parts of a name in the index.

    Raises:
        BrokenCheckpoint: A tensor is not where the index says that it is.
    """
    weight_map = read_weight_map(index)
    shards = {
        file: read(index.parent / file) for file in sorted({*weight_map.values()})
    }
    places: dict[str, Place] = {}
    for written, file in weight_map.items():
        name = written.replace(parted_by, ".")
        if name not in shards[file]:
            expected = f"it to be here, as {index.name} says"
            raise broken(index.parent / file, expected, "no such tensor", name)
        places[name] = shards[file][name]
    return places


def place_of(places: Mapping[str, Place], name: str, folder: Path) -> Place:
    """Where a tensor is.

    Raises:
        BrokenCheckpoint: No file has it.
    """
    if name not in places:
        expected = f"it among the {len(places)} tensors"
        raise broken(folder, expected, "no such tensor", name)
    return places[name]


def broken(
    path: Path, expected: str, found: str, tensor: str | None = None
) -> BrokenCheckpoint:
    return BrokenCheckpoint(str(path), tensor, expected=expected, found=found)


def unreadable(path: Path, error: OSError) -> BrokenCheckpoint:
    return broken(path, "a readable file", error.strerror or str(error))
