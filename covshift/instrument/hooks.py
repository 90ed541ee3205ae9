"""Hooks on modules and tensors of a recorded run; those on optimizers are the step clock's, and a probe has its own.

Two process-global module hooks, filtered by module identity, and ``Tensor.register_hook``. No full backward hooks:
they change the bits of training and break in-place operations. No per-module hooks: they switch off the fused
inference path of stock transformer layers and travel into copies and pickles of the model. See
docs/decisions/global-hooks.md.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import unserializable_hook

from covshift.instrument import modulehooks
from covshift.instrument.opaque import original
from covshift.instrument.views import View, view_of


class Watcher(Protocol):
    """What is told of a model's calls."""

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module of the model is about to run."""

    def leave(self, module: nn.Module, output: Any) -> None:
        """A module of the model has run; ``output`` is None when it raised."""

    def expects(self, module: nn.Module) -> bool:
        """Whether a call of the module may begin a forward pass that was not yet seen."""

    def glimpse(self, module: nn.Module) -> None:
        """A module of the model is about to run, and calls are not followed."""

    def see_compiled(self, module: nn.Module) -> None:
        """What torch.compile has made of a module of the model is about to run."""

    def pass_over(self, module: nn.Module) -> None:
        """A module of the model is about to run under a function transform, where nothing can be read."""

    def recompute(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module of the model is about to run again, inside backward."""

    def recomputed(self, module: nn.Module, output: Any) -> None:
        """A module of the model has run again, inside backward."""


