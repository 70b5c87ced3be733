// The admin's index: draws the charts, and refreshes them while the page is visible.
//
// A refresh sends the mark of the displayed data. If nothing has changed since, the response is empty and cheap.

import { drawChart } from "../site/charts.js";
import { byId, element } from "../site/dom.js";
import { count, exactly, exactMoney, milliseconds, money } from "../site/format.js";

const CHOICE = "dashboard-refresh";
const root = byId("dashboard");
const automatic = byId("dash-auto");
const status = byId("dash-status");
const again = byId("dash-now");
let timer = 0;
let readAt = new Date();

const NUMBERS = {
  count: { format: (value, isExact) => (isExact ? exactly(value) : count(value)), tick: (value) => (Number.isInteger(value) ? count(value) : "") },
  time: { format: (value) => milliseconds(value) },
  money: {
    format: (value, isExact) => (isExact ? exactMoney(Number(value).toFixed(9)) : money(value)),
    tick: (value, step) => `$${value.toFixed(Math.max(2, step ? Math.ceil(-Math.log10(step)) : 2))}`,
  },
};

/** Draw the charts, if any: without requests, the page shows the next steps instead. */
function drawCharts() {
  const { isEmpty } = byId("dash-head").dataset;
  byId("dash-charts").hidden = isEmpty === "true";
  if (isEmpty === "true") return;
  for (const chart of JSON.parse(byId("dash-data").textContent)) drawChart(byId("dash-charts"), { ...chart, ...NUMBERS[chart.numbers] });
}

const WORDS = { healthy: "✓ healthy", degraded: "◐ degraded", unhealthy: "✕ away" };
const NAMES = { api: "API", database: "Database", cache: "Cache", limits: "Limits", ingest: "Ingest", llm: "Model" };

async function showHealth() {
  const list = byId("dash-health");
  try {
    const { checks } = await (await fetch(list.dataset.url)).json();
    const items = Object.entries(checks).map(([name, state]) => element("li", { class: state === "healthy" ? null : "dash-worse" }, `${NAMES[name] ?? name} ${WORDS[state] ?? state}`));
    list.replaceChildren(...items);
  } catch {
    list.replaceChildren(element("li", { class: "dash-worse" }, "How things are could not be asked."));
  }
}

/** Replace the page's parts by those of a response. */
function show(html) {
  const parts = new DOMParser().parseFromString(html, "text/html");
  const health = byId("dash-health").children;
  const known = [...health];
  for (const id of ["dash-head", "dash-rest"]) byId(id).replaceWith(document.adoptNode(parts.getElementById(id)));
  byId("dash-health").replaceChildren(...known);
  drawCharts();
}

function tell(...said) {
  status.replaceChildren(...said);
  status.hidden = said.length === 0;
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
      tell("You are no longer logged in, or may no longer see this. What is shown is from ", clock(readAt), ". ", element("a", { href: location.href }, "Log in again"));
      automatic.checked = false;
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    if (answer.status === 200) show(await answer.text());
    readAt = new Date();
    tell();
    showHealth();
  } catch {
    tell(`The server did not answer. What is shown is from ${clock(readAt)}; links to other pages may fail too.${automatic.checked ? " Trying again by itself." : ""}`);
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

// An own range is applied once it is filled in; empty fields leave the range unchanged.
const form = byId("dash-form");
form.addEventListener("submit", () => {
  const isOwn = form.elements.from.value || form.elements.to.value;
  if (isOwn) form.elements.range.value = "own";
  else if (form.elements.range.value === "own") form.elements.range.value = "24h";
});
form.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (!value) formData.delete(name);
});
document.querySelector(".dash-own-link").addEventListener("click", (event) => {
  event.preventDefault();
  form.closest("details").open = true;
  form.elements.from.focus();
});

new MutationObserver(drawCharts).observe(document.documentElement, { attributeFilter: ["class"] });
drawCharts();
showHealth();
plan();
