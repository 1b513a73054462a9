"use strict";
// Whatever the server sends is put into text, never into markup.
const EVERY_MS = 2000, SVG = "http://www.w3.org/2000/svg", MISSING = "–";
const PARTS = [["compute", 0], ["wire", 1], ["wait", 2]];
let shown = null, tag = null, ahead = 0, lost = 0;

const find = id => document.getElementById(id);
const known = value => typeof value === "number" && Number.isFinite(value);

function make(name, classes, ...inside) {
  const element = document.createElement(name);
  if (classes) element.className = classes;
  element.append(...inside.filter(part => part !== null && part !== ""));
  return element;
}

function draw(name, attributes, ...inside) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside);
  return element;
}

function number(value) {
  if (!known(value)) return MISSING;
  const size = Math.abs(value);
  if (size >= 1e9 || (size > 0 && size < 5e-4)) return value.toExponential(1);
  return value.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: size < 100 ? 3 : size < 1000 ? 1 : 0 });
}

function bytes(value) {
  if (!known(value)) return MISSING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (power < units.length - 1 && Math.abs(value) >= 999.5) { value /= 1000; power += 1; }
  return value.toFixed(power && Math.abs(value) < 99.95 ? 1 : 0) + " " + units[power];
}

function seconds(value) {
  if (!known(value)) return MISSING;
  if (value < 0.9995) return Math.round(value * 1000) + " ms";
  if (value < 59.95) return number(Math.round(value * 10) / 10) + " s";
  const minutes = Math.round(value / 60);
  if (minutes < 60) return minutes + " min";
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? hours + " h " + String(minutes % 60).padStart(2, "0") + " min" : Math.round(hours / 24) + " days";
}

function ago(when) {
  // Marked, so that it grows older without anything else being drawn again.
  const element = make("time", "");
  element.dataset.when = when;
  return age(element);
}

function age(element) {
  const passed = Math.max(0, Date.now() / 1000 + ahead - Number(element.dataset.when));
  element.textContent = passed < 5 ? "just now" : (passed < 60 ? Math.floor(passed) + " s" : seconds(passed)) + " ago";
  return element;
}

function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(size => size >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step + 0);
  return found;
}

function frame(title, note, first, last, low, high, unit) {
  // As wide as its place, so that text keeps its size on every screen.
  const place = find("figures").clientWidth, columns = Math.max(1, Math.min(3, Math.floor((place + 14) / (352 + 14))));
  const width = Math.max(240, (place - 14 * (columns - 1)) / columns - (columns > 1 ? 38 : 26)), height = 190;
  const marks = ticks(low, high, 4), labels = marks.map(unit);
  const left = 12 + 6.6 * Math.max(...labels.map(label => label.length)), right = width - 10, top = 8, bottom = height - 24;
  const x = at => left + (first === last ? 0.5 : (at - first) / (last - first)) * (right - left);
  const y = value => bottom - (value - low) / (high - low) * (bottom - top);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  marks.forEach((mark, index) => svg.append(
    draw("line", { class: "grid", x1: left, x2: right, y1: y(mark), y2: y(mark) }),
    draw("text", { x: left - 8, y: y(mark) + 4, "text-anchor": "end" }, labels[index])));
  const rounds = first === last ? [first] : ticks(first, last, Math.min(7, width / 60)).filter(Number.isInteger);
  for (const at of rounds) svg.append(draw("text", { x: x(at), y: height - 6, "text-anchor": "middle" }, String(at)));
  const value = make("span", "", ...note);
  const figure = make("figure", "", make("figcaption", "", make("strong", "", title), value), svg);
  return { figure, svg, x, y, left, right, top, bottom, width, value, note };
}

function reads(drawing, rounds, tell) {
  // Under the pointer or the finger, the caption tells the round's own number.
  const cursor = draw("line", { class: "cursor", y1: drawing.top, y2: drawing.bottom, visibility: "hidden" });
  drawing.svg.append(cursor);
  drawing.svg.addEventListener("pointermove", event => {
    const box = drawing.svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * drawing.width;
    const nearest = rounds.reduce((best, round) => Math.abs(drawing.x(round) - at) < Math.abs(drawing.x(best) - at) ? round : best);
    cursor.setAttribute("x1", drawing.x(nearest));
    cursor.setAttribute("x2", drawing.x(nearest));
    cursor.setAttribute("visibility", "visible");
    drawing.value.textContent = `round ${nearest}: ${tell(nearest)}`;
  });
  drawing.svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    drawing.value.replaceChildren(...drawing.note);
  });
}

