"""Attributes and hooks set on instances, remembered so that undoing leaves every ``__dict__`` as it was found."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.hooks import RemovableHandle


class _Patch(NamedTuple):
    owner: Any
    name: str
    value: Any
    had: bool
    old: Any

    def place(self) -> str | None:
        """The attribute that holds our value now: accelerate moves ``forward`` to ``_old_forward`` and back."""
        held = vars(self.owner)
        if held.get(self.name) is self.value:
            return self.name
        return next((name for name in ("forward", "_old_forward") if held.get(name) is self.value), None)

    def undo(self) -> None:
        place = self.place()
        if self.had:
            setattr(self.owner, str(place), self.old)
        elif place == self.name:
            delattr(self.owner, self.name)
        else:  # accelerate hooked the layer after us and calls what we must now take out
            setattr(self.owner, str(place), getattr(type(self.owner), self.name).__get__(self.owner))


class Patches:
    """What was changed on a model. Holds no closures, so that a deep copy of the model undoes its own changes."""

    def __init__(self) -> None:
        self._patches: list[_Patch] = []
        self._hooks: list[RemovableHandle] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an instance attribute."""
        had = name in vars(owner)
        self._patches.append(_Patch(owner, name, value, had, vars(owner).get(name)))
        setattr(owner, name, value)

    def set_forward(self, module: Any, forward: Any) -> None:
        """Replace a module's forward, below accelerate's wrapper if there is one."""
        self.set(module, "_old_forward" if "_old_forward" in vars(module) else "forward", forward)

    def hook(self, hook: RemovableHandle) -> None:
        """Remember a hook."""
        self._hooks.append(hook)

    def undo(self) -> None:
        """Put everything back, last change first; nothing is touched if one of them is no longer ours.

        Raises:
            RuntimeError: somebody replaced an attribute after us.
        """
        last = {(id(patch.owner), patch.name): patch for patch in self._patches}  # one may lie over another of ours
        for patch in last.values():
            if patch.place() is None:
                what = f"{patch.name} of {type(patch.owner).__name__}"
                raise RuntimeError(f"ficoco::detach: {what} was replaced after attach; undo that, then detach")
        while self._patches:
            self._patches.pop().undo()
        while self._hooks:
            self._hooks.pop().remove()
