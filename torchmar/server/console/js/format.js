// Numbers, durations, sizes and times as people read them.

const decimal = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

export const NONE = "–";

const significant = (value) =>
  value === 0 ? "0" : Math.abs(value) >= 100 ? decimal.format(value) : String(Number(value.toPrecision(3)));

export const count = (value) => decimal.format(value);

export const rate = (value) => (value == null ? NONE : significant(value));

export function milliseconds(value) {
  if (value == null) return NONE;
  return value >= 1000 ? `${significant(value / 1000)} s` : `${significant(value)} ms`;
}

export function bytes(value) {
  if (value == null) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit ? significant(size) : size} ${units[unit]}`;
}

export function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [unit, length] of units) {
    const number = Math.floor(left / length);
    left %= length;
    if (number || (unit === "s" && !parts.length)) parts.push(`${number} ${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

export const timeOfDay = (seconds) => clock.format(new Date(seconds * 1000));

export const dateAndTime = (seconds) => `${day.format(new Date(seconds * 1000))}, ${timeOfDay(seconds)}`;

export const date = (seconds) => (seconds == null ? NONE : day.format(new Date(seconds * 1000)));

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export const percent = (share) => `${share > 0 && share < 0.001 ? "< 0.1" : Number((share * 100).toPrecision(2))} %`;
