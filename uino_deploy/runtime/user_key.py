"""The key by which a user knows files again that this program wrote for them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_SIZE = 32


def user_key() -> bytes | None:
    """Return 32 random bytes that only this user can read, made when they are first asked for.

    They are kept in `$XDG_STATE_HOME/uino-deploy/cache.key`, by default below `~/.local/state`.

    Returns:
        The key; None where it cannot be kept, or where others could have read or written it.
    """
    try:
        path = _folder() / "cache.key"
        if not path.exists():
            _make(path)
        if not owned(path) or path.stat().st_size != _SIZE:
            return None
        return path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None


def owned(path: Path) -> bool:
    """Return whether a file or folder is this user's, closed to all others, and no link."""
    if os.name == "nt":  # a profile's folders are the user's own there
        return not path.is_symlink()
    about = path.lstat()
    return about.st_uid == os.geteuid() and not about.st_mode & 0o077 and not path.is_symlink()


def made_private(path: Path) -> bool:
    """Make a folder unless it exists; close it to others; return whether it is `owned` now.

    What a link leads to, and another user's folder, is left as it is, even by root.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink():
        return False
    if os.name != "nt" and path.lstat().st_uid == os.geteuid():
        path.chmod(0o700)
    return owned(path)


def _folder() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "uino-deploy"


def _make(path: Path) -> None:
    """Write a new key, unless another process is quicker."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_SIZE))
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink()
