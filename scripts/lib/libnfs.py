"""libnfs's synchronous calls over NFSv4.0, for the scripts beside this folder. libnfs 4.0 is what Debian 12 has."""

import ctypes
import os
import time

# What libnfs 4.0 sends in one call over NFSv4.
WRITE_BYTES = 2048
EEXIST, ENOENT, ENOSPC, EROFS = 17, 2, 28, 30
# Errors that say what the server thinks of the file; all others are about the connection or the client's state.
ABOUT_THE_FILE = (1, ENOENT, 13, EEXIST, ENOSPC, EROFS)
LOCK, UNLOCK = 1, 2


class Interrupted(Exception):
    """The server or a connection has gone away; what was asked for may be done or not."""


class Refused(Exception):
    """The server has answered with an error."""

    def __init__(self, number, text):
        super().__init__(f"{os.strerror(number)}: {text}")
        self.number = number


class Mount:
    """An export as libnfs mounts it: NFSv4.0."""

    library, count = None, 0

    def __init__(self, server, path, port):
        if Mount.library is None:
            Mount.library = ctypes.CDLL("libnfs.so.13")
            for name in ("nfs_init_context", "nfs_parse_url_dir", "nfs_readdir"):
                getattr(Mount.library, name).restype = ctypes.c_void_p
            Mount.library.nfs_get_error.restype = ctypes.c_char_p
        self.context = ctypes.c_void_p(Mount.library.nfs_init_context())
        # Two of one name are one client to the server, and the first is thrown out.
        Mount.count += 1
        Mount.library.nfs4_set_client_name(self.context, f"soak {os.getpid()} {Mount.count}".encode())
        url = f"nfs://{server}{path}?version=4&nfsport={port}".encode()
        if not Mount.library.nfs_parse_url_dir(self.context, url):
            raise RuntimeError(f"libnfs does not take {url}")
        Mount.library.nfs_set_timeout(self.context, 15000)
        Mount.library.nfs_set_autoreconnect(self.context, 0)
        try:
            self._call("nfs_mount", server.encode(), path.encode())
        except BaseException:
            self.close()
            raise

    def close(self):
        """Gives the connection up. libnfs 4.0 crashes when it takes a broken one down, so it does not."""
        if self.context:
            descriptor = Mount.library.nfs_get_fd(self.context)
            if descriptor >= 0:
                os.close(descriptor)
            self.context = None

    def _call(self, name, *arguments):
        result = getattr(Mount.library, name)(self.context, *arguments)
        if result < 0:
            text = (Mount.library.nfs_get_error(self.context) or b"").decode(errors="replace")
            if -result in ABOUT_THE_FILE and "STALE" not in text:
                raise Refused(-result, text)
            raise Interrupted(f"{name}: {-result} {text}")
        return result

    def _open(self, name, flags):
        handle = ctypes.c_void_p()
        if flags & os.O_CREAT:
            self._call("nfs_open2", name.encode(), flags, 0o644, ctypes.byref(handle))
        else:
            self._call("nfs_open", name.encode(), flags, ctypes.byref(handle))
        return handle

    def write(self, name, data, is_new):
        """Writes a file from its beginning, and flushes it."""
        try:
            handle = self._open(name, os.O_RDWR | (os.O_CREAT if is_new else 0))
        except Refused as error:
            # libnfs 4.0 creates no file that is there; a call that was interrupted has made it.
            if error.number != EEXIST:
                raise
            handle = self._open(name, os.O_RDWR)
        try:
            for at in range(0, len(data), WRITE_BYTES):
                part = data[at : at + WRITE_BYTES]
                self._call(
                    "nfs_pwrite", handle, ctypes.c_uint64(at), ctypes.c_uint64(len(part)), ctypes.c_char_p(part)
                )
            self._call("nfs_fsync", handle)
        except Refused:
            Mount.library.nfs_close(self.context, handle)
            raise
        self._call("nfs_close", handle)

    def read(self, name):
        handle = self._open(name, os.O_RDONLY)
        data = b""
        buffer = ctypes.create_string_buffer(16384)
        while True:
            count = self._call(
                "nfs_pread", handle, ctypes.c_uint64(len(data)), ctypes.c_uint64(len(buffer)), buffer
            )
            if count == 0:
                self._call("nfs_close", handle)
                return data
            data += buffer.raw[:count]

    def rename(self, old, new):
        self._call("nfs_rename", old.encode(), new.encode())

    def unlink(self, name):
        self._call("nfs_unlink", name.encode())

    def make_folder(self, name):
        self._call("nfs_mkdir", name.encode())

    def names(self, folder):
        found = []
        handle = ctypes.c_void_p()
        self._call("nfs_opendir", folder.encode(), ctypes.byref(handle))
        while entry := Mount.library.nfs_readdir(self.context, handle):
            # `struct nfsdirent` begins with the next one and the name.
            name = ctypes.cast(entry, ctypes.POINTER(ctypes.c_char_p))[1].decode()
            if name not in (".", ".."):
                found.append(name)
        Mount.library.nfs_closedir(self.context, handle)
        return found

    def mark_under_lock(self, name, mark):
        """Writes a mark into a file with it locked, and returns what is there a moment later; `None` when somebody else has
        the lock. libnfs 4.0 counts wrongly after a lock: the mount is of no use afterwards."""
        handle = self._open(name, os.O_RDWR)
        if Mount.library.nfs_lockf(self.context, handle, LOCK, ctypes.c_uint64(len(mark))) < 0:
            if b"DENIED" in Mount.library.nfs_get_error(self.context):
                return None
            raise Interrupted("the lock is neither had nor denied")
        zero, length = ctypes.c_uint64(0), ctypes.c_uint64(len(mark))
        self._call("nfs_pwrite", handle, zero, length, ctypes.c_char_p(mark))
        time.sleep(0.02)
        buffer = ctypes.create_string_buffer(len(mark))
        self._call("nfs_pread", handle, zero, length, buffer)
        self._call("nfs_lockf", handle, UNLOCK, length)
        return buffer.raw
