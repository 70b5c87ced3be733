// The overview of an account or a key: draws its charts and copies its request.

import { drawChart } from "../site/charts.js";
import { byId, copy } from "../site/dom.js";
import { count, exactly, exactMoney, money } from "../site/format.js";

const NUMBERS = {
  count: { format: (value, isExact) => (isExact ? exactly(value) : count(value)), tick: (value) => (Number.isInteger(value) ? count(value) : "") },
  money: { format: (value, isExact) => (isExact ? exactMoney(Number(value).toFixed(9)) : money(value)) },
};

function drawCharts() {
  for (const chart of JSON.parse(byId("overview-data").textContent)) drawChart(byId("overview-charts"), { ...chart, ...NUMBERS[chart.numbers] });
}

if (byId("overview-data")) {
  drawCharts();
  new MutationObserver(drawCharts).observe(document.documentElement, { attributeFilter: ["class"] });
}
for (const button of document.querySelectorAll("[data-copy]")) {
  const box = button.parentElement;
  button.addEventListener("click", () => copy(box.querySelector("code").textContent, box.querySelector("[role=status]")));
}
