"""The wing reads and judges recordings where torch is not installed."""

import subprocess
import sys

ROOMS = ["analysis.comparison", "analysis.gradient_health", "analysis.linkage", "analysis.shift", "diagnosis.diagnosis"]
BLOCKED = ["torch", "matplotlib", "zarr", "numba"]


def test_the_wing_imports_without_torch_and_other_heavy_packages():
    blocks = "; ".join(f"sys.modules[{name!r}] = None" for name in BLOCKED)
    imports = "; ".join(f"import covshift.{room}" for room in ROOMS)
    code = f"import sys; {blocks}; {imports}; assert 'scipy.stats' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
