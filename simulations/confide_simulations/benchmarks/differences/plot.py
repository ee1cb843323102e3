"""The figure of the differences benchmark: how well two sums point at one organization, from its JSON result."""

from pathlib import Path
from typing import Any

_LABELS = {
    "one_missing": "one member missing",
    "blocks": "its block missing",
    "organization_privacy": "noised",
    "one_sum": "one sum alone",
}
_STYLES = {"one_missing": "o-", "blocks": "s--", "organization_privacy": "^:", "one_sum": "x-."}


def draw(result: dict[str, Any], path: Path) -> None:
    """Cosine against local steps, one panel for each number of rounds apart; lines by members and protection."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table, config = result["table"], result["meta"]["config"]
    figure, panels = pyplot.subplots(
        1,
        len(config["apart"]),
        figsize=(3.2 * len(config["apart"]), 3.2),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    shades = {count: f"C{number}" for number, count in enumerate(config["members"])}
    for axes, apart in zip(panels[0], config["apart"], strict=True):
        for kind, style in _STYLES.items():
            for count, colour in shades.items():
                rows = [row for row in table if row["members"] == count and row["rounds_apart"] == apart]
                values = [row[kind]["cosine"] for row in rows]
                axes.plot([row["local_steps"] for row in rows], values, style, color=colour, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(config["steps"], [str(step) for step in config["steps"]])
        axes.set_xlabel("local steps")
        axes.set_title("same model" if apart == 0 else f"{apart} round{'s' if apart > 1 else ''} apart", fontsize=10)
    panels[0][0].set_ylabel("cosine with the missing update")
    lines = [pyplot.Line2D([], [], color="0.3", linestyle=style[1:], marker=style[0]) for style in _STYLES.values()]
    lines += [pyplot.Line2D([], [], color=colour) for colour in shades.values()]
    names = [*(_LABELS[kind] for kind in _STYLES), *(f"{count} organizations" for count in shades)]
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
