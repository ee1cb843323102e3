"""Record a command in a terminal as a moving picture (SVG): what the README shows of the demo.

    python -m pip install pyte                # in an environment of its own: nothing else needs it
    python tools/record_cast.py docs/images/demo.svg -- .venv/bin/confide demo --output /tmp/demo

The command runs in a real pseudo-terminal. Frames are what its screen showed, in its order; time is compressed to
`--seconds`, and the picture says by how much.
"""

import argparse
import os
import pty
import select
import sys
import time
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from pathlib import Path

import pyte

CHARACTER_PX, LINE_PX, MARGIN_PX = 8.4, 18, 14
LONGEST_STILL = 0.12
"""Part of the picture's time that one frame may take; the last one, which people read, takes `HOLD`."""
HOLD = 0.25
COLOURS = {
    "default": "#d7dae0",
    "black": "#5c6370",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#ffffff",
}

Cell = tuple[str, str, bool]
"""Text, colour, bold."""


@dataclass(frozen=True)
class Frame:
    """What the screen showed from `at_s` on."""

    at_s: float
    lines: tuple[tuple[Cell, ...], ...]


def record(command: list[str], columns: int, rows: int) -> list[Frame]:
    """Run it, and return every screen that differs from the one before. Raises SystemExit with its status."""
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)}
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)  # noqa: S606 - the command is the caller's own
    frames, began = [Frame(0.0, shown(screen))], time.monotonic()
    while data := _read(descriptor):
        stream.feed(data)
        lines = shown(screen)
        if lines != frames[-1].lines:
            frames.append(Frame(time.monotonic() - began, lines))
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return frames


def _read(descriptor: int) -> bytes:
    """What came until the terminal was silent for a moment; empty at its end."""
    data = b""
    while not data or select.select([descriptor], [], [], 0.1)[0]:
        try:
            more = os.read(descriptor, 65536)
        except OSError:
            break
        if not more:
            break
        data += more
    return data


def shown(screen: pyte.Screen) -> tuple[tuple[Cell, ...], ...]:
    """The screen's lines as runs of equal colour, without what is empty at the right and below."""
    lines = [_runs(screen, row) for row in range(screen.lines)]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def _runs(screen: pyte.Screen, row: int) -> tuple[Cell, ...]:
    cells = [screen.buffer[row][column] for column in range(screen.columns)]
    last = max((index for index, cell in enumerate(cells) if cell.data != " "), default=-1)
    runs = groupby(cells[: last + 1], key=lambda cell: (cell.fg, cell.bold))
    return tuple(("".join(cell.data for cell in run), colour, bold) for (colour, bold), run in runs)


def times(frames: list[Frame]) -> list[float]:
    """When each frame begins, from 0 to 1 - HOLD of the picture's time: to scale, save for long stills."""
    whole = frames[-1].at_s or 1.0
    steps = [min((after.at_s - before.at_s) / whole, LONGEST_STILL) for before, after in pairwise(frames)]
    scale = (1.0 - HOLD) / (sum(steps) or 1.0)
    begins = [0.0]
    for step in steps:
        begins.append(begins[-1] + step * scale)
    return [round(begin, 4) for begin in begins]


def thinned(frames: list[Frame], count: int) -> list[Frame]:
    """At most so many, the first and the last among them, spread over the recording's time."""
    step = frames[-1].at_s / count
    kept = [frames[0]]
    for frame in frames[1:-1]:
        if frame.at_s - kept[-1].at_s >= step:
            kept.append(frame)
    return [*kept, frames[-1]]


def svg(frames: list[Frame], columns: int, seconds: float, title: str) -> str:
    """The picture: every frame a group, which CSS shows in its time. Without animation the last one stays."""
    rows = max(len(frame.lines) for frame in frames)
    width, height = columns * CHARACTER_PX + 2 * MARGIN_PX, rows * LINE_PX + 2 * MARGIN_PX
    begins = [*times(frames), 1.0]
    style = [
        "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre;fill:#d7dae0}",
        f"g{{visibility:hidden;animation:{seconds}s step-end infinite}}",
        "g:last-of-type{visibility:visible} @media (prefers-reduced-motion){g{animation-name:none!important}}",
    ]
    groups = []
    for index, frame in enumerate(frames):
        begin, end = begins[index] * 100, begins[index + 1] * 100
        style.append(f"#f{index}{{animation-name:k{index}}}")
        hidden = "0%{visibility:hidden}" if begin else ""
        over = f"{end:.2f}%{{visibility:hidden}}" if end < 100 else ""
        style.append(f"@keyframes k{index}{{{hidden}{begin:.2f}%{{visibility:visible}}{over}}}")
        groups.append(f'<g id="f{index}">{"".join(_text(row, line) for row, line in enumerate(frame.lines))}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">'
        f"<title>{escape(title)}</title><style>{''.join(style)}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#16181d"/>{"".join(groups)}</svg>\n'
    )


def _text(row: int, line: tuple[Cell, ...]) -> str:
    if not line:
        return ""
    spans = "".join(_span(text, colour, bold) for text, colour, bold in line)
    return f'<text x="{MARGIN_PX}" y="{MARGIN_PX + 13 + row * LINE_PX}">{spans}</text>'


def _span(text: str, colour: str, bold: bool) -> str:
    fill = COLOURS.get(colour.removeprefix("bright"), f"#{colour}" if len(colour) == 6 else COLOURS["default"])
    plain = colour == "default" and not bold
    weight = ' font-weight="700"' if bold else ""
    return escape(text) if plain else f'<tspan fill="{fill}"{weight}>{escape(text)}</tspan>'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the picture; behind it -- and the command")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=24.0, help="how long the picture takes")
    parser.add_argument("--frames", type=int, default=40)
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    if not command:
        parser.error("behind -- comes the command to record")
    frames = record(command, options.columns, options.rows)
    whole_s = frames[-1].at_s
    title = f"{' '.join(command)}: {whole_s:.0f} s, shown in {options.seconds:.0f} s"
    picture = svg(thinned(frames, options.frames), options.columns, options.seconds, title)
    options.out.write_text(picture, "utf-8")
    sys.stderr.write(f"{options.out}: {len(picture)} bytes, {whole_s:.0f} s in {options.seconds:.0f} s\n")


if __name__ == "__main__":
    main()
