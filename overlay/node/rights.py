"""What the person who exposes may open: the local API is open to a group, while the daemon itself is mostly root.

A target that is a file (a unix socket, a folder) is opened with the rights of the user who exposed it, at each use, so
that nobody can publish what only root may open, whatever becomes of a path later. The kernel decides, as it does for
that user: paths, groups, access lists. And whoever serves a socket sees that user at the other end (`SO_PEERCRED`), not
root.
"""

import os
import pwd
from typing import Final

from overlay.errors import Exit, UserError

_NOBODY: Final = 65534  # the group of users that this machine does not know


def user_name(uid: int) -> str:
    """For sentences: `bob`, or `user 1000` if it has no name here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def are_ours(uid: int) -> bool:
    """Whether this process's own rights are those that are to be used: its own user's, or root asks for it."""
    return uid in (0, os.geteuid())


def check_may_act_for(uid: int) -> None:
    """Raises `UserError` ("target-forbidden") if this process cannot take on the rights of that user."""
    if not are_ours(uid) and os.geteuid() != 0:
        raise UserError(
            "target-forbidden",
            f"This daemon belongs to {user_name(os.geteuid())} and cannot open files for {user_name(uid)}.",
            "Expose a port instead, or start a daemon of your own with --state.",
            Exit.REFUSED,
        )


def become(uid: int) -> None:
    """Take on the rights of that user for good, in this whole process. Raises `OSError`."""
    if are_ours(uid):
        return
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        gid, groups = _NOBODY, []
    else:
        gid, groups = entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
