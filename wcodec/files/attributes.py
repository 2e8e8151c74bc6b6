"""Who may read a file, and what else the file system keeps of one beside its bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

_ACL: Final = "system.posix_acl_access"
#: what is true of the bytes of one file alone: capabilities of programs, hashes and signatures
_OF_BYTES: Final = ("security.capability", "security.ima", "security.evm")
#: what a file system says that has no such thing, or a system that allows it to few
NOT_HERE: Final = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Attributes:
    """Mode, group and access list of a file; of one that is replaced, owner and extended
    attributes too.

    Attributes
    ----------
    mode
        The permissions, without bits such as setuid.
    uid
        The owner, or -1 for whoever writes.
    xattrs
        Extended attributes by name.
    """

    mode: int
    uid: int
    gid: int
    xattrs: dict[str, bytes]

    @classmethod
    def of(cls, path: str | os.PathLike[str], *, is_replaced: bool) -> Attributes | None:
        """Those of a file; ``None`` of a pipe or a device, whose mode says nothing of others.

        Parameters
        ----------
        is_replaced
            Whether they are for a file that takes its place, and not for one that is made of it.

        Raises
        ------
        OSError
            There is no such file.
        """
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return None
        xattrs = dict[str, bytes]()
        for name in _names(path):
            if name not in _OF_BYTES if is_replaced else name == _ACL:
                with contextlib.suppress(OSError):  # some are for the system alone
                    xattrs[name] = os.getxattr(path, name)
        uid = found.st_uid if is_replaced else -1
        return cls(stat.S_IMODE(found.st_mode) & 0o777, uid, found.st_gid, xattrs)

    def give(self, descriptor: int) -> None:
        """Give them to a file that nobody else may read yet, as far as the system allows it. It is
        never more readable than the one that has them: where group or access list cannot be kept,
        the group gets no more than all others.

        Raises
        ------
        OSError
            The disk fails.
        """
        if os.fstat(descriptor).st_gid != self.gid:
            with contextlib.suppress(OSError):  # of a group that the user is not in
                os.chown(descriptor, -1, self.gid)
        kept = os.fstat(descriptor).st_gid == self.gid
        if _ACL in _names(descriptor):  # a directory may have one for all that is new in it
            try:
                os.removexattr(descriptor, _ACL)
            except OSError:
                kept = False
        for name, value in self.xattrs.items():
            if name != _ACL or kept:
                try:
                    os.setxattr(descriptor, name, value)
                except OSError:  # not allowed, or there is no room for it
                    kept = kept and name != _ACL
        mode = self.mode if kept else self.mode & ~0o070 | self.mode & (self.mode & 0o007) << 3
        try:
            os.chmod(descriptor, mode)
        except OSError as e:
            if e.errno not in NOT_HERE:
                raise
        if self.uid not in (-1, os.fstat(descriptor).st_uid):
            with contextlib.suppress(OSError):  # only root may
                os.chown(descriptor, self.uid, -1)


def _names(file: str | os.PathLike[str] | int) -> list[str]:
    """Names of the extended attributes of a file."""
    try:
        return os.listxattr(file) if hasattr(os, "listxattr") else []
    except OSError:  # a file system without
        return []
