"""A space around another: what is the other's is asked of it, and a wrapper says what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ddbench.api import Memory, Resource, Run, Saw, Space, State
from ddbench.errors import ConfigError


@dataclass(frozen=True)
class Wrapping(Space):
    """Answers as `inner` does, stage for stage. Abstract: decode.

    Raises: ConfigError where a wrapper is around one of its own kind.
    """

    inner: Space

    def __post_init__(self) -> None:
        """Refuse a wrapper around itself, however deep."""
        inside: Space | None = self.inner
        while isinstance(inside, Wrapping):
            if type(inside) is type(self):
                raise ConfigError("a space is wrapped around one of its own kind: give the two as one, with a larger setting.")
            inside = inside.inner

    @property
    def needs_generator(self) -> bool:
        """The inner space's."""
        return self.inner.needs_generator

    @property
    def is_rendered(self) -> bool:
        """The inner space's."""
        return self.inner.is_rendered

    @property
    def tensors(self) -> tuple[str, ...]:
        """The inner space's."""
        return self.inner.tensors

    @property
    def rates_of(self) -> Mapping[str, str]:
        """The inner space's."""
        return self.inner.rates_of

    @property
    def saw(self) -> Saw:
        """The inner space's."""
        return self.inner.saw

    def inside(self, run: Run) -> Run:
        """The run as the inner space is to see it: as it is."""
        return run

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """The inner space's."""
        return self.inner.needs(self.inside(run))

    def check(self, depth: int) -> None:
        """The inner space's."""
        self.inner.check(depth)

    def num_images(self, run: Run) -> int:
        """The inner space's."""
        return self.inner.num_images(self.inside(run))

    def decoder(self, state: State) -> tuple[str, ...]:
        """The inner space's."""
        return self.inner.decoder(state)

    def num_stages(self, run: Run) -> int:
        """The inner space's."""
        return self.inner.num_stages(self.inside(run))

    def stage_name(self, stage: int, run: Run) -> str:
        """The inner space's."""
        return self.inner.stage_name(stage, run)

    def init(self, run: Run) -> State:
        """The inner space's."""
        return self.inner.init(self.inside(run))

    def classes(self, state: State, run: Run) -> Tensor:
        """The inner space's."""
        return self.inner.classes(state, self.inside(run))

    def advance(self, state: State, run: Run) -> State:
        """The inner space's."""
        return self.inner.advance(state, self.inside(run))

    def project_(self, state: State, run: Run) -> None:
        """The inner space's."""
        self.inner.project_(state, self.inside(run))

    def init_memory(self, run: Run) -> Memory:
        """The inner space's."""
        return self.inner.init_memory(self.inside(run))

    def penalty(self, state: State, memory: Memory, run: Run) -> Tensor | None:
        """The inner space's."""
        return self.inner.penalty(state, memory, self.inside(run))

    def after_step(self, state: State, memory: Memory, run: Run) -> None:
        """The inner space's."""
        self.inner.after_step(state, memory, self.inside(run))
