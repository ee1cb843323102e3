"""Where models come from, laid out in columns from the base model to the releases, for an SVG without any script.

Each node goes one column behind the last of its origins (longest path); within a column they keep their order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from confide.proto import admin_pb2 as pb

WIDTH, HEIGHT, ACROSS, DOWN = 190, 46, 70, 18
MOST_BOXES = 60


@dataclass(frozen=True)
class Box:
    """A model. kind: base, run or release."""

    id: str
    kind: str
    label: str
    status: str
    x: int
    y: int
    address: str


@dataclass(frozen=True)
class Drawing:
    """Boxes, the paths between them with what is written on them, and the size of the whole."""

    boxes: tuple[Box, ...]
    lines: tuple[tuple[str, str], ...]
    width: int
    height: int
    left_out: int
    """Nodes that are not drawn."""


def _chosen(lineage: pb.Lineage) -> dict[str, pb.LineageNode]:
    """At most MOST_BOXES: what leads to releases first, then what else there is, the newest first."""
    nodes = {node.id: node for node in lineage.nodes}
    if len(nodes) <= MOST_BOXES:
        return nodes
    origins: dict[str, list[str]] = {}
    for edge in lineage.edges:
        origins.setdefault(edge.to, []).append(getattr(edge, "from"))
    chosen: dict[str, None] = {}
    look = [node.id for node in lineage.nodes if node.kind == "release"]
    look += [node.id for node in reversed(lineage.nodes) if node.kind == "run"]
    while look and len(chosen) < MOST_BOXES:
        one = look.pop(0)
        if one in nodes and one not in chosen:
            chosen[one] = None
            look[:0] = origins.get(one, [])
    return {name: node for name, node in nodes.items() if name in chosen}


def drawn(lineage: pb.Lineage) -> Drawing:
    """Edges to what is not there, and circles, are left out: nothing that came from elsewhere can hang this."""
    nodes = _chosen(lineage)
    edges = [(getattr(edge, "from"), edge.to, edge.round) for edge in lineage.edges]
    edges = [edge for edge in edges if edge[0] in nodes and edge[1] in nodes and edge[0] != edge[1]]
    columns = _columns(nodes, [(begin, end) for begin, end, _ in edges])
    rows = _rows(columns, [(begin, end) for begin, end, _ in edges])
    filled: dict[int, int] = {}
    boxes: dict[str, Box] = {}
    for name, node in nodes.items():
        column, row = columns[name], rows[name]
        filled[column] = max(filled.get(column, 0), row + 1)
        x, y = 4 + column * (WIDTH + ACROSS), 4 + row * (HEIGHT + DOWN)
        boxes[name] = Box(name, node.kind, node.label, node.status, x, y, _address(node))
    lines = tuple(
        (_path(boxes[begin], boxes[end]), f"round {number}" if number else "") for begin, end, number in edges
    )
    width = 8 + (max(filled, default=0) + 1) * (WIDTH + ACROSS) - ACROSS
    height = 8 + max(filled.values(), default=1) * (HEIGHT + DOWN) - DOWN
    return Drawing(tuple(boxes.values()), lines, width, height, len(lineage.nodes) - len(nodes))


def _columns(nodes: Mapping[str, pb.LineageNode], edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    columns = dict.fromkeys(nodes, 0)
    pairs = list(edges)
    for _ in range(min(len(nodes), 200)):
        moved = False
        for begin, end in pairs:
            if columns[end] <= columns[begin] < 200:
                columns[end], moved = columns[begin] + 1, True
        if not moved:
            break
    return columns


def _rows(columns: Mapping[str, int], edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Within each column in the order of what they come from, so that lines cross as seldom as may be."""
    origins: dict[str, list[str]] = {}
    for begin, end in edges:
        if columns[begin] < columns[end]:
            origins.setdefault(end, []).append(begin)
    rows: dict[str, int] = {}
    for column in sorted(set(columns.values())):
        names = [name for name in columns if columns[name] == column]
        heights = {name: [rows[one] for one in origins.get(name, [])] for name in names}
        names.sort(key=lambda name: sum(heights[name]) / len(heights[name]) if heights[name] else float(len(rows)))
        rows |= {name: row for row, name in enumerate(names)}
    return rows


def _path(begin: Box, end: Box) -> str:
    x, y = begin.x + WIDTH, begin.y + HEIGHT // 2
    to_x, to_y = end.x, end.y + HEIGHT // 2
    middle = (x + to_x) // 2
    return f"M{x} {y} C{middle} {y} {middle} {to_y} {to_x} {to_y}"


def _address(node: pb.LineageNode) -> str:
    kind, _, name = node.id.partition(":")
    return f"/runs/{name}" if kind == "run" and name.isalnum() else ""
