"""The only code that registers or removes hooks.

Two process-global module hooks, filtered by module identity, and ``Tensor.register_hook``. No full backward hooks:
they change the bits of training and break in-place operations. No per-module hooks: they switch off the fused
inference path of stock transformer layers and travel into copies and pickles of the model. See
docs/decisions/global-hooks.md.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class Watcher(Protocol):
    """What is told of a model's calls."""

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module of the model is about to run."""

    def leave(self, module: nn.Module, output: Any) -> None:
        """A module of the model has run; ``output`` is None when it raised."""

    def pass_over(self, module: nn.Module) -> None:
        """A module of the model is about to run under a function transform, where nothing can be read."""

    def recompute(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module of the model is about to run again, inside backward."""

    def recomputed(self, module: nn.Module, output: Any) -> None:
        """A module of the model has run again, inside backward."""


class ModuleHooks:
    """Hooks on every module of one model, from :meth:`install` to :meth:`remove`."""

    def __init__(self, model: nn.Module, watcher: Watcher) -> None:
        self._watcher = watcher
        # Identities, not references: a recorder must not keep a model alive, nor follow its copies.
        self._modules = {id(module): weakref.ref(module) for module in model.modules()}
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Start watching."""
        self._handles = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Stop watching; nothing is left behind on the model or in torch."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _is_ours(self, module: nn.Module) -> bool:
        reference = self._modules.get(id(module))
        return reference is not None and reference() is module and not torch.compiler.is_compiling()

    # A value returned from a hook replaces the module's input or output, so these return nothing.
    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._is_ours(module):
            return
        if _transformed():
            self._watcher.pass_over(module)
        elif _inside_backward():
            self._watcher.recompute(module, args)
        else:
            self._watcher.enter(module, args)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._is_ours(module) or _transformed():
            return
        if _inside_backward():
            self._watcher.recomputed(module, output)
        else:
            self._watcher.leave(module, output)


def _transformed() -> bool:
    """Whether torch.func is at work (vmap, grad, jvp), whose tensors are wrappers without numbers of their own."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _inside_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


_NOTHING = nullcontext()


def unseen() -> AbstractContextManager[Any]:
    """Keep reading a tensor from the user's function modes; free where there are none."""
    return torch._C.DisableTorchFunction() if torch._C._len_torch_function_stack() else _NOTHING


Receiver = Callable[[torch.Tensor | None, bool], None]
"""Takes the gradient (None where the output was not used) and whether it arrived through the tensor's base."""


def hook_gradient(tensor: torch.Tensor, receive: Receiver) -> list[RemovableHandle]:
    """Have ``receive`` called with the gradient of ``tensor``.

    ``receive`` must not hold the tensor, which would keep it alive for ever. A hook on a view that is later modified in
    place never fires; where the view covers its whole base, the base's gradient stands in.

    Returns
    -------
    list of RemovableHandle
        Of hooks on leaf tensors, which outlive the graph and must be removed; others go with it.
    """

    def direct(gradient: torch.Tensor | None) -> None:
        receive(gradient, False)

    def through_base(gradient: torch.Tensor | None) -> None:
        receive(gradient, True)

    handles = [(tensor, tensor.register_hook(direct))]  # type: ignore[no-untyped-call]
    base = tensor._base
    if base is not None and base.requires_grad and base.numel() == tensor.numel():
        handles.append((base, base.register_hook(through_base)))  # type: ignore[no-untyped-call]
    return [handle for hooked, handle in handles if hooked.is_leaf]
