// The admin's index: draws the charts, and looks for something new while somebody looks at it.
//
// A look asks with the mark of what is shown; where nothing happened since, the answer is empty and cost little.

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

/** Draw what there is to draw; without a request there is nothing, and the page says what to do instead. */
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

/** Put the parts of an answer in the places of those that are shown. */
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

/** Look again in a while: not while nobody can see the page, nor against the choice made here. */
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

// A range of one's own is asked for by filling it in; an empty one leaves the range as it is.
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
