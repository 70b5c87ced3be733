// Charts (Chart.js) with units on their axes, patterns and dashes besides colours, and a table of the values.

import { element, table } from "./dom.js";
import { aboutMilliseconds, count, exactly, exactMoney, milliseconds, money } from "./format.js";

/* global Chart */

/** How the admin's charts write values, by the kind of numbers. */
export const NUMBERS = {
  count: { format: (value, isExact) => (isExact ? exactly(value) : count(value)), tick: (value) => (Number.isInteger(value) ? count(value) : "") },
  time: { format: aboutMilliseconds, tick: milliseconds },
  money: {
    format: (value, isExact) => (isExact ? exactMoney(Number(value).toFixed(9)) : money(value)),
    tick: (value, step) => `$${value.toFixed(Math.max(2, step ? Math.ceil(-Math.log10(step)) : 2))}`,
  },
};

const DASHES = [[], [6, 4], [2, 3]];
const POINTS = ["circle", "rect", "triangle"];
const made = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Return a fill pattern that is distinct without its colour: plain, stripes, dots, a grid, lines either way. */
function filling(index) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const pen = tile.getContext("2d");
  pen.fillStyle = colour(`series-${index + 1}`);
  pen.fillRect(0, 0, 8, 8);
  pen.strokeStyle = pen.fillStyle = colour("card");
  pen.lineWidth = 1.5;
  const lines = [[], [[0, 8, 8, 0], [-2, 2, 2, -2], [6, 10, 10, 6]], [], [[0, 4, 8, 4], [4, 0, 4, 8]], [[0, 4, 8, 4]], [[4, 0, 4, 8]]][index];
  for (const [x, y, toX, toY] of lines) {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(toX, toY);
    pen.stroke();
  }
  if (index === 2) pen.fillRect(2, 2, 3, 3);
  return pen.createPattern(tile, "repeat");
}

function dataset({ name, values, look }, place, isBars) {
  const index = look ?? place;
  const own = colour(`series-${index + 1}`);
  if (isBars) return { label: name, data: values, backgroundColor: filling(index), borderColor: own, borderWidth: 1, maxBarThickness: 48 };
  return {
    label: name,
    data: values,
    borderColor: own,
    backgroundColor: own,
    borderDash: DASHES[index],
    pointStyle: POINTS[index],
    pointRadius: values.length > 60 ? 1.5 : 3,
    borderWidth: 2,
    spanGaps: false,
  };
}

function axis(title, more = {}) {
  const ink = colour("quiet");
  return { title: { display: true, text: title, color: ink }, ticks: { color: ink, maxRotation: 0, autoSkipPadding: 12, ...more.ticks }, grid: { color: colour("line") }, border: { color: colour("edge") }, ...more.own };
}

function options({ unit, time, format, tick = (value) => format(value), names, sets, isBars, most, link = null }) {
  return {
    animation: false,
    responsive: true,
    maintainAspectRatio: false,
    interaction: { mode: "index", intersect: false },
    onClick: (event, [first], chart) => {
      const [hit] = chart.getElementsAtEventForMode(event.native, "nearest", { intersect: true }, false);
      if (link && first) location.assign(link(first.index, hit?.datasetIndex));
    },
    onHover: (event, items) => { event.native.target.style.cursor = link && items.length ? "pointer" : "default"; },
    scales: {
      x: axis(time, { own: { stacked: isBars, offset: true, grid: { display: false } } }),
      y: axis(unit, { ticks: { callback: (value, _, ticks) => tick(value, ticks[1]?.value), maxTicksLimit: 6 }, own: { stacked: isBars, beginAtZero: true, max: most } }),
    },
    plugins: {
      legend: { display: sets.length > 1, position: "bottom", labels: { color: colour("ink"), usePointStyle: !isBars, boxWidth: 16, boxHeight: isBars ? 10 : 6 } },
      tooltip: { callbacks: { title: ([item]) => names[item.dataIndex], label: (item) => `${item.dataset.label}: ${format(item.raw, true)}` } },
    },
  };
}

/**
 * Draw a chart into the box, or update the chart with that id.
 *
 * `sets` is `[{name, values}]`, at most six; missing values are null, and `look` selects one of the six styles.
 * `labels` and `names` are the buckets' short and full names. `format(value, isExact)` formats a value, and
 * `tick(value, first)` a value of the axis, which begins with `first`. `summary` describes the chart in a sentence.
 * `link(bucket, set)` returns the URL of what a bucket (and one of its sets, if a bar or point was hit) was counted from.
 * `empty` is shown instead of the chart if it would have no bar or point.
 */
export function drawChart(box, chart) {
  const { id, title, labels, sets, summary, note = null, empty = null } = chart;
  const isBars = chart.kind === "bars";
  let entry = made.get(id);
  if (!entry) {
    entry = frame(title);
    made.set(id, entry);
    box.append(entry.figure);
  }
  entry.chart?.destroy();
  entry.caption.replaceChildren(title);
  entry.canvas.setAttribute("aria-label", `${title}. ${summary} The table below has all values.`);
  const isEmpty = empty !== null && !sets.some(({ values }) => values.some((value) => value || (value === 0 && !isBars)));
  entry.note.replaceChildren(...(isEmpty ? [empty] : note ? [note] : []));
  for (const part of [entry.plot, entry.details]) part.hidden = isEmpty;
  entry.figure.classList.toggle("bare", isEmpty);
  entry.chart = null;
  if (isEmpty) return;
  const data = { labels, datasets: sets.map((each, index) => dataset(each, index, isBars)) };
  entry.chart = new Chart(entry.canvas, { type: isBars ? "bar" : "line", data, options: options({ ...chart, isBars }) });
  entry.fill = () => entry.behind.replaceChildren(tableOf(chart));
  if (entry.details.open) entry.fill();
}

function frame(title) {
  const entry = {
    caption: element("figcaption", {}, title),
    canvas: element("canvas", { role: "img" }),
    note: element("p", { class: "small quiet" }),
    behind: element("div"),
    fill: () => {},
  };
  entry.details = element("details", { toggle: () => { if (entry.details.open) entry.fill(); } }, element("summary", { class: "small" }, `Table: ${title.toLowerCase()}`), entry.behind);
  entry.plot = element("div", { class: "plot" }, entry.canvas);
  entry.figure = element("figure", { class: "card" }, entry.caption, entry.plot, entry.note, entry.details);
  return entry;
}

function tableOf({ title, names, sets, time, format, link = null }) {
  const columns = [{ label: time }, ...sets.map(({ name }) => ({ label: name, isNumber: true }))];
  const rows = names.map((name, index) => [{ text: link ? element("a", { href: link(index) }, name) : name }, ...sets.map(({ values }) => (values[index] === null ? "–" : format(values[index], true)))]);
  return table(title, columns, rows);
}
