// The request log: drag over the histogram to choose a time, follow new requests, and keep views in this browser.

import "./copy.js";
import { byId, element } from "../site/dom.js";

const histogram = byId("log-histogram");

/** Go to the same list of another span of time. */
function open(from, until) {
  const query = new URLSearchParams(location.search);
  for (const name of ["older", "newer", "e"]) query.delete(name);
  for (const [name, time] of [["from", from], ["until", until]]) query.set(name, `${time.toISOString().slice(0, 16)}Z`);
  location.search = query;
}

function dragHistogram() {
  const { begin, minutes, number } = histogram.dataset;
  const selection = byId("log-selection");
  const placeOf = (event) => {
    const box = histogram.getBoundingClientRect();
    return Math.max(0, Math.min(number - 1, Math.floor(((event.clientX - box.left) / box.width) * number)));
  };
  let start = null;
  let span = [0, 0];
  const mark = (event) => {
    span = [start, placeOf(event)].sort((a, b) => a - b);
    selection.setAttribute("x", span[0]);
    selection.setAttribute("width", span[1] === span[0] ? 0 : span[1] - span[0] + 1);
  };
  histogram.addEventListener("dragstart", (event) => event.preventDefault());
  histogram.addEventListener("pointerdown", (event) => { start = event.button === 0 ? placeOf(event) : null; });
  histogram.addEventListener("pointermove", (event) => { if (start !== null) mark(event); });
  addEventListener("pointerup", () => {
    const isDragged = start !== null && Number(selection.getAttribute("width")) > 0;
    start = null;
    if (!isDragged) return;
    histogram.addEventListener("click", (event) => event.preventDefault(), { once: true, capture: true });
    const at = (place) => new Date(Date.parse(begin) + place * minutes * 60_000);
    open(at(span[0]), at(span[1] + 1));
  });
}

// Live: one page of the list every few seconds, for some minutes, while the page is visible.
const EVERY = 5000;
const MOST = 120;
const live = byId("log-live");
const status = byId("log-live-status");
let timer = 0;
let polls = 0;

async function poll() {
  try {
    if (!document.hidden) {
      const query = new URLSearchParams(location.search);
      for (const name of ["older", "newer"]) query.delete(name);
      query.set("tail", "1");
      const answer = await fetch(`?${query}`, { redirect: "error", signal: AbortSignal.timeout(20_000) });
      if (!answer.ok) throw new Error(String(answer.status));
      const parts = new DOMParser().parseFromString(await answer.text(), "text/html");
      byId("log-rows").replaceWith(document.adoptNode(parts.getElementById("log-rows")));
      status.textContent = `updated ${new Date().toISOString().slice(11, 19)} UTC`;
      polls += 1;
    }
    if (polls >= MOST) stop("stopped after ten minutes");
    else timer = setTimeout(poll, EVERY);
  } catch {
    stop("stopped: the list could not be loaded");
  }
}

function stop(text) {
  clearTimeout(timer);
  live.checked = false;
  status.textContent = text;
}

live.addEventListener("change", () => {
  polls = 0;
  if (live.checked) poll();
  else stop("");
});

// Saved views: names and queries, in this browser.
const STORE = "request-log-views";

function savedViews() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

function keepViews(views) {
  localStorage.setItem(STORE, JSON.stringify(views));
  showViews();
}

function showViews() {
  const items = Object.entries(savedViews()).map(([name, query]) => {
    const remove = element("button", { type: "button", "aria-label": `Remove ${name}`, click: () => { const { [name]: _, ...rest } = savedViews(); keepViews(rest); } }, "×");
    return element("p", {}, element("a", { href: `?${query}` }, name), " ", remove);
  });
  byId("log-views-list").replaceChildren(...items);
}

byId("log-view-save").addEventListener("click", () => {
  const name = byId("log-view-name").value.trim();
  const query = new URLSearchParams(location.search);
  for (const each of ["older", "newer", "e"]) query.delete(each);
  if (name) keepViews({ ...savedViews(), [name]: String(query) });
  byId("log-view-name").value = "";
});

showViews();
if (histogram) dragHistogram();
