"""The flow of a state machine: which state leads to which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from idempo.errors import ConfigurationError

__all__ = ["Flow", "FlowSource", "flow_of"]

State: TypeAlias = Any
"""Whatever the column holds: a text, a number, an enum member."""

FlowSource: TypeAlias = Any
"""A mapping of each state to the states it leads to, or a machine of `python-statemachine` or `transitions`."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Which state leads to which. A state that leads nowhere is final."""

    edges: Mapping[State, tuple[State, ...]]

    def __contains__(self, state: State) -> bool:
        return state in self.edges

    def sources(self, target: State) -> tuple[State, ...]:
        """Return the states that lead to `target` in one step."""
        return tuple(state for state, following in self.edges.items() if target in following)

    def reachable(self, start: State) -> frozenset[State]:
        """Return the states that can come after `start`; `start` itself if it lies on a cycle."""
        seen: set[State] = set()
        waiting = list(self.edges.get(start, ()))
        while waiting:
            state = waiting.pop()
            if state not in seen:
                seen.add(state)
                waiting.extend(self.edges.get(state, ()))
        return frozenset(seen)


def flow_of(source: FlowSource, state: Callable[[Any], State]) -> Flow:
    """Return the flow that `source` describes; `state` makes what the column holds of each of its states.

    Raises `ConfigurationError` for what is no flow.
    """
    edges: dict[State, tuple[State, ...]] = {}
    for start, ends in _pairs(source):
        following = tuple(dict.fromkeys(state(end) for end in ends))
        edges[state(start)] = edges.get(state(start), ()) + following
        for end in following:
            edges.setdefault(end, ())
    if not any(edges.values()):
        raise ConfigurationError("flow= has no transition: no state leads to another")
    return Flow(edges)


def _pairs(source: FlowSource) -> Iterable[tuple[Any, Iterable[Any]]]:
    if isinstance(source, Mapping):
        return [(start, _several(start, ends)) for start, ends in source.items()]
    if callable(getattr(source, "get_transitions", None)):
        return _of_transitions(source)
    if hasattr(source, "states") and all(hasattr(one, "transitions") for one in source.states):
        return _of_statemachine(source)
    raise ConfigurationError(
        "flow= takes a mapping of each state to those it leads to, a StateMachine of python-statemachine or a Machine "
        f"of transitions, not {type(source).__name__}"
    )


def _several(start: Any, ends: Any) -> Iterable[Any]:
    if isinstance(ends, str) or not isinstance(ends, Iterable):
        raise ConfigurationError(f"flow=: {start!r} leads to {ends!r}; write a list of states")
    return ends


def _of_statemachine(machine: Any) -> Iterable[tuple[Any, Iterable[Any]]]:
    # Source: python-statemachine documentation, "States" (State.value) and "Transitions".
    if any(getattr(state, "is_compound", False) for state in machine.states):
        raise ConfigurationError(
            "flow= takes a flat machine: a column holds one state, not a state within another"
        )
    return [
        (state.value, [one.target.value for one in state.transitions if one.target is not None])
        for state in machine.states
    ]


def _of_transitions(machine: Any) -> Iterable[tuple[Any, Iterable[Any]]]:
    # Source: the README of transitions. Its automatic events, to_X from everywhere, are no part of the flow.
    named = {name: state.value for name, state in machine.states.items()}
    pairs: list[tuple[Any, Iterable[Any]]] = [(value, []) for value in named.values()]
    for event in machine.events:
        for one in machine.get_transitions(event):
            automatic = machine.auto_transitions and event == f"to_{one.dest}"
            if one.dest is not None and not automatic:
                pairs.append((named.get(one.source, one.source), [named.get(one.dest, one.dest)]))
    return pairs
