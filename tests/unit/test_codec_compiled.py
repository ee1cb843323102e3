"""Compiled kernels: kept in a private folder, made once by one of several processes, loaded by the others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from confide.codec import kernels

PROGRAM = """
import sys, numpy
assert "numba" not in sys.modules
from confide.codec import kernels
print(kernels.squared_norm(numpy.full(5, 2, dtype=numpy.float32)))
"""


def environment(cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return kept | {"XDG_CACHE_HOME": str(cache)}


def test_processes_that_start_together_share_one_compilation(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["20.0", "20.0"]
    folder = tmp_path / "confide" / "numba"
    assert folder.stat().st_mode & 0o777 == 0o700
    code = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}
    assert len(code) == 1, "the second process loads what the first one made"
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment(tmp_path), check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")} == code


def test_a_cache_folder_that_cannot_be_made_is_replaced_by_a_private_one(tmp_path: Path) -> None:
    (tmp_path / "confide").write_text("a file where the folder should be")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "20.0"


def test_a_kernel_refuses_other_types() -> None:
    with pytest.raises(TypeError):
        kernels.squared_norm(np.zeros(3))


def test_the_encoder_is_compiled_before_a_deadline_runs(tmp_path: Path) -> None:
    """A machine that never sealed anything: both widths of lanes are there afterwards, and an upload adds no file."""
    code = """
import sys
from pathlib import Path
import numpy as np
from confide.codec.layout import VectorLayout
from confide.codec.seal_vector import compile_encoder, encode_upload
folder = Path(sys.argv[1])
made = lambda: sorted(path.name for path in folder.rglob("*.nbc"))
compile_encoder()
before = made()
assert before
for bits in (4, 8, 12, 16):
    layout = VectorLayout(parameters=5000, scalars=3, bits=bits, members=4, clip=1.0, rotation_seed=bytes(32))
    encode_upload(np.ones(5000, "<f4"), [1, 2, 3], layout, rounding_key=bytes(32), masks=[], out=folder / str(bits))
assert made() == before
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True, timeout=500)
