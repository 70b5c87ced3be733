// The overview of an account or a key: draws its charts and copies its request.

import "./copy.js";
import { NUMBERS, drawChart } from "../site/charts.js";
import { byId } from "../site/dom.js";

function drawCharts() {
  const { axis, charts } = JSON.parse(byId("overview-data").textContent);
  for (const chart of charts) {
    const link = axis.queries.length ? (bucket, set) => [axis.queries[bucket], chart.sets[set]?.filter].filter(Boolean).join("&") : null;
    drawChart(byId("overview-charts"), { ...axis, ...chart, ...NUMBERS[chart.numbers], link });
  }
}

if (byId("overview-data")) {
  drawCharts();
  new MutationObserver(drawCharts).observe(document.documentElement, { attributeFilter: ["class"] });
}
