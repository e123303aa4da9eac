"""mini_prosqa: is there a way from one person to another? Coconut's ProsQA (arXiv 2412.06769) in small, no download.

    Fay gives Gus coins. Max gives Mia coins. Ava gives Ben coins. Leo gives Kate coins. Ben gives Fay coins. ..
    Leo and Ava have coins. After a week one of Mia and Gus has the coins that Ava has now?
    steps   Ava gives Ben coins. / Ben gives Fay coins. / Fay gives Gus coins. / Leo gives Kate coins. / ..        answer Gus

A problem is a directed graph, told edge by edge in random order. Two tracks of the same length (3 to 6 edges) and shape
lead from two starts to two ends; one start is asked about, and both ends are offered. The chain follows the track that is
asked about, then the other. The rest is against shortcuts:

    Ava ──> · ──┬──> · ──┬──> · ──> Gus        the track that is asked about; in half of the problems someone on each
                └──> · ──┘                     track has a twin: two shortest ways each, all known
    Leo ──> · ─────> · ─────> · ──> Mia        the other track
    source ──> one of each track               an end can be reached from others than its start
    one of each track ──> sink                 the tracks hang together: only directions tell them apart

Both ends look alike: nobody gets from them, both are as far from a start, and neither their place in the text nor how often
they and their givers occur tells more than a coin. Only following the edges does (without regard to their direction, the
nearer end is right in 78 % of cases). The names are mini's, and so are all the words: mini-base can read them. But it has
to learn the lookup "who does X give to", and how soon depends on how many of them an example holds: a chain along the
first track alone has not been learnt in 2,000 steps (results/TRIALS.md). That is what the second is for.
"""

import random
from itertools import product

from .answers import Example
from .words import NAMES, split_of

PEOPLE = NAMES["She"] + NAMES["He"]
SIZES = {"train": 50_000, "val": 500, "test": 1000}
HOPS = (3, 6)
MAX_CHAINS = 24  # of shortest ways kept on a track

Edge = tuple[str, str]


def track(names: list[str], hops: int, twin: int | None) -> tuple[list[str], list[Edge]]:
    """People in a row, who each give to the next, and the edges. twin: someone else who does what the person at this
    place does. Takes its names from the list."""
    row = [names.pop() for _ in range(hops + 1)]
    edges = list(zip(row, row[1:]))
    if twin is not None:
        other = names.pop()
        edges += [(row[twin - 1], other), (other, row[twin + 1])]
    return row, edges


def shortest_ways(edges: list[Edge], start: str, end: str) -> list[tuple[Edge, ...]]:
    """All shortest ways from start to end in a graph without cycles, as edges; those whose edges come first in the list
    come first; at most MAX_CHAINS, [] if there is none."""
    ways = [((), start)]
    while ways and not any(at == end for _, at in ways):
        ways = [((*way, edge), edge[1]) for way, at in ways for edge in edges if edge[0] == at]
    return [way for way, at in ways if at == end][:MAX_CHAINS]


def sentence(edge: Edge) -> str:
    return (
        f"{edge[0]} gives {edge[1]} coins."  # both names before a space: one token each, the same everywhere
    )


def make(rng: random.Random) -> Example:
    """One problem."""
    names, hops = rng.sample(PEOPLE, len(PEOPLE)), rng.randint(*HOPS)
    twin = rng.randrange(1, hops) if rng.random() < 0.5 else None
    (one, edges), (two, more) = track(names, hops, twin), track(names, hops, twin)
    sink, source = names.pop(), names.pop()
    for row in (one, two):
        more += [(rng.choice(row[:-1]), sink), (source, rng.choice(row[1:-1]))]
    edges += more
    rng.shuffle(edges)
    ways = product(*(shortest_ways(edges, row[0], row[-1]) for row in (one, two)))
    starts, offered = (rng.sample([one[at], two[at]], 2) for at in (0, -1))
    asked = f"{starts[0]} and {starts[1]} have coins. After a week one of {offered[0]} and {offered[1]} has the coins that {one[0]} has now?"
    chains = tuple(tuple(map(sentence, asked_about + other)) for asked_about, other in ways)
    return Example(" ".join([*map(sentence, edges), asked]), chains[0], one[-1], chains)


def load(
    name: str = "mini_prosqa",
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    chain_order: str = "text",
) -> list[Example]:
    """`limit` problems (default: SIZES[split]), the same for the same arguments. The split of a problem is read off a
    hash of its text with the names numbered, as in mini.

    chain_order: where there are several shortest ways, `steps` is the one that the text tells first, or a random one.
    """
    rng = random.Random(f"{name} {split} {seed}")
    examples: list[Example] = []
    while len(examples) < (SIZES[split] if limit is None else limit):
        example = make(rng)
        if split_of(example.question) != split:
            continue
        if chain_order == "random":
            example = Example(example.question, rng.choice(example.chains), example.answer, example.chains)
        examples.append(example)
    return examples
