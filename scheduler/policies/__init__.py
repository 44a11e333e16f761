"""Policies: pure functions from a problem and a time budget to a plan.

`resolve` finds one by the name that `--policy` takes, such as `edf` or `fixed:2`. To add a policy,
write a module with a factory and enter it here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from scheduler.policies.by_node import by_node
from scheduler.problem import Policy


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a policy's factory is; imported on first use, because solvers are slow to import."""

    module: str
    factory: str
    help: str
    argument: str = ""
    optional: bool = False

    def takes(self, argument: str) -> bool:
        """Whether the policy's name can come with this argument (or, where it is empty, without)."""
        return bool(argument) == bool(self.argument) or (self.optional and not argument)


_POLICIES: dict[str, _Entry] = {
    "cp-sat": _Entry("cp_sat", "cp_sat", "the round as an optimisation problem, solved by OR-Tools CP-SAT"),
    "ilp": _Entry(
        "ilp",
        "ilp",
        "the same model in PuLP, solved by CBC, or by another that is installed (glpk, highs, scip, ...)",
        "SOLVER",
        optional=True,
    ),
    "edf": _Entry("edf", "edf", "earliest deadline first, each at the cheapest degree that meets it"),
    "search": _Entry(
        "exact",
        "search",
        "what cp-sat begins with: edf, and a choice and a local search where it loses somebody",
    ),
    "fixed": _Entry("fixed", "fixed", "static groups of K GPUs, first come first served", "K"),
    "rssp": _Entry("fixed", "rssp", "a static degree for every size, first come first served"),
    "tetriserve": _Entry(
        "tetriserve",
        "tetriserve",
        "the paper's rounds and knapsack; variants: schedule, placement, scale-up (parts of it), event",
        "VARIANT",
        optional=True,
    ),
    "srtf": _Entry("srtf", "srtf", "shortest remaining time first, each at its fastest degree"),
    "edf-best-fit": _Entry(
        "edf_best_fit", "edf_best_fit", "earliest deadline first, each at the narrowest degree that meets it"
    ),
}


def names() -> list[str]:
    """Names as `resolve` takes them, with K for a policy's argument, in brackets what may be left out."""
    forms = {(False, False): "", (True, False): ":{}", (True, True): "[:{}]"}
    return [
        name + forms[bool(entry.argument), entry.optional].format(entry.argument)
        for name, entry in _POLICIES.items()
    ]


def describe() -> str:
    """One line a policy, for --help."""
    width = max(map(len, names()))
    return "\n".join(f"{name:{width}}  {e.help}" for name, e in zip(names(), _POLICIES.values(), strict=True))


def resolve(name: str) -> Policy:
    """The policy called `name`; ValueError says what there is."""
    base, _, argument = name.partition(":")
    entry = _POLICIES.get(base)
    if entry is None or not entry.takes(argument):
        raise ValueError(f"unknown policy {name!r}; there are {', '.join(names())}")
    factory: Callable[..., Policy] = getattr(
        import_module(f"scheduler.policies.{entry.module}"), entry.factory
    )
    return by_node(factory(argument) if argument else factory())
