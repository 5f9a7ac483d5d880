"""The order in which things that need each other can be worked out."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def topological(uses: Mapping[str, set[str]]) -> tuple[list[str], list[str]]:
    """Names after all that they use, ties in alphabetical order (Kahn 1962).

    ``uses`` gives for each name those that it needs, all of them keys themselves. Where there is a cycle, the
    first list is empty and the second holds one, from a name back to itself.
    """
    missing = {name: set(used) for name, used in uses.items()}
    users: dict[str, list[str]] = {name: [] for name in uses}
    for name, used in uses.items():
        for other in used:
            users[other].append(name)
    ready = [name for name, used in missing.items() if not used]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = heapq.heappop(ready)
        order.append(name)
        for user in users[name]:
            missing[user].discard(name)
            if not missing[user]:
                heapq.heappush(ready, user)
    if len(order) == len(uses):
        return order, []
    stuck = {name: used for name, used in missing.items() if used}
    path = [min(stuck)]
    while path[-1] not in path[:-1]:
        path.append(min(used for used in stuck[path[-1]] if used in stuck))
    return [], path[path.index(path[-1]) :][::-1]
