"""Imports run one way only. The order is data here; docs/architecture.md says it in words."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import covshift

PACKAGE = Path(covshift.__file__).parent

# Room: rooms it may import from besides itself. covshift/__init__.py offers names of all rooms and is not a room.
MAY_IMPORT = {
    "exceptions": set(),
    "grid": {"exceptions"},
    "schema": {"exceptions", "grid"},
    "summary": {"exceptions", "grid"},
    "instrument": {"exceptions", "grid", "schema", "summary"},
    "store": {"exceptions", "grid", "schema"},
    "probe": {"exceptions", "grid", "schema", "summary", "instrument"},
    "handover": {"exceptions", "schema", "instrument", "store"},
    "training_steps": {"instrument", "handover"},
    "evaluating": {"instrument"},
    "recorder": {"exceptions", "instrument", "store", "probe", "handover", "training_steps", "evaluating"},
    "attach": {"recorder", "exceptions", "schema", "summary", "instrument", "store", "probe", "handover"},
    "analysis": {"exceptions", "grid", "schema"},
    "diagnosis": {"exceptions", "schema", "analysis"},
    "plots": {"exceptions", "grid", "schema", "analysis", "diagnosis"},
    "reporting": {"exceptions", "grid", "schema", "analysis", "diagnosis", "plots"},
    "linked": {"exceptions"},
    "models": {"exceptions", "linked"},
    "datasets": {"exceptions"},
    "demo": {"exceptions", "instrument", "attach", "linked", "models", "datasets"},
    "selfcheck": {"exceptions", "grid", "analysis", "diagnosis", "linked", "attach"},
    "cli": {"exceptions", "store", "analysis", "diagnosis", "plots", "reporting", "demo", "selfcheck"},
}
WITHOUT_TORCH = {"exceptions", "grid", "schema", "store", "analysis", "diagnosis", "plots", "reporting"}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources():
    skipped = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
    return sorted(path for path in PACKAGE.rglob("*.py") if path not in skipped)


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(path):
    parts = (module.split(".") for module in imported_modules(path))
    return {part[1] for part in parts if part[0] == "covshift" and len(part) > 1}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_imports_only_rooms_below_its_own(path):
    room = room_of(path)
    allowed = MAY_IMPORT[room] | {room}
    assert imported_rooms(path) <= allowed, f"{room} may import {sorted(allowed)}"


def test_the_order_has_no_cycle_and_names_every_room():
    assert {room_of(path) for path in sources()} == set(MAY_IMPORT)
    left = dict(MAY_IMPORT)
    while left:
        free = {room for room, below in left.items() if not below & set(left)}
        assert free, f"cycle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in free}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_reading_wing_never_imports_torch(path):
    if room_of(path) in WITHOUT_TORCH:
        assert not {module for module in imported_modules(path) if module.split(".")[0] == "torch"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_import_covshift_pulls_in_no_heavy_library():
    done = run(
        "import sys, covshift;"
        "print([m for m in ('matplotlib', 'seaborn', 'scipy', 'dask', 'numba', 'zarr', 'xarray', 'torch')"
        " if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_recording_is_read_judged_and_reported_where_torch_is_not_installed(tmp_path):
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    with covshift.record(model, tmp_path / "run", every=1) as recorder:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            recorder.log(loss=1.0)
    done = run(
        "import sys; sys.modules['torch'] = None\n"
        "import covshift\n"
        f"recording = covshift.open({str(tmp_path / 'run.zarr')!r})\n"
        "assert covshift.diagnose(recording).findings\n"
        f"covshift.report(recording, {str(tmp_path / 'report.html')!r})\n"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 0


def test_every_public_name_can_be_used_twice_in_one_process():
    for name in covshift.__all__:
        first = getattr(covshift, name)
        assert getattr(covshift, name) is first, name
    # The second round, after every room was imported, would find a module where a function of its name stood.
    callables = {name: getattr(covshift, name) for name in ("record", "open", "diagnose", "report", "every", "first")}
    assert all(callable(value) for value in callables.values())
    assert callable(covshift.linked.audit)
    assert callable(covshift.datasets.digits)
    assert callable(covshift.models.depth_net)


def test_no_public_function_has_the_name_of_a_room():
    rooms = {room_of(path) for path in sources()}
    clashes = {name for name in covshift.__all__ if name in rooms and callable(getattr(covshift, name))}
    assert not clashes


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'covshift' has no attribute 'recrod'"):
        covshift.recrod  # noqa: B018 - the access is the test
