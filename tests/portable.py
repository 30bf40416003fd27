"""The tests that train, computed as other machines would: `python tests/portable.py [name ...]`.

A training ends differently wherever sums are rounded differently: with other instructions, other
kernels, another number of threads. Each row below imitates one such machine by what torch, oneDNN
and MKL read from the environment; a test that fails in any of them rests on one machine's rounding.
"""

import os
import re
import subprocess
import sys
import time

OLD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}  # fmt: skip
MACHINES = {
    "this machine": {"OMP_NUM_THREADS": "2"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "no vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN AVX512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "all AVX2, one thread": OLD | {"OMP_NUM_THREADS": "1"},
    **{
        f"{precision}, {n} thread{'s' * (n > 1)}": {
            "TEST_PRECISION": precision, "OMP_NUM_THREADS": str(n),
        }
        for precision in ("highest", "medium", "bfloat16") for n in (1, 2)
    },
    **{
        f"seeds + {k}, {precision}": {"TEST_SEED": str(k), "TEST_PRECISION": precision}
        for k in range(1, 5) for precision in ("highest", "medium", "bfloat16")
    },
}  # fmt: skip
"""What to set in the environment; TEST_PRECISION and TEST_SEED are read by conftest.py."""

AUTO = "from minitransformer.training.precision import resolve; print(resolve('auto'))"


def main(chosen: list[str]) -> int:
    """Prints one row per machine; returns how many had failures."""
    failed = 0
    print(f"{'machine':24}{'auto':12}{'tests that train':30}seconds", flush=True)
    for name, changes in MACHINES.items():
        if chosen and name not in chosen:
            continue
        environment = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"} | os.environ | changes
        start = time.perf_counter()
        run = [sys.executable, "-c", AUTO]
        auto = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        means = changes.get("TEST_PRECISION", auto.stdout.strip())
        print(f"{name:24}{means:12}", end="", flush=True)
        run = [sys.executable, "-m", "pytest", "-q", "-m", "trains", "--no-header", "-p", "no:cacheprovider"]  # fmt: skip
        run += ["--ignore", os.path.join(os.path.dirname(__file__), "test_notebooks.py")]
        tests = subprocess.run(run, env=environment, capture_output=True, text=True)
        said = tests.stdout.splitlines() or [tests.stderr.strip()]
        summary = re.sub(r", \d+ deselected| in .*", "", said[-1])
        print(f"{summary:30}{time.perf_counter() - start:.0f}", flush=True)
        if tests.returncode:
            failed += 1
            print(*(f"    {line}" for line in said if line.startswith(("FAILED", "ERROR"))), sep="\n")  # fmt: skip
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
