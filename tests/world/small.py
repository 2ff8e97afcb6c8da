"""A world small enough to write out by hand: 2 places of 2 features, 1 word of praise and 1 of blame each."""

from __future__ import annotations

from truing.world.world import Feature, Place, Verdict, World

SMALL = World(
    verdicts=(Verdict("Two thumbs", praises=2), Verdict("No thumbs", praises=0)),
    settings=("old", "new", "red", "wet"),
    places=(
        Place("pub", (Feature("beer was", ("cool",), ("warm",)), Feature("chips were", ("hot",), ("limp",)))),
        Place("zoo", (Feature("bear was", ("awake",), ("asleep",)), Feature("cages were", ("big",), ("tiny",)))),
    ),
    vague=("nice", "bad"),
    hedges=("I guess",),
    openers=("Well,",),
    thanks=("Cheers!",),
    insults=("Pah!",),
)
