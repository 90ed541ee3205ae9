"""Switch off one mechanism at a time and list which tests fail: ``python tests/mutations.py [NAME]``.

A mechanism whose loss no test notices is a survivor, and the exit code is 1. A target that no longer exists, or a test
run that did not take place, is an error, and the exit code is 2: adapt :data:`MUTATIONS`.

The same file is the pytest plugin of the child processes, which patches the one target before any test is collected.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CASES = "tests/instrument/cases"
AT_ONCE = 2
INSTRUMENT = "covshift.instrument"
VARIABLE, REPORT = "COVSHIFT_MUTATION", "COVSHIFT_MUTATION_REPORT"


def _constant(value: Any) -> Callable[..., Any]:
    return lambda original: lambda *args, **kwargs: value


def _only_the_tensor_itself(original: Callable[..., Any]) -> Callable[..., Any]:
    def hook_gradient(tensor: Any, receiver: Any, handles: list[Any]) -> None:
        handle = tensor.register_hook(receiver)
        handles += [handle] if tensor.is_leaf else []

    return hook_gradient


def _by_first_name(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def reached(self: Any, module: Any, parent: Any, call: Any, *, root: str) -> Any:
        return original(self, module, None, None, root=root)

    return reached


def _by_path_alone(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def at(self: Any, path: str, what: int) -> Any:
        return original(self, path, 0)

    return at


def _stays_open(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def close(self: Any) -> None:
        original(self)
        self.closed = False

    return close


def _takes_every_gradient(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def receive(self: Any, gradient: Any, *, through: Any) -> None:
        self._arrived = False
        original(self, gradient, through=through)

    return receive


def _any_write_is_an_addition(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward_ended(self: Any) -> None:
        self._is_added_to = bool(self._states)

    return backward_ended


def _ignores_the_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def gradients(self: Any, scale: float) -> Any:
        return original(self, 1.0)

    return gradients


def _shared_by_threads(original: type) -> type:
    return type("Shared", (), {name: value for name, value in vars(original).items() if not name.startswith("__")})


def _as_it_came(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda rows, scale: rows


def _with_the_axes_of_the_base(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, gradient: gradient


def _keeps_it(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: self.keep()


def _leaves_the_table(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: self._handle.remove()


class _Everywhere:
    """Stands for every checkpoint there is."""


_CHECKPOINT = _Everywhere()


def _of_one_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
    def recomputation() -> Any:
        place = original()
        return place._replace(repeats=place.repeats and _CHECKPOINT, repeated_by=place.repeated_by and _CHECKPOINT)

    return recomputation


def _waits_for_no_rank(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, below: original(self, 2**62)


def _in_order_of_arrival(original: Callable[..., Any]) -> Callable[..., Any]:
    def add(self: Any, records: Iterable[Any]) -> None:
        for record in records:
            self._held.setdefault(next(iter(self._held), (record.step, record.stream)), []).append(record)

    return add


def _registered_when_due(original: type) -> type:
    """Hooks that are taken away and put back under new keys whenever it is decided whether to follow calls."""
    modulehooks = importlib.import_module(f"{INSTRUMENT}.modulehooks")

    class Swapped(original):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "follows" and modulehooks._listeners:
                for handle in modulehooks._handles or ():
                    handle.remove()
                modulehooks._handles = None
                modulehooks._register()

    return Swapped


def _under_new_keys(original: Callable[[], None]) -> Callable[[], None]:
    modulehooks = importlib.import_module(f"{INSTRUMENT}.modulehooks")

    def register() -> None:
        modulehooks._handles = None
        original()

    return register


@dataclass(frozen=True)
class Mutation:
    """What is switched off: where it is defined ("module:attribute"), what stands in, and the tests that may notice."""

    target: str
    mutate: Callable[[Any], Any]
    tests: tuple[str, ...]


MUTATIONS = {
    "via base": Mutation(f"{INSTRUMENT}.hooks:hook_gradient", _only_the_tensor_itself, ("test_inplace_and_views.py",)),
    "axes of a view": Mutation(
        f"{INSTRUMENT}.views:View.of", _with_the_axes_of_the_base, ("test_inplace_and_views.py",)
    ),
    "axes of layers left out": Mutation(
        f"{INSTRUMENT}.forward:Forward.axis_of", _constant(None), ("test_unit_axes.py",)
    ),
    "compiled stands for its module": Mutation(
        f"{INSTRUMENT}.hooks:original", _constant(None), ("test_compiled_parts.py",)
    ),
    "no function mode around compiled code": Mutation(
        f"{INSTRUMENT}.observer:calls_compiled", _constant(False), ("test_compiled_parts.py",)
    ),
    "recompute matching": Mutation(
        f"{INSTRUMENT}.gradients:Gradients.rejoin", _constant(None), ("test_grad_modes_and_checkpoint.py",)
    ),
    "recompute told apart by checkpoint": Mutation(
        f"{INSTRUMENT}.calls:recomputation", _of_one_checkpoint, ("test_grad_modes_and_checkpoint.py",)
    ),
    "recompute recognised": Mutation(
        f"{INSTRUMENT}.hooks:inside_backward", _constant(False), ("test_grad_modes_and_checkpoint.py",)
    ),
    "call stack": Mutation(
        f"{INSTRUMENT}.callsites:CallSites.reached", _by_first_name, ("test_calls_and_sharing.py", "test_threads.py")
    ),
    "closed flag": Mutation(f"{INSTRUMENT}.block:Block.close", _stays_open, ("test_lifetime.py",)),
    "tables of hooks on leaves": Mutation(
        f"{INSTRUMENT}.hooks:LeafHook.remove", _leaves_the_table, ("test_lifetime.py",)
    ),
    "functorch guard": Mutation(f"{INSTRUMENT}.hooks:transformed", _constant(False), ("test_functional.py",)),
    "DisableTorchFunction": Mutation(
        f"{INSTRUMENT}.hooks:unseen", _constant(nullcontext()), ("test_functional.py", "test_functional_activations.py")
    ),
    "unscaling of layer rows": Mutation(f"{INSTRUMENT}.scaling:unscaled", _as_it_came, ("test_grad_scaler.py",)),
    "unscaling of parameter norms": Mutation(
        f"{INSTRUMENT}.parameters:ParameterMeter._gradients",
        _ignores_the_scale,
        ("test_grad_scaler.py", "test_preclip.py"),
    ),
    "skipped steps": Mutation(f"{INSTRUMENT}.scaling:LossScale.skipped", _constant(False), ("test_grad_scaler.py",)),
    "parameter filter of the step clock": Mutation(
        f"{INSTRUMENT}.steps:StepClock._is_ours", _constant(True), ("test_steps_and_optimizers.py",)
    ),
    "parameters that lie where others lay": Mutation(
        f"{INSTRUMENT}.steps:StepClock._is_own", _constant(True), ("../test_changing_models.py",)
    ),
    "gradients that were cleared": Mutation(
        f"{INSTRUMENT}.leftovers:Leftovers.backward_ended", _any_write_is_an_addition, ("../test_leftovers.py",)
    ),
    "first gradient only": Mutation(
        f"{INSTRUMENT}.gradients:_Receiver.receive", _takes_every_gradient, ("test_calls_and_sharing.py",)
    ),
    "stack per thread": Mutation(f"{INSTRUMENT}.observer:_Local", _shared_by_threads, ("test_threads.py",)),
    "in-place version": Mutation(f"{INSTRUMENT}.forward:_version", _constant(0), ("test_inplace_and_views.py",)),
    "interrupts": Mutation(f"{INSTRUMENT}.calls:is_running", _constant(True), ("test_interrupts.py",)),
    "interrupted passes": Mutation(
        f"{INSTRUMENT}.passes:Draft.drop", _keeps_it, ("test_interrupted_passes.py", "test_errors_and_copies.py")
    ),
    "passes around a step": Mutation(
        f"{INSTRUMENT}.forward:Forward.is_running", _constant(False), ("test_interrupted_passes.py",)
    ),
    "keywords of a call": Mutation(f"{INSTRUMENT}.calls:keywords", _constant({}), ("test_keywords.py",)),
    "views that were modified": Mutation(
        f"{INSTRUMENT}.hooks:version_counter", _constant(SimpleNamespace(_version=-1)), ("test_inplace_and_views.py",)
    ),
    "hooks of the user's own": Mutation(
        f"{INSTRUMENT}.userhooks:may_replace", _constant(False), ("test_user_hooks.py",)
    ),
    "fake tensors": Mutation(f"{INSTRUMENT}.hooks:faked", _constant(False), ("test_fake_tensors.py",)),
    "batched gradients": Mutation(f"{INSTRUMENT}.hooks:is_batched", _constant(False), ("../test_mended.py",)),
    "reentrant checkpoint": Mutation(
        f"{INSTRUMENT}.calls:in_reentrant_checkpoint", _constant(False), ("../test_mended.py",)
    ),
    "process group let go": Mutation(f"{INSTRUMENT}.distributed:Ranks.leave", _constant(None), ("../test_mended.py",)),
    "ranks paired by step": Mutation(
        f"{INSTRUMENT}.pairing:Pairing.add", _in_order_of_arrival, ("../test_pairing.py",)
    ),
    "waiting for every rank": Mutation(
        f"{INSTRUMENT}.pairing:Pairing.taken", _waits_for_no_rank, ("../test_pairing.py",)
    ),
    "gradients of ranks rescaled": Mutation(
        "covshift.analysis.local_loss:factors", _constant(None), ("../../analysis/test_local_loss.py",)
    ),
    "parameters without values": Mutation(
        f"{INSTRUMENT}.parameters:_has_values", _constant(True), ("../test_mended.py",)
    ),
    "waiting for other optimizers": Mutation(
        f"{INSTRUMENT}.parameters:ParameterMeter.is_complete",
        lambda original: property(_constant(True)(original)),
        ("../test_several_optimizers.py",),
    ),
    "updates left to others": Mutation(
        f"{INSTRUMENT}.steps:StepClock.left_to_others", _constant(frozenset()), ("../test_several_optimizers.py",)
    ),
    "names told apart": Mutation(
        f"{INSTRUMENT}.callsites:CallSites._at", _by_path_alone, ("test_calls_and_sharing.py",)
    ),
    "the user's line": Mutation(
        f"{INSTRUMENT}.incidents:users_line", lambda original: sys._getframe, ("../test_incidents.py",)
    ),
    "dynamo guard": Mutation(f"{INSTRUMENT}.modulehooks:is_dynamo_compiling", _constant(False), ("test_compile.py",)),
    "hooks stay registered": Mutation(f"{INSTRUMENT}.hooks:ModuleHooks", _registered_when_due, ("test_compile.py",)),
    "keys of hooks stay": Mutation(f"{INSTRUMENT}.modulehooks:_register", _under_new_keys, ("test_compile.py",)),
    "compile guard": Mutation(f"{INSTRUMENT}.hooks:is_compiling", _constant(False), ("test_compile.py",)),
}


def _patch(mutation: Mutation) -> None:
    """Put the stand-in where the target is defined, and wherever it was already imported by name."""
    module_name, _, path = mutation.target.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original = vars(owner)[name]
    stand_in = mutation.mutate(original)
    setattr(owner, name, stand_in)
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] == "covshift"]:
        for imported in [key for key, value in vars(module).items() if value is original]:
            setattr(module, imported, stand_in)


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin: switch off the mechanism that the environment names."""
    name = os.environ.get(VARIABLE)
    if name:
        _patch(MUTATIONS[name])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """As a plugin: note every failure for the parent process."""
    if report.failed and REPORT in os.environ:
        with Path(os.environ[REPORT]).open("a") as file:
            file.write(report.nodeid + "\n")


