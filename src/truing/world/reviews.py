"""The words of the world that the tour lives in: four kinds of place, and what is good or bad about each."""

from __future__ import annotations

from truing.world.world import Feature, Place, Verdict, World

REVIEWS = World(
    verdicts=(
        Verdict("Five stars", praises=2),
        Verdict("Three stars", praises=1),
        Verdict("One star", praises=0),
    ),
    settings=(
        "corner",
        "old",
        "little",
        "new",
        "village",
        "harbour",
        "riverside",
        "station",
        "hillside",
        "market",
        "seaside",
        "castle",
    ),
    places=(
        Place(
            "bakery",
            (
                Feature("bread was", ("crisp", "fragrant"), ("stale", "burnt")),
                Feature("cakes were", ("moist", "light"), ("dry", "heavy")),
                Feature("coffee was", ("strong", "smooth"), ("weak", "bitter")),
            ),
        ),
        Place(
            "hotel",
            (
                Feature("room was", ("sunny", "quiet"), ("damp", "noisy")),
                Feature("bed was", ("soft", "wide"), ("hard", "narrow")),
                Feature("porter was", ("helpful", "swift"), ("clumsy", "sullen")),
            ),
        ),
        Place(
            "cinema",
            (
                Feature("film was", ("gripping", "funny"), ("dull", "endless")),
                Feature("seats were", ("roomy", "padded"), ("cramped", "torn")),
                Feature("popcorn was", ("buttery", "crunchy"), ("soggy", "salty")),
            ),
        ),
        Place(
            "garden",
            (
                Feature("roses were", ("lush", "colourful"), ("withered", "trampled")),
                Feature("paths were", ("shady", "smooth"), ("muddy", "blocked")),
                Feature("pond was", ("calm", "sparkling"), ("murky", "smelly")),
            ),
        ),
    ),
    vague=("nice", "bad"),
    hedges=("Maybe",),
    openers=(),
    thanks=("Thanks!", "Cheers!"),
    insults=("Rubbish!", "Shame!"),
)