function curve(title, note, points, colour, share) {
  if (!points.length) return null;
  const values = points.map(point => point[1]);
  let low = share ? 0 : Math.min(...values), high = share ? 1 : Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  if (!share) { low -= room; high += room; }
  const drawing = frame(title, [note], points[0][0], points[points.length - 1][0], low, high, number);
  const place = point => `${drawing.x(point[0]).toFixed(1)},${drawing.y(point[1]).toFixed(1)}`;
  drawing.svg.append(draw("polyline", { class: `curve stroke-${colour}`, points: points.map(place).join(" ") }));
  if (points.length <= 40) for (const point of points) {
    drawing.svg.append(draw("circle", { class: `dot fill-${colour}`, cx: drawing.x(point[0]), cy: drawing.y(point[1]), r: 3.2 }));
  }
  const of = new Map(points);
  reads(drawing, points.map(point => point[0]), round => number(of.get(round)));
  return drawing.figure;
}

function bars(rows) {
  const total = row => PARTS.reduce((sum, [part]) => sum + (row[part] || 0), 0);
  const highest = Math.max(0, ...rows.map(total));
  if (!highest) return null;
  const first = rows[0].round, last = rows[rows.length - 1].round;
  const [size, unit] = [[3600, "h"], [60, "min"], [1, "s"], [0.001, "ms"]].find(([size]) => highest >= 2 * size) || [0.001, "ms"];
  const note = PARTS.map(([part, colour]) =>
    make("span", "key", draw("svg", { viewBox: "0 0 12 12" }, draw("rect", { class: `fill-${colour}`, width: 12, height: 12, rx: 2 })), part));
  const drawing = frame("time of the devices, summed", note, first - 0.6, last + 0.6, 0, highest * 1.05 / size,
    mark => mark ? `${number(mark)} ${unit}` : "0");
  const width = Math.min(36, Math.max(1.5, (drawing.right - drawing.left) / (last - first + 1.2) * 0.72));
  for (const row of rows) {
    let under = 0;
    for (const [part, colour] of PARTS) {
      const tall = (row[part] || 0) / size;
      drawing.svg.append(draw("rect", {
        class: `fill-${colour}`, x: drawing.x(row.round) - width / 2, width,
        y: drawing.y(under + tall), height: Math.max(0, drawing.y(under) - drawing.y(under + tall)),
      }));
      under += tall;
    }
  }
  const of = new Map(rows.map(row => [row.round, row]));
  reads(drawing, rows.map(row => row.round), round =>
    PARTS.map(([part]) => `${part} ${seconds(of.get(round)[part] || 0)}`).join(", "));
  return drawing.figure;
}

function header(state) {
  const run = state.run, badge = find("status"), progress = find("progress");
  find("name").textContent = run ? run.name : state.home;
  document.title = run ? `${run.round}/${run.num_rounds || "?"} ${run.name}` : `${state.home} · fedgen`;
  badge.hidden = progress.hidden = !run;
  if (!run) {
    find("lead").replaceChildren("No run yet. Start one with ", make("code", "", "fedgen train federation=superlink"), ".");
    return;
  }
  badge.textContent = run.status;
  badge.className = "badge " + ({ finished: "good", failed: "bad", silent: "warn" }[run.status] || "");
  const parts = [make("b", "", `round ${run.round}` + (run.num_rounds ? ` of ${run.num_rounds}` : ""))];
  if (run.status === "running" && run.phase) parts.push(" · " + run.phase);
  if (run.status === "running" && run.asked) parts.push(` · ${run.answered} of ${run.asked} devices answered`);
  const left = run.status === "running" ? remaining(run) : null;
  if (left !== null) parts.push(` · about ${seconds(left)} left`);
  if (known(run.heard)) parts.push(" · last news ", ago(run.heard));
  if (run.message) parts.push(make("span", "message bad", run.message));
  find("lead").replaceChildren(...parts);
  const training = run.phase === "training" && run.asked ? run.answered / run.asked : 0;
  const done = run.status === "finished" ? 1 : run.num_rounds ? Math.min(1, (over(run) + training) / run.num_rounds) : 0;
  progress.className = `progress ${run.status}`;
  progress.firstElementChild.style.width = (100 * done).toFixed(1) + "%";
  progress.setAttribute("aria-valuenow", String(over(run)));
  progress.setAttribute("aria-valuemax", String(run.num_rounds || over(run)));
}

function over(run) {
  return run.phase === "between rounds" || run.phase === "getting ready" || run.status !== "running" ? run.round : Math.max(0, run.round - 1);
}

function remaining(run) {
  const took = run.seconds.slice(-5).map(row => row.total).filter(known).sort((a, b) => a - b);
  return took.length && run.num_rounds ? took[Math.floor(took.length / 2)] * (run.num_rounds - over(run)) : null;
}

