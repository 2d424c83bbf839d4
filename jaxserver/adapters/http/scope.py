"""Where a request points, seen from our own application."""

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path below the one that our application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    is_below = path == root or path.startswith(f"{root}/")
    return path[len(root) :] if is_below else path
