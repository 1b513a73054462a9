"""Ground that several unit tests stand on: a small disk that is real, and permissions that hold for root as well."""

import ctypes
import os
import shutil
import subprocess

import pytest

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@pytest.fixture
def bound_by_permissions():
    """This thread may do to files what their permissions say and no more, even if it is root's."""
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(CAPABILITY_VERSION, 0), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    before = sets[0].effective
    sets[0].effective = before & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    yield
    sets[0].effective = before
    assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def small_disk(tmp_path, request):
    """An empty disk of the size with which a test is parametrised indirectly (`1m`)."""
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)