function tiles(state) {
  const run = state.run, found = [];
  const tile = (title, value, under) => found.push(make("div", "tile", make("div", "soft small", title), value, make("div", "small soft", under)));
  if (run && run.quality.length) {
    const first = run.quality[0][1], last = run.quality[run.quality.length - 1][1], change = last - first;
    const word = !change ? "" : (change > 0) === run.higher_is_better ? "good" : "bad";
    const said = make("span", word, (change < 0 ? "−" : "+") + number(Math.abs(change)));
    tile(run.metric, make("b", "", number(last)), run.quality.length > 1 ? make("span", "", said, run.quality[0][0] ? ` since round ${run.quality[0][0]}` : " since the start") : run.split);
  }
  if (run && run.loss.length) tile("training loss", make("b", "", number(run.loss[run.loss.length - 1][1])), `round ${run.loss[run.loss.length - 1][0]}`);
  const asked = state.devices.some(device => device.online !== null), all = state.devices.length;
  const fine = state.devices.filter(device => asked ? device.online : device.num_turns && device.state !== "failing").length;
  tile(asked ? "devices online" : "devices answering", make("b", "", String(fine), make("span", "", ` of ${all}`)), state.serving ? "server is up" : "no server runs here");
  const refused = state.devices.reduce((sum, device) => sum + Object.values(device.refused).reduce((a, b) => a + b, 0), 0);
  const turns = state.devices.reduce((sum, device) => sum + device.num_turns, 0);
  if (turns) tile("did not count", make("b", refused ? "bad" : "", String(refused)), `of ${turns} answers`);
  find("tiles").replaceChildren(...found);
}

function figures(state) {
  const run = state.run;
  if (!run) { find("figures").replaceChildren(); return; }
  const share = run.higher_is_better && run.quality.every(point => point[1] >= 0 && point[1] <= 1);
  const better = run.higher_is_better ? "higher is better" : "lower is better";
  const drawn = [
    curve(run.metric || "quality", `${run.split}, ${better}`, run.quality, 0, share),
    curve("training loss", "mean of the devices", run.loss, 1, false),
    bars(run.seconds),
  ];
  find("figures").replaceChildren(...drawn.filter(figure => figure !== null));
}

const WORDS = { "at work": "good", answered: "good", online: "good", resting: "warn", failing: "bad", offline: "bad", unregistered: "bad" };

function card(device) {
  const refused = Object.entries(device.refused).map(([word, count]) => `${count} × ${word}`).join(", ");
  const hot = known(device.temperature_c) && device.temperature_c >= 80;
  const rows = [
    ["round", known(device.round) ? String(device.round) : null],
    ["memory", known(device.memory_bytes) ? bytes(device.memory_bytes) : null],
    ["heat", known(device.temperature_c) ? Math.round(device.temperature_c) + " °C" : null, hot ? "bad" : ""],
    ["battery", known(device.battery) ? Math.round(100 * device.battery) + " %" : null, device.battery < 0.3 ? "warn" : ""],
    ["disk", known(device.free_disk_bytes) && device.free_disk_bytes < 1e9 ? bytes(device.free_disk_bytes) : null, "warn"],
    ["loss", known(device.loss) ? number(device.loss) : null],
    ["works", device.rung],
    ["heard", known(device.heard) ? ago(device.heard) : null],
    ["power", device.throttled, "bad"],
    ["did not count", refused || null, "bad"],
    ["", device.known ? null : "not in the fleet of this home", "warn"],
  ].filter(row => row[1] !== null && row[1] !== undefined);
  const word = WORDS[device.state] || "";
  const name = make("b", "", device.name);
  name.title = device.name;
  return make("div", `device ${(hot || device.throttled) && word !== "bad" ? "warn" : word}`,
    make("div", "head", name, make("span", word || "soft", device.state)),
    !rows.length ? null : make("dl", "", ...rows.map(([key, value, colour]) =>
      make("div", key === "did not count" || key === "power" ? "long" : "", key ? make("dt", "", key) : null, make("dd", colour || "", value)))));
}

function events(state) {
  find("happened").hidden = !state.events.length;
  find("events").replaceChildren(...state.events.map(event => make("li", "",
    make("span", "", known(event.round) ? `round ${event.round}` : ""),
    make("div", `text ${event.word === "plain" ? "" : event.word === "good" ? "" : event.word}`, event.text),
    make("span", "", known(event.when) ? ago(event.when) : ""))));
}

function show(state) {
  header(state);
  tiles(state);
  figures(state);
  find("fleet").hidden = !state.devices.length;
  find("count").textContent = String(state.devices.length);
  find("devices").replaceChildren(...state.devices.map(card));
  events(state);
  find("footer").textContent = `${state.home} · ${state.server}${state.run ? " · " + state.run.folder : ""}`;
}

function trouble(text) {
  find("trouble").hidden = !text;
  find("trouble").textContent = text;
}

async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch("state", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    if (answer.status !== 304) {
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      const state = await answer.json();
      if (state.error) { trouble(state.error); return; }
      tag = answer.headers.get("ETag");
      ahead = state.when - Date.now() / 1000;
      shown = state;
      show(state);
    }
    lost = 0;
    trouble("");
  } catch (error) {
    lost += 1;
    if (lost > 1) trouble("No contact with fedgen dashboard; what stands here may be old. " + error.message);
  }
  document.querySelectorAll("time[data-when]").forEach(age);
}

window.addEventListener("resize", () => { if (shown) figures(shown); });
document.addEventListener("visibilitychange", look);
look();
setInterval(look, EVERY_MS);
