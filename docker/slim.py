"""Takes out of a virtual environment what no run of Grapevine needs: slim.py FOLDER.

Tests that packages ship, torch's C++ headers and test programs (there is no compiler in the image), symbols that only a debugger reads.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

TORCH = (
    "include",
    "share",
    "test",
    "bin/*_api",
    "bin/*Test",
    "bin/protoc*",
    "bin/test_*",
    "bin/*.ptl",
    "bin/*.pt",
    "lib/*_test.so",
)
TORCH_TESTS = (
    "lib/libtorchbind_test.so",
    "lib/libbackend_with_compiler.so",
    "lib/libaoti_custom_ops.so",
    "lib/libjitbackend_test.so",
)
PACKAGES_WITH_TESTS = ("matplotlib", "networkx", "numpy", "scipy", "sympy", "mpl_toolkits", "fontTools")


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def slim(packages: Path) -> None:
    for pattern in (*TORCH, *TORCH_TESTS):
        for found in list((packages / "torch").glob(pattern)):
            remove(found)
    for package in PACKAGES_WITH_TESTS:
        for tests in list((packages / package).rglob("tests")):
            remove(tests)
    for library in (packages / "torch" / "lib").glob("lib*.so"):
        subprocess.run(["strip", "--strip-unneeded", str(library)], check=True)


if __name__ == "__main__":
    (packages,) = Path(sys.argv[1]).glob("lib/python3.*/site-packages")
    slim(packages)
