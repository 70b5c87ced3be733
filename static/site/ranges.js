// Time ranges and their buckets, in the browser's time zone.

import { moment, TIME_ZONE } from "./format.js";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;

const midnight = (at, days = 0) => new Date(at.getFullYear(), at.getMonth(), at.getDate() + days);
const monthStart = (at, months = 0) => new Date(at.getFullYear(), at.getMonth() + months, 1);

function dayOf(text) {
  const [year, month, day] = text.split("-").map(Number);
  return new Date(year, month - 1, day);
}

/** Return `{from, to, unit}` of a choice, `to` excluded. For `own`, both dates (`2026-11-24`) are included. */
export function rangeOf(choice, { from, to } = {}, now = new Date()) {
  if (choice === "24h") {
    const end = new Date(now);
    end.setMinutes(60, 0, 0);
    return { from: new Date(end.getTime() - DAY), to: end, unit: "hour" };
  }
  if (choice !== "own") return { from: midnight(now, choice === "7d" ? -6 : -29), to: midnight(now, 1), unit: "day" };
  const begin = dayOf(from);
  const end = midnight(dayOf(to), 1);
  const days = (end - begin) / DAY;
  return { from: begin, to: end, unit: days <= 3 ? "hour" : days <= 92 ? "day" : "month" };
}

/** List the starts of a range's buckets, up to now, as numbers. */
export function bucketStarts({ from, to, unit }, now = new Date()) {
  const starts = [];
  let at = unit === "month" ? monthStart(from) : from;
  while (at < to && at <= now) {
    starts.push(at.getTime());
    if (unit === "hour") at = new Date(at.getTime() + HOUR);
    else at = unit === "day" ? midnight(at, 1) : monthStart(at, 1);
  }
  return starts;
}

/** Return a bucket's name: short for an axis, full for tooltips and tables. */
export function bucketName(start, unit, { full = false } = {}) {
  const date = new Date(start);
  const written = (parts) => date.toLocaleString("en-GB", { ...parts, timeZone: TIME_ZONE });
  if (unit === "month") return written({ month: "short", year: "numeric" });
  const day = written(full ? { weekday: "short", day: "numeric", month: "short", year: "numeric" } : { day: "numeric", month: "short" });
  if (unit === "day") return day;
  const time = written({ hour: "2-digit", minute: "2-digit" });
  return full ? `${day}, ${time}` : time === "00:00" ? day : time;
}

/** Return a range's name: its first and last day, or its hours. */
export function rangeName({ from, to, unit }) {
  const written = (date) => date.toLocaleDateString("en-GB", { dateStyle: "medium", timeZone: TIME_ZONE });
  const ends = unit === "hour" ? [from, to].map((date) => moment(date, { timeZone: TIME_ZONE })) : [from, new Date(to - 1)].map(written);
  return ends.join(" to ");
}
