"""mini_prosqa: does a path lead from one person to another? A small version of Coconut's ProsQA
(arXiv 2412.06769), no download.

    Fay gives Gus coins. Max gives Mia coins. Ava gives Ben coins. Leo gives Kate coins. Ben gives Fay coins.
    [..] Leo and Ava have coins. After a week one of Mia and Gus has the coins that Ava has now?
    steps   Ava gives Ben coins. / Ben gives Fay coins. / Fay gives Gus coins. / Leo gives Kate coins. / [..]
    answer  Gus

A problem is a directed graph. The text names its edges in random order. Two tracks of the same length (3 to 6
edges) and shape lead from two starts to two ends. One start is asked about, and both ends are offered. The
chain follows the track that is asked about, then the other. The rest of the graph rules out shortcuts:

    Ava ──> · ──┬──> · ──┬──> · ──> Gus    the track that is asked about; in half of the problems one person
                └──> · ──┘                 on each track has a twin, which makes two shortest paths
    Leo ──> · ─────> · ─────> · ──> Mia    the other track
    source ──> one of each track           an end can be reached from others than its start
    one of each track ──> sink             the tracks are connected: only directions tell them apart

Both ends look alike: no edge leaves them, both are as far from their start, and neither their place in the
text nor how often they and their givers occur predicts the answer better than chance. Only following the
edges does. (Without regard to direction, the nearer end is right in 78 % of the cases.) Names and words are
mini's, so mini-base can read them. But it has to learn the lookup "who does X give to", and how soon it does
depends on how many lookups an example holds: with chains along the first track alone it was not learnt in
2,000 steps (results/TRIALS.md). That is what the second track in the chain is for.
"""

import random
from itertools import product

from .answers import Example
from .words import PEOPLE

HOPS = (3, 6)
MAX_CHAINS = 24  # shortest paths kept for a track

Edge = tuple[str, str]


def track(names: list[str], hops: int, twin: int | None) -> tuple[list[str], list[Edge]]:
    """People in a row, each of whom gives to the next, and the edges. With `twin`, another person has the
    same edges as the one at this place. The names are taken from the list."""
    row = [names.pop() for _ in range(hops + 1)]
    edges = list(zip(row, row[1:]))
    if twin is not None:
        other = names.pop()
        edges += [(row[twin - 1], other), (other, row[twin + 1])]
    return row, edges


def shortest_paths(edges: list[Edge], start: str, end: str) -> list[tuple[Edge, ...]]:
    """All shortest paths from start to end in a graph without cycles, as edges, in the order of the edges; at
    most MAX_CHAINS, [] if there is none."""
    paths = [((), start)]
    while paths and not any(at == end for _, at in paths):
        paths = [((*path, edge), edge[1]) for path, at in paths for edge in edges if edge[0] == at]
    return [path for path, at in paths if at == end][:MAX_CHAINS]


def sentence(edge: Edge) -> str:
    """Both names stand before a space, so that a person is the same token everywhere."""
    return f"{edge[0]} gives {edge[1]} coins."


def make(rng: random.Random) -> Example:
    """One problem. `steps` is the pair of shortest paths that the text names first, `chains` all pairs."""
    names, hops = rng.sample(PEOPLE, len(PEOPLE)), rng.randint(*HOPS)
    twin = rng.randrange(1, hops) if rng.random() < 0.5 else None
    (one, edges), (two, more) = track(names, hops, twin), track(names, hops, twin)
    sink, source = names.pop(), names.pop()
    for row in (one, two):
        more += [(rng.choice(row[:-1]), sink), (source, rng.choice(row[1:-1]))]
    edges += more
    rng.shuffle(edges)
    a, b = rng.sample([one[0], two[0]], 2)
    c, d = rng.sample([one[-1], two[-1]], 2)
    question = f"{a} and {b} have coins. After a week one of {c} and {d} has the coins that {one[0]} has now?"
    paths = product(shortest_paths(edges, one[0], one[-1]), shortest_paths(edges, two[0], two[-1]))
    chains = tuple(tuple(map(sentence, first + second)) for first, second in paths)
    return Example(" ".join([*map(sentence, edges), question]), chains[0], one[-1], chains)
