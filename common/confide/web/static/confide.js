// What pages do where scripts run: times in the viewer's zone, ages that tick, and a look again when something happened.
"use strict";
(() => {
  function duration(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    if (whole < 60) return `${whole} s`;
    const parts = [[Math.floor(whole / 86400), "d"], [Math.floor(whole / 3600) % 24, "h"], [Math.floor(whole / 60) % 60, "min"]];
    return parts.filter(([count]) => count).slice(0, 2).map(([count, unit]) => `${count} ${unit}`).join(" ");
  }

  function localise(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      if (time.dataset.local) continue;
      const moment = new Date(time.dateTime);
      if (Number.isNaN(moment.getTime())) continue;
      time.dataset.local = "1";
      const near = Math.abs(Date.now() - moment) < 20 * 3600 * 1000;
      time.textContent = near ? moment.toLocaleTimeString() : moment.toLocaleString(undefined, {dateStyle: "medium", timeStyle: "short"});
    }
  }

  function tick() {
    const now = performance.now();
    for (const one of document.querySelectorAll(".age[data-age]")) {
      if (!one.dataset.since) one.dataset.since = String(now);
      one.textContent = duration(Number(one.dataset.age) + (now - Number(one.dataset.since)) / 1000);
    }
  }

  // Fragments carry data-tick; they are fetched again when the server says so: at a run's next step at once, else at most
  // once a second, and at its beats, which keep the age honest while nothing happens.
  let last = 0, waiting = 0;
  function look(atOnce) {
    window.clearTimeout(waiting);
    const left = atOnce ? 0 : 1000 - (performance.now() - last);
    if (left > 0) { waiting = window.setTimeout(look, left); return; }
    last = performance.now();
    for (const one of document.querySelectorAll("[data-tick]")) window.htmx.trigger(one, "tick");
  }

  function listen() {
    const where = document.body.querySelector("[data-live]");
    if (!where) return;
    const source = new EventSource(where.dataset.live);
    let lost = false;
    source.addEventListener("step", () => look(true));
    source.addEventListener("tick", () => look());
    source.addEventListener("beat", () => { if (!document.hidden) look(); });
    source.addEventListener("open", () => { if (lost) look(); lost = false; });
    source.addEventListener("error", () => {
      lost = true;
      if (source.readyState === EventSource.CLOSED) window.setTimeout(() => { source.close(); listen(); }, 5000);
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
    window.addEventListener("pagehide", () => source.close());
  }

  function start() {
    document.documentElement.classList.add("scripts");
    localise(document);
    tick();
    window.setInterval(tick, 1000);
    listen();
    // Where the stream brings no beat the page looks again by itself.
    window.setInterval(() => { if (!document.hidden && performance.now() - last > 16000) look(); }, 2000);
  }

  // What a reader has opened, scrolled or focused in a fragment is so again in the one that takes its place. It is known
  // by what it is, not by its place: lines come and go above it.
  const FOCUSABLE = "a, button, summary, [tabindex]";
  function names(root, selector) {
    const seen = new Map();
    return [...root.querySelectorAll(selector)].map(one => {
      const near = one.parentElement.closest("[id]");
      const said = /^(BUTTON|SUMMARY)$/.test(one.tagName) ? one.dataset.copy || one.textContent.trim().replace(/\d+/g, "0") : "";
      const name = [near === root ? "" : near?.id, one.tagName, one.id, said, one.form?.getAttribute("action"),
        ...["href", "aria-label", "name", "value"].map(attribute => one.getAttribute(attribute))].join("|");
      seen.set(name, (seen.get(name) || 0) + 1);
      return [`${name}|${seen.get(name)}`, one];
    });
  }
  let kept = null;
  function keep(old) {
    const active = document.activeElement, found = old.contains(active);
    kept = {
      id: old.id, found,
      open: new Map(names(old, "summary").map(([name, one]) => [name, one.parentElement.open])),
      scrolled: [...old.querySelectorAll(".scroll, .events")].map(one => [one.scrollTop, one.scrollLeft]),
      focus: found ? names(old, FOCUSABLE).find(([, one]) => one === active)?.[0] : undefined,
    };
  }
  function restore() {
    const fresh = kept && document.getElementById(kept.id), was = kept;
    kept = null;
    if (!fresh) return;
    for (const [name, one] of names(fresh, "summary")) if (was.open.has(name)) one.parentElement.open = was.open.get(name);
    fresh.querySelectorAll(".scroll, .events").forEach((one, number) => { [one.scrollTop, one.scrollLeft] = was.scrolled[number] || [0, 0]; });
    if (!was.found) return;
    const same = names(fresh, FOCUSABLE).find(([name]) => name === was.focus)?.[1];
    if (!same) fresh.tabIndex = -1;  // what it was is gone: the next key goes on from here, not from the page's top
    (same || fresh).focus({preventScroll: true});
  }

  document.addEventListener("htmx:afterSwap", () => {
    restore();
    localise(document);
    tick();
  });
  function lost(is) {
    const banner = document.getElementById("lost");
    if (banner) banner.hidden = !is;
  }
  document.addEventListener("htmx:sendError", () => lost(true));
  document.addEventListener("htmx:afterRequest", event => { if (event.detail.successful) lost(false); });
  document.addEventListener("htmx:beforeSwap", event => {
    // A fragment is not swapped away under somebody who is writing into it or has opened a part of it.
    const elt = event.detail.target;
    const active = document.activeElement;
    if (elt.dataset.tick !== undefined && active && elt.contains(active) && /^(INPUT|SELECT|TEXTAREA)$/.test(active.tagName)) {
      event.detail.shouldSwap = false;
    }
    if (event.detail.shouldSwap) keep(elt);
    if (event.detail.xhr.status === 403 || event.detail.xhr.status === 401) window.location.reload();
  });
  document.addEventListener("change", event => { if (event.target.matches("[data-submits]")) event.target.form.requestSubmit(); });
  document.addEventListener("click", event => {
    const copy = event.target.closest("[data-copy]");
    if (copy) navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent).then(() => { copy.textContent = copy.dataset.copied; });
  });
  document.addEventListener("click", event => {
    const save = event.target.closest("[data-save]");
    if (!save) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([document.getElementById(save.dataset.save).value], {type: "application/toml"}));
    link.download = save.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  // One key presses the button that names it, where nobody is writing.
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const button = [...document.querySelectorAll("[data-keys] [data-key]")].find(one => one.dataset.key === event.key);
    if (button) { event.preventDefault(); button.click(); }
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
