// Which stretch of time is shown, in which buckets, all in the browser's own time zone.

const HOUR = 3_600_000;
const DAY = 24 * HOUR;

const midnight = (date, days = 0) => new Date(date.getFullYear(), date.getMonth(), date.getDate() + days);

/** Return `{from, to, unit}` of a choice; `to` is excluded. For `own`, the two dates (`2026-11-24`) are included. */
export function rangeOf(choice, { from, to } = {}, now = new Date()) {
  if (choice === "24h") {
    const end = new Date(Math.ceil((now.getTime() + 1) / HOUR) * HOUR);
    return { from: new Date(end.getTime() - DAY), to: end, unit: "hour" };
  }
  if (choice !== "own") return { from: midnight(now, choice === "7d" ? -6 : -29), to: midnight(now, 1), unit: "day" };
  const begin = new Date(`${from}T00:00`);
  const end = midnight(new Date(`${to}T00:00`), 1);
  const days = (end - begin) / DAY;
  return { from: begin, to: end, unit: days <= 3 ? "hour" : days <= 92 ? "day" : "month" };
}

/** List when the buckets of a range begin, up to now, as numbers. */
export function bucketStarts({ from, to, unit }, now = new Date()) {
  const starts = [];
  let at = unit === "month" ? new Date(from.getFullYear(), from.getMonth()) : from;
  while (at < to && at <= now) {
    starts.push(at.getTime());
    if (unit === "hour") at = new Date(at.getTime() + HOUR);
    else at = unit === "day" ? midnight(at, 1) : new Date(at.getFullYear(), at.getMonth() + 1);
  }
  return starts;
}

/** Name a bucket: in short for an axis, in full for tooltips and tables. */
export function bucketName(start, unit, { full = false } = {}) {
  const date = new Date(start);
  if (unit === "month") return date.toLocaleDateString("en-GB", { month: "short", year: "numeric" });
  const day = date.toLocaleDateString("en-GB", full ? { weekday: "short", day: "numeric", month: "short", year: "numeric" } : { day: "numeric", month: "short" });
  if (unit === "day") return day;
  const time = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  return full ? `${day}, ${time}` : time === "00:00" ? day : time;
}
