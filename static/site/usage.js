// GET /usage: requests, and the conversion of its series to rows of charts, tables and files.

import { TIME_ZONE } from "./format.js";
import { bucketStarts } from "./ranges.js";
import { send } from "./service.js";

/** The most groups in a chart; all others are added up as one more. */
const GROUPS = 5;
export const REST = "others";

/** Fetch limits and usage of a range, grouped by `groupBy` (`day`, `day,model` ...). */
export async function fetchUsage(key, { from, to }, groupBy) {
  const asked = new URLSearchParams({ from: from.toISOString(), to: to.toISOString(), time_zone: TIME_ZONE, group_by: groupBy });
  return (await send(`/usage?${asked}`, { key })).json();
}

/** Return the number of answered requests. */
export const answered = ({ requests, errors }) => requests - errors.invalid - errors.limited - errors.failed;

/** Return `{start, figures}` for each bucket of a range; figures are null without requests. */
export function onBuckets(series, range) {
  const known = new Map(series.map((each) => [Date.parse(each.start), each]));
  const starts = [...new Set([...bucketStarts(range), ...known.keys()])].sort((one, other) => one - other);
  return starts.map((start) => ({ start, figures: known.get(start) ?? null }));
}

/** Return the name of an entry's group; requests refused before their model was known have none. */
export const groupName = (entry, group) => entry[group] || `no ${group}: refused before`;

/** Return costs by group and bucket, `[{name, values}]`: the most expensive groups first, the rest added up. */
export function costsByGroup(series, starts, group) {
  const totals = new Map();
  for (const each of series) totals.set(groupName(each, group), (totals.get(groupName(each, group)) ?? 0) + Number(each.cost));
  const ranked = [...totals].filter(([, cost]) => cost > 0).sort(([, one], [, other]) => other - one).map(([name]) => name);
  const shown = ranked.length > GROUPS + 1 ? ranked.slice(0, GROUPS) : ranked;
  const names = shown.length < ranked.length ? [...shown, REST] : shown;
  const sums = new Map(names.map((name) => [name, starts.map(() => 0)]));
  const places = new Map(starts.map((start, index) => [start, index]));
  for (const each of series) {
    const name = groupName(each, group);
    const values = sums.get(shown.includes(name) ? name : REST);
    if (values) values[places.get(Date.parse(each.start))] += Number(each.cost);
  }
  return [...sums].map(([name, values]) => ({ name, values }));
}