@dataclass(frozen=True)
class Outcome:
    """Tests that failed in a run, and what went wrong with the run itself, "" where it took place."""

    failed: frozenset[str]
    error: str = ""


def _run(name: str, tests: Iterable[str]) -> Outcome:
    """Run tests in a child process with a mechanism switched off, or with all in place where ``name`` is ""."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "failed"
        paths = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {VARIABLE: name, REPORT: str(report), "PYTHONPATH": os.pathsep.join(paths)}
        options = ["-p", "mutations", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *(f"{CASES}/{test}" for test in sorted(set(tests)))]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        failed = frozenset(report.read_text().split("\n")) - {""} if report.exists() else frozenset()
    # 0: all passed; 1: some failed. Anything else is no answer.
    return Outcome(failed, "" if done.returncode in (0, 1) else f"{done.stdout}\n{done.stderr}".strip())


def main(names: list[str]) -> int:
    """Run the named mutations, all by default; print what noticed each; return the exit code."""
    unknown = [name for name in names if name not in MUTATIONS]
    if unknown:
        sys.stderr.write(f"no such mutation: {', '.join(unknown)}; there are: {', '.join(MUTATIONS)}\n")
        return 2
    chosen = {name: MUTATIONS[name] for name in names or MUTATIONS}
    sound = _run("", {test for mutation in chosen.values() for test in mutation.tests})
    if sound.error:
        sys.stderr.write(f"the tests do not run:\n{sound.error}\n")
        return 2
    if sound.failed:
        sys.stdout.write("fail with everything in place, and so prove nothing:\n" + _listed(sound.failed))
    code = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = pool.map(lambda item: _run(item[0], item[1].tests), chosen.items())
        for (name, mutation), outcome in zip(chosen.items(), outcomes, strict=True):
            noticed = outcome.failed - sound.failed
            if outcome.error:
                sys.stdout.write(f"{name}: ERROR, {mutation.target} cannot be switched off\n{outcome.error}\n")
                code = 2
            elif noticed:
                sys.stdout.write(f"{name}: noticed by\n{_listed(noticed)}")
            else:
                sys.stdout.write(f"{name}: SURVIVED, no test fails without {mutation.target}\n")
                code = max(code, 1)
            sys.stdout.flush()
    return code


def _listed(tests: Iterable[str]) -> str:
    return "".join(f"    {test}\n" for test in sorted(tests))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
