"""What was changed on a model, so that it can be undone: attributes and hooks of instances."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.hooks import RemovableHandle


class _Change(NamedTuple):
    """One attribute that was set: its owner and name, our value, and the instance's own value before, if it had one."""

    owner: Any
    name: str
    value: Any
    had: bool
    old: Any

    def held_in(self) -> str | None:
        """The attribute that holds our value now: accelerate moves ``forward`` to ``_old_forward`` and back."""
        held = vars(self.owner)
        if held.get(self.name) is self.value:
            return self.name
        return next((name for name in ("forward", "_old_forward") if held.get(name) is self.value), None)

    def undo(self) -> None:
        attribute = self.held_in()
        if self.had:
            setattr(self.owner, str(attribute), self.old)
        elif attribute == self.name:
            delattr(self.owner, self.name)
        else:  # accelerate hooked the layer after us and calls what we must now remove
            setattr(self.owner, str(attribute), getattr(type(self.owner), self.name).__get__(self.owner))


class ModelChanges:
    """Attributes and hooks set on instances; undoing them leaves every ``__dict__`` as it was before.

    Holds no closures, so that a deep copy of the model undoes its own changes.
    """

    def __init__(self) -> None:
        self._changes: list[_Change] = []
        self._hooks: list[RemovableHandle] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an instance attribute."""
        had = name in vars(owner)
        self._changes.append(_Change(owner, name, value, had, vars(owner).get(name)))
        setattr(owner, name, value)

    def set_forward(self, module: Any, forward: Any) -> None:
        """Replace a module's forward, below accelerate's wrapper if there is one."""
        self.set(module, "_old_forward" if "_old_forward" in vars(module) else "forward", forward)

    def hook(self, hook: RemovableHandle) -> None:
        """Remember a hook that was registered."""
        self._hooks.append(hook)

    def undo(self) -> None:
        """Restore everything, last change first; nothing is touched if one of the attributes is no longer ours.

        Raises:
            RuntimeError: an attribute was replaced after us.
        """
        last = {(id(change.owner), change.name): change for change in self._changes}  # we may set one twice
        for change in last.values():
            if change.held_in() is None:
                what = f"{change.name} of {type(change.owner).__name__}"
                raise RuntimeError(f"ficoco::detach: {what} was replaced after attach; undo that, then detach")
        while self._changes:
            self._changes.pop().undo()
        while self._hooks:
            self._hooks.pop().remove()
