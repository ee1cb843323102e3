// Lines over rounds, drawn by uPlot from the same figures as the table below them.
"use strict";
(() => {
  const LIGHT = ["#0b5c57", "#a2540a", "#40506b", "#8b2f6b", "#4f7a15", "#a01c1c"];
  const DARK = ["#7fd6c6", "#f0c26a", "#b3c4e6", "#e59bd0", "#b8dc7a", "#ff9d94"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function draw(box, rounds, lines) {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--soft").trim();
    const grid = getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
    const axis = {stroke: ink, grid: {stroke: grid, width: 1}, ticks: {stroke: grid}};
    const colors = dark.matches ? DARK : LIGHT;
    const series = lines.map(([name], number) => ({label: name, stroke: colors[number % 6], width: 2, spanGaps: true, points: {show: rounds.length < 60}}));
    const options = {
      title: box.dataset.title, width: Math.max(240, box.clientWidth - 16), height: 230, scales: {x: {time: false}},
      axes: [{...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000]}, {...axis, size: 60}], series: [{label: "round"}, ...series],
    };
    box.replaceChildren();
    return new window.uPlot(options, [rounds, ...lines.map(([, values]) => values)], box);
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
    if (!again) for (const root of document.querySelectorAll("[data-compare]")) await several(root).catch(() => {});
  }

  document.addEventListener("htmx:afterSwap", () => look(true));
  dark.addEventListener("change", () => { known = ""; look(false); });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => look(false)); else look(false);
})();
