// The account's usage: tiles, six charts and a table of groups, from the series of GET /usage.

import { drawChart, NUMBERS } from "./charts.js";
import { byId, element, table } from "./dom.js";
import { aboutMilliseconds, count, exactly, exactMoney, knownMoney, money, percent, TIME_ZONE } from "./format.js";
import { bucketName } from "./ranges.js";
import { answered, costsByGroup, groupName, onBuckets } from "./usage.js";

/** Show the usage of a range: totals, series by time, by time and group, and by group. */
export function showFigures({ range, whole, series, split, parts, group }) {
  showTiles(whole);
  const buckets = onBuckets(series, range);
  const time = { hour: "Hour", day: "Day", month: "Month" }[range.unit];
  const shared = {
    labels: buckets.map(({ start }) => bucketName(start, range.unit)),
    names: buckets.map(({ start }) => bucketName(start, range.unit, { full: true })),
    time: `${time} (${TIME_ZONE})`,
  };
  for (const chart of charts(buckets, whole, split, group, range.unit)) drawChart(byId("charts"), { ...shared, ...chart });
  showParts(parts, group);
}

function showTiles(whole) {
  const { invalid, limited, failed } = whole.errors;
  const tiles = [
    ["Requests", count(whole.requests), exactly(whole.requests), `${count(answered(whole))} answered`],
    ["Errors", count(invalid + limited + failed), exactly(invalid + limited + failed), `${count(limited)} over a limit`],
    ["Tokens", count(whole.input_tokens + whole.output_tokens), exactly(whole.input_tokens + whole.output_tokens), `${count(whole.output_tokens)} output`],
    ["Cost", knownMoney(whole), knownMoney(whole, exactMoney), whole.unpriced_requests ? `${count(whole.unpriced_requests)} without a price` : "US dollars"],
    ["Saved", money(whole.saved_cost), exactMoney(whole.saved_cost), "by cache and sharing"],
    ["Cache hit rate", rate(whole), null, `${count(whole.cache_hits)} ${whole.cache_hits === 1 ? "hit" : "hits"}`],
    ["Latency p95", aboutMilliseconds(whole.latency_ms?.p95), null, `p50 ${aboutMilliseconds(whole.latency_ms?.p50)}`],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, title, more]) => element("div", {}, element("dt", {}, name), element("dd", { title }, value, element("small", {}, more)))),
  );
}

const rate = (figures) => (figures.cache_hits + figures.cache_misses ? percent(figures.cache_hit_rate) : percent(null));

function charts(buckets, whole, split, group, unit) {
  const read = (name, of, absent = 0) => ({ name, values: buckets.map(({ figures }) => (figures ? of(figures) : absent)) });
  const asked = (figures) => figures.cache_hits + figures.cache_misses;
  const starts = buckets.map(({ start }) => start);
  const bars = { kind: "bars", ...NUMBERS.count };
  return [
    {
      ...bars, id: "requests", title: "Requests and errors", unit: `Requests per ${unit}`,
      sets: [read("answered", answered), { ...read("over a limit", (each) => each.errors.limited), look: 1 }, { ...read("failed", (each) => each.errors.failed), look: 3 }, { ...read("invalid", (each) => each.errors.invalid), look: 4 }],
      summary: `${exactly(whole.requests)} requests, ${exactly(answered(whole))} of them answered.`,
      note: refusedNote(whole),
    },
    {
      ...bars, id: "tokens", title: "Tokens", unit: `Tokens per ${unit}`,
      sets: [read("input", (each) => each.input_tokens - each.cached_tokens), read("cached input", (each) => each.cached_tokens), read("output", (each) => each.output_tokens)],
      summary: `${exactly(whole.input_tokens)} in, ${exactly(whole.output_tokens)} out.`,
      empty: "No tokens in this range: no request was answered by a model.",
    },
    {
      kind: "bars", ...NUMBERS.money, id: "cost", title: `Cost by ${group}`, unit: `US dollars per ${unit}`,
      sets: costsByGroup(split, starts, group), summary: `${knownMoney(whole).replace(/^./, (letter) => letter.toUpperCase())} altogether.`,
      empty: "No costs in this range: answers were free, or their model has no price. See the prices under Models.",
    },
    {
      kind: "lines", ...NUMBERS.time, id: "latency", title: "Latency of answers", unit: "Time",
      sets: [read("p95: 95 of 100 are faster", (each) => each.latency_ms?.p95 ?? null, null), read("p50: the middle one", (each) => each.latency_ms?.p50 ?? null, null)],
      summary: `p50 ${aboutMilliseconds(whole.latency_ms?.p50)}, p95 ${aboutMilliseconds(whole.latency_ms?.p95)}.`,
      empty: "No answers in this range, so there is nothing to time.",
    },
    {
      kind: "lines", format: percent, id: "hits", title: "Cache hit rate", unit: "Hits of hits and misses", most: 1,
      sets: [read("hit rate", (each) => (asked(each) ? each.cache_hit_rate : null), null)], summary: `${rate(whole)} altogether.`,
      empty: "No request in this range asked the cache. Requests to /chat and /summarize do, and under /v1 those with temperature 0.",
    },
    {
      kind: "bars", ...NUMBERS.money, id: "saved", title: "Saved by cache and sharing", unit: `US dollars per ${unit}`,
      sets: [read("saved", (each) => Number(each.saved_cost))], summary: `${money(whole.saved_cost)} altogether.`,
      empty: "Nothing saved in this range. Send the same request to /chat twice: the second answer comes from the cache, and is free.",
    },
  ];
}

function refusedNote({ errors }) {
  if (!errors.limited && !errors.invalid && !errors.failed) return null;
  const open = () => { byId("codes").open = true; };
  return element("a", { href: "#codes", click: open }, "Why requests are refused, and what to do");
}

const COLUMNS = ["Requests", "Errors", "Tokens in", "Tokens out", "Cost", "Saved", "Hit rate", "p50", "p95"];

function showParts(parts, group) {
  const name = group[0].toUpperCase() + group.slice(1);
  byId("parts-title").textContent = `By ${group}`;
  const columns = [{ label: name }, ...COLUMNS.map((label) => ({ label, isNumber: true }))];
  const amount = (number) => ({ text: count(number), title: exactly(number) });
  const dollars = (text) => ({ text: money(text), title: exactMoney(text) });
  const rows = parts.map((each) => [
    groupName(each, group), amount(each.requests), amount(each.requests - answered(each)), amount(each.input_tokens), amount(each.output_tokens),
    { text: knownMoney(each), title: knownMoney(each, exactMoney) }, dollars(each.saved_cost), rate(each), aboutMilliseconds(each.latency_ms?.p50), aboutMilliseconds(each.latency_ms?.p95),
  ]);
  byId("parts").replaceChildren(table(`Usage by ${group} in this range`, columns, rows));
}
