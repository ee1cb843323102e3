// Lines over rounds or time, drawn by uPlot from the same figures as the table below them, and kept as PNG.
"use strict";
(() => {
  const LIGHT = ["#0b5c57", "#a2540a", "#40506b", "#8b2f6b", "#4f7a15", "#a01c1c"];
  const DARK = ["#7fd6c6", "#f0c26a", "#b3c4e6", "#e59bd0", "#b8dc7a", "#ff9d94"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function draw(box, rounds, lines, overTime = false) {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--soft").trim();
    const grid = getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
    const axis = {stroke: ink, grid: {stroke: grid, width: 1}, ticks: {stroke: grid}};
    const colors = dark.matches ? DARK : LIGHT;
    const steps = overTime ? {paths: window.uPlot.paths.stepped({align: 1})} : {};
    const series = lines.map(([name], number) => ({
      label: name, width: 2, spanGaps: true, points: {show: !overTime && rounds.length < 60}, ...steps,
      stroke: colors[(overTime ? number >> 1 : number) % 6], dash: overTime && number % 2 ? [6, 4] : [],
    }));
    const below = overTime ? axis : {...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000]};
    const options = {
      title: box.dataset.title, width: Math.max(240, box.clientWidth - 16), height: 230, scales: {x: {time: overTime}},
      axes: [below, {...axis, size: 60}], series: [{label: box.dataset.x}, ...series],
    };
    box.replaceChildren();
    const plot = new window.uPlot(options, [rounds, ...lines.map(([, values]) => values)], box);
    if (box.dataset.png) offer(box, plot, series, ink);
    return plot;
  }

  // The picture is what is seen: the plot on the page's paper, with its title above and what each line is below.
  function picture(box, plot, series, ink) {
    const from = plot.ctx.canvas, scale = window.devicePixelRatio || 1, row = 22 * scale;
    const canvas = document.createElement("canvas");
    canvas.width = from.width; canvas.height = from.height + row * (2 + series.length);
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--raised").trim();
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.font = `600 ${14 * scale}px sans-serif`;
    context.fillStyle = ink;
    context.fillText(box.dataset.title, row / 2, row);
    context.drawImage(from, 0, row * 1.5);
    context.font = `${12 * scale}px sans-serif`;
    series.forEach((line, number) => {
      const y = from.height + row * (number + 2.2);
      context.fillStyle = line.stroke;
      context.fillRect(row / 2, y - 8 * scale, row, 3 * scale);
      context.fillStyle = ink;
      context.fillText(line.label, row * 2, y);
    });
    return canvas;
  }

  // One button a chart, however often it is drawn: where the keyboard is stays when a round comes.
  function offer(box, plot, series, ink) {
    let button = box.nextElementSibling;
    if (!button || !button.classList.contains("picture")) {
      button = document.createElement("button");
      button.type = "button"; button.className = "quiet picture"; button.textContent = box.dataset.png;
      box.after(button);
    }
    button.onclick = () => picture(box, plot, series, ink).toBlob(blob => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob); link.download = `${box.dataset.name || "chart"}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }, "image/png");
  }

  async function columnsOf(address) {
    const answer = await fetch(address, {headers: {accept: "application/json"}});
    if (!answer.ok) throw new Error(String(answer.status));
    return answer.json();
  }

  async function one(root) {
    const columns = await columnsOf(root.dataset.charts);
    for (const box of root.querySelectorAll(".chart")) {
      const lines = box.dataset.columns.split(" ").filter(name => columns[name] && columns[name].some(value => value !== null))
        .map(name => [name.replace("_", " "), columns[name]]);
      box.hidden = !lines.length;
      if (lines.length) draw(box, columns.round, lines);
    }
  }

  async function steps(root) {
    const columns = await columnsOf(root.dataset.lines);
    const lines = Object.entries(columns).filter(([name]) => name !== "time");
    for (const box of root.querySelectorAll(".chart")) {
      box.hidden = !lines.length || columns.time.length < 2;
      if (!box.hidden) draw(box, columns.time, lines, true);
    }
  }

  async function several(root) {
    const every = await Promise.all(root.dataset.compare.trim().split(/\s+/).map(columnsOf));
    const names = root.dataset.names.split("|");
    const longest = Math.max(...every.map(columns => Math.max(0, ...columns.round)));
    const rounds = Array.from({length: longest}, (_, number) => number + 1);
    for (const box of root.querySelectorAll(".chart")) {
      const lines = every.map((columns, number) => {
        const found = new Map(columns.round.map((round, place) => [round, (columns[box.dataset.columns] || [])[place] ?? null]));
        return [names[number], rounds.map(round => found.get(round) ?? null)];
      });
      draw(box, rounds, lines);
    }
  }

  let known = "";
  async function look(again) {
    for (const root of document.querySelectorAll("[data-charts]")) {
      const done = document.querySelector("#live progress");
      const now = done ? String(done.value) : "";
      if (again && now === known) continue;
      known = now;
      await one(root).catch(() => {});
    }
    // Lines over time stay where a fragment around them is replaced; they are drawn again when its mark is another one.
    for (const root of document.querySelectorAll("[data-lines]")) {
      const mark = root.closest("[data-mark]")?.dataset.mark || "";
      if (again && root.drawn === mark) continue;
      root.drawn = mark;
      await steps(root).catch(() => {});
    }
    if (again) return;
    for (const root of document.querySelectorAll("[data-compare]")) await several(root).catch(() => {});
  }

  document.addEventListener("htmx:afterSwap", () => look(true));
  dark.addEventListener("change", () => { known = ""; look(false); });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => look(false)); else look(false);
})();
