"""How kernels are compiled and kept: without the interpreter's lock, with two kinds of floating-point arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.extending
import numba.misc.appdirs

F = TypeVar("F", bound=Callable[..., Any])

_numba: Any = numba  # its own annotations change from version to version

# Wrappers by which Python could call a kernel take a third of the time to compile it; only the entry has them.
_INNER = {"error_model": "numpy", "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def fingerprint() -> str:
    """Digest of the sources of all kernels."""
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


def entry(function: F) -> Any:
    """Compile as :func:`exact` does, for Python to call.

    numba's cache looks for changes in the file of the entry only; the name, under which it keeps what it compiled,
    tells it of changes in all others.
    """
    function.__qualname__ += f"_{fingerprint()}"
    return _numba.njit(error_model="numpy", nogil=True)(function)


def cache_directories(source: Path) -> list[Path]:
    """Where numba may keep what it compiles from a source file, in the order it tries them."""
    chosen = [Path(_numba.config.CACHE_DIR)] if _numba.config.CACHE_DIR else []
    user = _numba.misc.appdirs.AppDirs(appname="numba", appauthor=False).user_cache_dir
    return [*chosen, source.parent / "__pycache__", Path(user)]


def exact(function: F) -> F:
    """Compile with IEEE arithmetic in the order written; callable from kernels only."""
    compiled: F = _numba.njit(**_INNER)(function)
    return compiled


def reordered(function: F) -> F:
    """Compile so that sums may be reordered into vector lanes; NaN and infinity keep their meaning."""
    compiled: F = _numba.njit(fastmath={"reassoc", "nsz", "contract"}, **_INNER)(function)
    return compiled


@exact
def difference(left: Any, right: Any) -> Any:
    """``left - right`` that reordered sums must not take apart: sum(x - c) is not sum(x) - n c where x is near c."""
    return left - right


def _to_pointer(_context: Any, address: Any, dtype: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return _numba.types.CPointer(dtype.dtype)(address, dtype), codegen


def _reinterpret(_context: Any, value: Any, dtype: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return dtype.dtype(value, dtype), codegen


def _shifted(_context: Any, value: Any, places: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number, count = arguments
        return builder.lshr(number, count if count.type == number.type else builder.trunc(count, number.type))

    return value(value, places), codegen


array_at: Callable[[Any, int], Any] = _numba.carray
"""Array over memory at a pointer, with no copy."""

pointer: Callable[[Any, Any], Any] = _numba.extending.intrinsic(_to_pointer)
"""Pointer to items of a dtype at an integer address."""

reinterpret: Callable[[Any, Any], Any] = _numba.extending.intrinsic(_reinterpret)
"""The bits of a number read as a dtype of the same width."""

shifted: Callable[[Any, Any], Any] = _numba.extending.intrinsic(_shifted)
"""A number shifted right, in its own width; numba's ``>>`` would widen it to 64 bits."""