class ModuleHooks:
    """Tells a watcher of the calls of one model's modules, from :meth:`install` to :meth:`remove`.

    Between the steps that are recorded the watcher need not follow calls, only know that a forward pass begins.

    Attributes
    ----------
    follows : bool
        Whether the watcher is told of every call, or only that a forward pass begins. Nothing in torch changes with it,
        see :mod:`covshift.instrument.modulehooks`.
    """

    def __init__(self, model: nn.Module, watcher: Watcher) -> None:
        self._watcher = watcher
        self.follows = False
        # Identities, not references: a recorder must not keep a model alive, nor follow its copies.
        self._modules = {id(module): weakref.ref(module) for module in model.modules()}

    def install(self) -> None:
        """Start watching."""
        modulehooks.listen(self)

    def remove(self) -> None:
        """Stop watching; nothing is left behind on the model or in torch."""
        modulehooks.leave(self)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Tell the watcher that a module is about to run, if it is one of the model's and there is need to."""
        reference = self._modules.get(id(module))
        if reference is None:
            if (inside := self._compiled(module)) is not None:
                self._watcher.see_compiled(inside)
                self.before(inside, args)
            return
        if not self.follows:
            if self._watcher.expects(module):
                self._glimpse(module, args)
            return
        if reference() is not module or traced():
            return
        # Looked at here first: a call of hidden_from at every module costs more than all of the above.
        if _audience.only is not None and hidden_from(self._watcher):
            return
        if transformed():
            self._watcher.pass_over(module)
        elif inside_backward():
            self._watcher.recompute(module, args)
        else:
            self._watcher.enter(module, args)

    def _compiled(self, module: nn.Module) -> nn.Module | None:
        """The module of the model that torch.compile made this one of, whose call this one's stands for."""
        inside = original(module)
        return inside if id(inside) in self._modules else None

    def _glimpse(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        reference = self._modules[id(module)]
        if reference() is module and not (traced() or transformed() or inside_backward()):
            self._watcher.glimpse(module)
            if self.follows:
                # A step that ended only now, with this forward pass, has let the next one be due.
                self._watcher.enter(module, args)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Tell the watcher that a module has run, if it is one of the model's."""
        reference = self._modules.get(id(module))
        if reference is None:
            if (inside := self._compiled(module)) is not None:
                self.after(inside, args, output)
            return
        if reference() is not module or traced() or transformed():
            return
        if _audience.only is not None and hidden_from(self._watcher):
            return
        if inside_backward():
            self._watcher.recomputed(module, output)
        else:
            self._watcher.leave(module, output)


class _Audience(threading.local):
    only: object | None = None


_audience = _Audience()


@contextmanager
def shown_only_to(watcher: object) -> Iterator[None]:
    """Tell nobody but ``watcher`` of what this thread's models do inside the ``with``: they are being probed."""
    before, _audience.only = _audience.only, watcher
    try:
        yield
    finally:
        _audience.only = before


def hidden_from(watcher: object) -> bool:
    """Whether what this thread's models do now is no business of ``watcher``."""
    only = _audience.only
    return only is not None and only is not watcher


def transformed() -> bool:
    """Whether torch.func is at work (vmap, grad, jvp), whose tensors are wrappers without numbers of their own."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_batched(gradient: torch.Tensor) -> bool:
    """Whether a gradient stands for many (``is_grads_batched``), which torch wraps without telling torch.func."""
    strided = type(gradient) is torch.Tensor and gradient.layout is torch.strided
    return strided and not torch._C._has_storage(gradient)


def traced() -> bool:
    """Whether torch.compile, torch.jit.trace or an export follows the call, and would take up what a hook computes."""
    return is_compiling() or torch._C._get_tracing_state() is not None


def faked() -> bool:
    """Whether tensors are made without numbers (FakeTensorMode), to learn shapes."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def inside_backward() -> bool:
    """Whether a backward pass is running in this thread: what runs now recomputes, or updates as gradients arrive."""
    return torch._C._current_graph_task_id() != -1


_NOTHING = nullcontext()


def unseen() -> AbstractContextManager[Any]:
    """Keep reading a tensor from the user's function and dispatch modes; free where there are none.

    Selective checkpoints keep what operations give in the order in which a dispatch mode sees them, and would hand the
    model what covshift had computed. Fake tensors are read by nobody, and without their mode could not be asked for.
    """
    if torch._C._len_torch_dispatch_stack() and not faked():
        return _without_modes()
    return torch._C.DisableTorchFunction() if torch._C._len_torch_function_stack() else _NOTHING


@contextmanager
def _without_modes() -> Iterator[None]:
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


class Receiver(Protocol):
    """What is told of a tensor's gradient, None where the output was not used; it must not hold the tensor."""

    @property
    def place(self) -> tuple[object, ...]:
        """Where its numbers go; receivers of several forward passes are alike in it."""

    @property
    def is_over(self) -> bool:
        """Whether no gradient is expected any more."""

    def __call__(self, gradient: torch.Tensor | None) -> None:
        """The tensor's own gradient."""

    def receive(self, gradient: torch.Tensor | None, *, through: View | None) -> None:
        """The tensor's own gradient, or that of the base which the tensor covers as ``through`` says."""


class LeafHook:
    """A hook on a leaf tensor, which outlives the graph; once removed, the tensor is as it was.

    Forward passes that return the same leaf share one: a backward pass brings the leaf one gradient, the sum over all
    of them, which counts once.

    Attributes
    ----------
    was_bare : bool
        Whether the tensor had no table of hooks before this one, or others of this kind, came.
    """

    __torch_unserializable__ = True

    def __init__(self, tensor: torch.Tensor, receiver: Receiver) -> None:
        hooks = tensor._backward_hooks
        ours = [hook for hook in (hooks or {}).values() if isinstance(hook, LeafHook)]
        self.was_bare: bool = hooks is None or any(hook.was_bare for hook in ours)
        self._tensor, self._receivers = weakref.ref(tensor), [receiver]
        self._handle = tensor.register_hook(self)  # type: ignore[no-untyped-call]

    def __call__(self, gradient: torch.Tensor | None) -> None:
        """Hand on the gradient, to the first that still expects one."""
        self._receivers = [one for one in self._receivers if not one.is_over] or self._receivers[-1:]
        self._receivers[0](gradient)

    def is_shared_by(self, receiver: Receiver) -> bool:
        """Whether another forward pass's receiver belongs here; if so, it is told of gradients, too."""
        is_shared = self._receivers[0].place == receiver.place
        if is_shared:
            self._receivers.append(receiver)
        return is_shared

    def remove(self) -> None:
        """Take the hook away, and torch's empty table of hooks with it where there was none."""
        self._handle.remove()
        tensor = self._tensor()
        if self.was_bare and tensor is not None and not tensor._backward_hooks:
            tensor._backward_hooks = None


def hook_gradient(tensor: torch.Tensor, receiver: Receiver, handles: list[LeafHook]) -> None:
    """Have ``receiver`` called with the gradient of ``tensor``.

    A receiver that held the tensor would keep it alive for ever. To ``handles`` are added those of hooks on leaf
    tensors, which outlive the graph and must be removed; others go with it.
    """
    base = tensor._base
    view = None if base is None else view_of(tensor, base)
    if base is not None and view is not None:
        _hook_both(tensor, base, view, receiver)
        return
    if tensor.is_leaf:
        others = [hook for hook in (tensor._backward_hooks or {}).values() if isinstance(hook, LeafHook)]
        if not any(hook.is_shared_by(receiver) for hook in others):
            handles.append(LeafHook(tensor, receiver))
    elif base is not None and type(base) is torch.Tensor:
        _hook_part(tensor, base, receiver)
    else:
        tensor.register_hook(receiver)  # type: ignore[no-untyped-call]


def _hook_part(tensor: torch.Tensor, base: torch.Tensor, receiver: Receiver) -> None:
    """Hook a view of a part of its base, whose gradient nothing can stand in for once either is modified in place.

    Its hook then sees at most what was read of it before, which is not its gradient: none arrives.
    """
    counter, version = version_counter(base), base._version

    def own(gradient: torch.Tensor | None) -> None:
        if counter._version == version:
            receiver(gradient)

    tensor.register_hook(unserializable_hook(own))  # type: ignore[no-untyped-call]


def _hook_both(tensor: torch.Tensor, base: torch.Tensor, view: View, receiver: Receiver) -> None:
    """Hook a view and the base that it covers: where either is modified in place, the base's gradient stands in.

    The view's own hook then sees at most what was read of it before. Of a view that nothing has modified its own hook
    fires, unless nothing used it.
    """
    counter, version = version_counter(base), base._version

    def own(gradient: torch.Tensor | None) -> None:
        if counter._version == version:
            receiver(gradient)

    def through_base(gradient: torch.Tensor | None) -> None:
        if counter._version != version:
            receiver.receive(gradient, through=view)

    tensor.register_hook(unserializable_hook(own))  # type: ignore[no-untyped-call]
    base.register_hook(unserializable_hook(through_base))  # type: ignore[no-untyped-call]


_EMPTY = torch.empty(0, device="cpu")


def version_counter(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor that counts the in-place modifications of ``tensor``, too, and does not keep it alive."""
    counter = tensor.detach()
    counter.data = _EMPTY
    return counter
