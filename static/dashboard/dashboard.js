// The admin's index: draws the charts, and refreshes them while the page is visible.
//
// A refresh sends the mark of the displayed data. If nothing has changed since, the response is empty and cheap.

import "../admin/copy.js";
import { NUMBERS, drawChart } from "../site/charts.js";
import { byId, element } from "../site/dom.js";

const CHOICE = "dashboard-refresh";
const root = byId("dashboard");
const automatic = byId("dash-auto");
const stale = byId("dash-stale");
const again = byId("dash-now");
let timer = 0;
let readAt = new Date();

/** Draw the charts, if any: without requests, the page shows the next steps instead. */
function drawCharts() {
  const { isEmpty, log } = byId("dash-head").dataset;
  byId("dash-charts").hidden = isEmpty === "true";
  if (isEmpty === "true") return;
  const { axis, charts } = JSON.parse(byId("dash-data").textContent);
  for (const chart of charts) {
    const link = (bucket, set) => [log + axis.queries[bucket], chart.sets[set]?.filter].filter(Boolean).join("&");
    drawChart(byId("dash-charts"), { ...axis, ...chart, ...NUMBERS[chart.numbers], link });
  }
}

const WORDS = { healthy: "✓ OK", degraded: "◐ degraded", unhealthy: "✕ down" };
const NAMES = { api: "API", database: "Database", cache: "Cache store", limits: "State store", ingest: "Ingestion", llm: "Default model" };

async function showHealth() {
  const list = byId("dash-health");
  try {
    const { checks } = await (await fetch(list.dataset.url)).json();
    const items = Object.entries(checks).map(([name, state]) => element("li", { class: state === "healthy" ? null : "dash-worse" }, `${NAMES[name] ?? name} ${WORDS[state] ?? state}`));
    list.replaceChildren(...items);
  } catch {
    list.replaceChildren(element("li", { class: "dash-worse" }, "The health checks did not answer."));
  }
}

/** Replace the page's parts by those of a response. */
function show(html) {
  const parts = new DOMParser().parseFromString(html, "text/html");
  const health = byId("dash-health").children;
  const known = [...health];
  const isOpen = byId("dash-well")?.open;
  for (const id of ["dash-state", "dash-head", "dash-rest"]) byId(id).replaceWith(document.adoptNode(parts.getElementById(id)));
  if (isOpen) byId("dash-well")?.setAttribute("open", "");
  byId("dash-health").replaceChildren(...known);
  drawCharts();
}

function notify(...text) {
  stale.replaceChildren(...text);
  stale.hidden = text.length === 0;
}

const clock = (moment) => `${moment.toISOString().slice(11, 19)} UTC`;

async function look() {
  clearTimeout(timer);
  again.disabled = true;
  root.setAttribute("aria-busy", "true");
  try {
    const mark = encodeURIComponent(byId("dash-head").dataset.mark);
    const answer = await fetch(`${root.dataset.url}&seen=${mark}`, { redirect: "manual", signal: AbortSignal.timeout(20_000) });
    if (answer.type === "opaqueredirect" || answer.status === 403) {
      notify("You are logged out, or no longer allowed to see this page. The figures are from ", clock(readAt), ". ", element("a", { href: location.href }, "Log in again"));
      automatic.checked = false;
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    if (answer.status === 200) show(await answer.text());
    readAt = new Date();
    notify();
    showHealth();
  } catch {
    notify(`The server did not answer. The figures are from ${clock(readAt)}; links to other pages may fail too.${automatic.checked ? " Retrying automatically." : ""}`);
  } finally {
    again.disabled = false;
    root.removeAttribute("aria-busy");
    plan();
  }
}

/** Schedule the next refresh, unless the page is hidden or refreshing is switched off. */
function plan() {
  clearTimeout(timer);
  if (automatic.checked && !document.hidden) timer = setTimeout(look, Number(root.dataset.every) * 1000);
}

automatic.checked = localStorage.getItem(CHOICE) !== "off";
automatic.addEventListener("change", () => {
  localStorage.setItem(CHOICE, automatic.checked ? "on" : "off");
  plan();
});
again.addEventListener("click", look);
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !automatic.checked) clearTimeout(timer);
  else if (Date.now() - readAt > Number(root.dataset.every) * 1000) look();
  else plan();
});

// A custom range is applied once it is filled in; empty fields leave the range unchanged.
const form = byId("dash-form");
form.addEventListener("submit", () => {
  const isCustom = form.elements.from.value || form.elements.to.value;
  if (isCustom) form.elements.range.value = "custom";
  else if (form.elements.range.value === "custom") form.elements.range.value = "24h";
});
form.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (!value) formData.delete(name);
});
document.querySelector(".dash-custom-link").addEventListener("click", (event) => {
  event.preventDefault();
  form.closest("details").open = true;
  form.elements.from.focus();
});

new MutationObserver(drawCharts).observe(document.documentElement, { attributeFilter: ["class"] });
drawCharts();
showHealth();
plan();
