"use strict";
/* Draws what /events tells. Everything from outside goes through textContent and attributes, never through HTML. */

const KEPT_POINTS = 600, KEPT_EVENTS = 200, AGAIN_MS = 5000;
const REASONS = {
  quota: "own quota done", word: "another's word", quorum: "enough neighbours' word", deadline: "time-out",
  barrier: "everybody done", missed: "its model did not come", gradient: "a gradient came", timeout: "safety time-out",
};
const KINDS = { "keeps-up": "keeps up", still: "stands still", "goes-on": "goes on", edge: "exchange" };
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

let about = null, picture = null, curve = [], events = new Map(), received = 0, shape = "";

/* small parts */

function element(name, attributes = {}, ...children) {
  const made = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  set(made, attributes);
  made.append(...children);
  return made;
}
const SVG_NAMES = new Set(["g", "line", "path", "circle", "text", "title", "rect"]);
function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null) node.removeAttribute(name); else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
}
function say(node, text) { if (node.textContent !== text) node.textContent = text; }
const percent = (share) => share > 0 && share < 0.005 ? "<1 %" : `${Math.round(100 * share)} %`;
const whole = (value) => value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en").replace(/,/g, " ");
function loss(value) { return value === null || value === undefined ? "–" : value >= 1000 || value < 0.001 && value > 0 ? value.toExponential(2) : value.toFixed(4); }
function duration(seconds) {
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

/* what is known of a peer */

const ageOf = (row) => row.age === null ? null : row.age + (row.peer === about.peer ? 0 : (performance.now() - received) / 1000);
const isOld = (row) => row.age === null || ageOf(row) > about.old_after;
/* lost: this peer says so, or it is old and a neighbour of which there is news says so */
const isGone = (row) => row.membership !== "alive" || isOld(row) && picture.peers.some((other) => !isOld(other) && other.lost_links.includes(row.peer));
const heard = () => picture.peers.filter((row) => row.age !== null);
function stateOf(row) {
  if (row.membership === "left") return "left";
  if (isGone(row)) return "lost";
  return row.state === "training" ? "" : row.state || "";
}

/* whom it waits for in its open round, and for how long; null if nobody, or if that is not known any more */
const MOST_WAITS = 8; /* a peer tells no more */
function waitOf(row) {
  if (row.age === null || isOld(row) || isGone(row) || !row.waits_for.length) return null;
  return { peers: row.waits_for, seconds: row.waits_seconds + ageOf(row) };
}
function waitText({ peers, seconds }) {
  const names = peers.length === 1 ? `peer ${peers[0]}` : `peers ${peers.slice(0, -1).join(", ")} and ${peers[peers.length - 1]}`;
  return `has waited for ${names}${peers.length < MOST_WAITS ? "" : ", and perhaps others,"} for ${duration(seconds)}`;
}

/* the head of the page */

function drawHead() {
  const rows = heard(), fresh = rows.filter((row) => !isOld(row) && !isGone(row));
  const own = rows.find((row) => row.peer === about.peer);
  say($("where"), `grapevine, run ${about.run}, seen from peer ${about.peer}`);
  say($("title"), `${about.num_peers} peers, ${about.algorithm}, topology ${about.topology}, closing ${about.closing}, task ${about.task}`);
  document.title = `peer ${about.peer} – grapevine`;
  const rounds = fresh.map((row) => row.round), low = Math.min(...rounds), high = Math.max(...rounds);
  const point = curve[curve.length - 1];
  const facts = [
    ["state", own ? own.state : "starting"],
    ["peers there", `${fresh.length} of ${about.num_peers}`],
    ["round", rounds.length ? (low === high ? whole(low) : `${whole(low)} – ${whole(high)}`) : "–"],
    ["training", own ? duration(own.seconds) : "–"],
    ["samples/s", whole(fresh.reduce((sum, row) => sum + row.samples_per_second, 0))],
    ["loss, mean of the peers", point ? loss(point[1]) : "–"],
  ];
  const list = $("facts");
  if (list.children.length !== facts.length) {
    list.replaceChildren(...facts.map(([name]) => element("div", {}, element("dt", {}, name), element("dd"))));
  }
  facts.forEach(([, value], i) => say(list.children[i].lastChild, value));
}

/* topology */

const CENTER = 200, RADIUS = 170;
function place(index, count) {
  const angle = 2 * Math.PI * index / count - Math.PI / 2;
  return count === 1 ? [CENTER, CENTER] : [CENTER + RADIUS * Math.cos(angle), CENTER + RADIUS * Math.sin(angle)];
}
function drawTopology() {
  const svg = $("topology"), rows = picture.peers, size = Math.max(1.6, Math.min(19, 0.42 * 2 * Math.PI * RADIUS / rows.length));
  const at = new Map(rows.map((row, i) => [row.peer, place(i, rows.length)]));
  const wanted = JSON.stringify([rows.map((row) => row.peer), picture.edges]);
  if (wanted !== shape) {
    shape = wanted;
    const peers = rows.map((row) => {
      const [x, y] = at.get(row.peer);
      const ring = { cx: x, cy: y, r: size };
      const label = element("text", { x, y }, String(row.peer));
      label.style.fontSize = `${Math.min(14, 1.05 * size)}px`;
      return element("g", { id: `node-${row.peer}`, class: "peer" },
        element("title"), element("circle", { class: "body", ...ring }), element("circle", { class: "track", ...ring }),
        element("circle", { class: "done", ...ring, pathLength: 1, transform: `rotate(-90 ${x} ${y})` }), ...(size >= 6 ? [label] : []));
    });
    const edges = picture.edges.map(([i, j]) => {
      const [a, b] = [at.get(i), at.get(j)];
      return element("line", { id: `edge-${i}-${j}`, class: "edge", x1: a[0], y1: a[1], x2: b[0], y2: b[1] });
    });
    svg.replaceChildren(element("g", { class: rows.length > 40 ? "many" : null }, ...edges), element("g", { id: "waits" }),
      element("g", { "stroke-width": Math.min(5, 0.32 * size + 0.4) }, ...peers));
  }
  const byPeer = new Map(rows.map((row) => [row.peer, row]));
  let lost = 0;
  for (const [i, j] of picture.edges) {
    const ends = [byPeer.get(i), byPeer.get(j)];
    const broken = ends.some((row) => isGone(row)) || ends.some((row, e) => row.age !== null && !isOld(row) && row.lost_links.includes([j, i][e]));
    lost += broken;
    set($(`edge-${i}-${j}`), { class: `edge${broken ? " lost" : ends.every((row) => row.age === null) ? " unknown" : ""}` });
  }
  rows.forEach((row) => drawPeer(row));
  drawWaits(rows, at, size);
  const gone = rows.filter(isGone).length, wait = rows.filter(waitOf).length;
  const told = `${about.num_peers} peers, ${picture.edges.length} edges, ${lost} edges lost, ${gone} peers lost or left, ${wait} wait in their open round`;
  set(svg, { "aria-label": told });
}
function drawPeer(row) {
  const node = $(`node-${row.peer}`), known = row.age !== null;
  const kind = ["peer", row.peer === about.peer && "self", isGone(row) && "gone", row.membership === "left" && "left", isOld(row) && !isGone(row) && "old"];
  set(node, { class: kind.filter(Boolean).join(" ") });
  set(node.querySelector(".done"), { "stroke-dasharray": `${known ? row.finished_fraction : 0} 1` });
  say(node.firstChild, known
    ? `peer ${row.peer}: ${stateOf(row) || row.state}, round ${row.round}, loss ${loss(row.train_loss)}, finishes ${percent(row.finished_fraction)} of its quota`
    : `peer ${row.peer}: not heard of yet`);
}
const MOST_LABELS = 12;
function drawWaits(rows, at, size) {
  const arrows = [], many = rows.length > 40, now = rows.reduce((sum, row) => sum + (waitOf(row)?.peers.length || 0), 0);
  for (const row of rows) {
    if (row.age === null || isOld(row) || isGone(row)) continue;
    const open = waitOf(row), shares = new Map(row.waited_for);
    for (const other of new Set([...shares.keys(), ...(open ? open.peers : [])])) {
      const waits = open !== null && open.peers.includes(other), share = shares.get(other) || 0;
      if (other === row.peer || !at.has(other) || !waits && share < 0.02) continue;
      const label = waits ? duration(open.seconds) : "";
      const title = waits ? `peer ${row.peer} has waited for peer ${other} for ${label}` : `peer ${row.peer} waits for peer ${other} ${percent(share)} of its time`;
      arrows.push(arrow(at.get(row.peer), at.get(other), size, many ? 0.6 : 1, waits ? Math.max(share, 0.25) : share, title, waits, now <= MOST_LABELS ? label : ""));
    }
  }
  $("waits").replaceChildren(...arrows);
}
/* bent, so that those of both directions are seen; share: what makes it thick; waits: now */
function arrow([x1, y1], [x2, y2], size, thin, share, title, waits, label) {
  const length = Math.hypot(x2 - x1, y2 - y1), ux = (x2 - x1) / length, uy = (y2 - y1) / length, gap = 1.2 * size + 2;
  const bend = 0.16 * length, mx = (x1 + x2) / 2 - bend * uy, my = (y1 + y2) / 2 + bend * ux;
  const tip = [x2 - gap * (x2 - mx) / Math.hypot(x2 - mx, y2 - my), y2 - gap * (y2 - my) / Math.hypot(x2 - mx, y2 - my)];
  const dx = tip[0] - mx, dy = tip[1] - my, d = Math.hypot(dx, dy), vx = dx / d, vy = dy / d, width = thin * (1 + 6 * share), head = thin * (5 + 7 * share);
  const foot = [x1 + gap * (mx - x1) / Math.hypot(mx - x1, my - y1), y1 + gap * (my - y1) / Math.hypot(mx - x1, my - y1)];
  const neck = [tip[0] - head * vx, tip[1] - head * vy];
  const n = (value) => value.toFixed(1);
  const middle = [(foot[0] + 2 * mx + neck[0]) / 4, (foot[1] + 2 * my + neck[1]) / 4];
  return element("g", { class: waits ? "waits now" : "waits" },
    element("title", {}, title),
    element("path", { class: "wait", "stroke-width": n(width), d: `M${n(foot[0])} ${n(foot[1])}Q${n(mx)} ${n(my)} ${n(neck[0])} ${n(neck[1])}` }),
    element("path", { class: "head", d: `M${n(tip[0])} ${n(tip[1])}L${n(neck[0] - head * vy * 0.6)} ${n(neck[1] + head * vx * 0.6)}L${n(neck[0] + head * vy * 0.6)} ${n(neck[1] - head * vx * 0.6)}Z` }),
    ...(label ? [element("text", { x: n(middle[0]), y: n(middle[1]) }, label)] : []));
}

/* loss curve */

function ticks(low, high, count) {
  const step = 10 ** Math.floor(Math.log10((high - low) / count)), factor = [1, 2, 5, 10].find((f) => (high - low) / (step * f) <= count);
  const found = [];
  for (let value = Math.ceil(low / (step * factor)) * step * factor; value <= high * (1 + 1e-9); value += step * factor) found.push(value);
  return found;
}
function lossTicks(low, high, logarithmic) {
  if (!logarithmic) return ticks(low, high, 5);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of high / low > 300 ? [1] : [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found;
}
function drawLoss() {
  const svg = $("loss"), points = curve.filter((point) => point[1] !== null);
  const width = Math.max(300, Math.min(640, svg.clientWidth || 600)), height = Math.round(0.2 * width + 210); /* so that letters keep their size */
  const plot = { left: 52, right: width - 14, top: 10, bottom: height - 30 };
  set(svg, { viewBox: `0 0 ${width} ${height}` });
  if (points.length < 2) {
    svg.replaceChildren(element("text", { class: "axis", x: width / 2, y: height / 2, "text-anchor": "middle" }, "no two points yet"));
    return;
  }
  const values = points.flatMap((point) => point.slice(1)).filter((value) => value !== null);
  let low = Math.min(...values), high = Math.max(...values);
  const logarithmic = low > 0 && high / low > 4;
  if (!logarithmic) [low, high] = [low - 0.05 * (high - low || 1), high + 0.05 * (high - low || 1)];
  const first = points[0][0], last = Math.max(points[points.length - 1][0], first + 1);
  const scale = logarithmic ? Math.log : (value) => value;
  const x = (seconds) => (plot.left + (plot.right - plot.left) * (seconds - first) / (last - first)).toFixed(1);
  const y = (value) => (plot.bottom - (plot.bottom - plot.top) * (scale(value) - scale(low)) / (scale(high) - scale(low))).toFixed(1);
  const line = (index) => points.filter((point) => point[index] !== null).map((point) => `${x(point[0])} ${y(point[index])}`).join("L");
  const parts = [];
  for (const value of lossTicks(low, high, logarithmic)) {
    parts.push(element("line", { class: "rule", x1: plot.left, x2: plot.right, y1: y(value), y2: y(value) }));
    parts.push(element("text", { class: "axis", x: plot.left - 8, y: +y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(3))));
  }
  for (const seconds of ticks(first, last, width < 450 ? 4 : 6)) {
    parts.push(element("text", { class: "axis", x: x(seconds), y: plot.bottom + 20, "text-anchor": "middle" }, `${+seconds.toPrecision(6)} s`));
  }
  const forth = line(2), back = points.slice().reverse().map((point) => `${x(point[0])} ${y(point[3])}`).join("L");
  parts.push(element("path", { class: "band", d: `M${forth}L${back}Z` }));
  parts.push(element("path", { class: "own", d: `M${line(4)}` }), element("path", { class: "mean", d: `M${line(1)}` }));
  svg.replaceChildren(...parts);
  set(svg, { "aria-label": `Training loss over time, mean of the peers ${loss(points[points.length - 1][1])} after ${duration(last)}` });
  say($("own-name"), `peer ${about.peer}`);
}

/* peers */

const PARTS = ["computing", "waiting", "exchanging", "mixing"];
const LABELS = ["round", "loss", "samples/s", "finishes", "stale", "closed first by", "heard of"];
function makeRow(row) {
  const bar = element("div", { class: "bar", role: "img" }, ...PARTS.map((part) => element("i", { class: part })));
  return element("tr", { id: `peer-${row.peer}` }, element("th", { scope: "row" }, String(row.peer), element("small")),
    element("td", {}, bar, element("small", { class: "now" })), ...LABELS.map((label) => element("td", { "data-label": label })));
}
function closers(row) {
  return row.closed_by.slice(0, 2).map(([peer, share]) => `${peer === row.peer ? "itself" : peer} (${percent(share)})`).join(", ") || "–";
}
function drawPeers() {
  const body = $("peers"), rows = picture.peers;
  if (body.children.length !== rows.length || rows.some((row, i) => body.children[i].id !== `peer-${row.peer}`)) {
    body.replaceChildren(...rows.map(makeRow));
  }
  rows.forEach((row, i) => {
    const line = body.children[i], cells = line.children, known = row.age !== null;
    set(line, { class: isOld(row) || isGone(row) ? "old" : null });
    const tag = cells[0].lastChild;
    say(tag, [stateOf(row), row.peer === about.peer && "this peer"].filter(Boolean).join(", "));
    set(tag, { class: isGone(row) && row.membership !== "left" ? "bad" : null });
    const bar = cells[1].firstChild;
    PARTS.forEach((part, p) => { bar.children[p].style.width = `${known ? 100 * row[part] : 0}%`; });
    set(bar, { "aria-label": known ? PARTS.map((part) => `${part} ${percent(row[part])}`).join(", ") : "unknown" });
    set(bar, { title: bar.getAttribute("aria-label") });
    const wait = waitOf(row);
    say(cells[1].lastChild, wait ? waitText(wait) : "");
    const age = ageOf(row);
    const texts = known
      ? [whole(row.round), loss(row.train_loss), whole(row.samples_per_second), percent(row.finished_fraction), whole(row.max_staleness), closers(row),
        row.peer === about.peer ? "itself" : age <= about.old_after ? "now" : `${duration(age)} ago`]
      : ["–", "–", "–", "–", "–", "–", "never"];
    texts.forEach((text, t) => say(cells[t + 2], text));
  });
  const hidden = about.num_peers - rows.length;
  $("hidden").hidden = hidden <= 0;
  say($("hidden"), `${hidden} more peers are not shown`);
}

/* reasons and events */

function drawReasons() {
  const counts = Object.entries(picture.reasons).sort((a, b) => b[1] - a[1]), total = counts.reduce((sum, [, count]) => sum + count, 0);
  if (!total) return;
  $("reasons").replaceChildren(...counts.map(([reason, count]) => {
    const part = element("i");
    part.style.width = `${100 * count / total}%`;
    return element("li", {}, element("span", {}, REASONS[reason] || reason), element("span", { class: "bar" }, part),
      element("span", { class: "count" }, `${whole(count)} rounds of all peers, ${percent(count / total)}`));
  }));
}
function drawEvents() {
  const shown = [...events.values()].sort((a, b) => b.number - a.number).slice(0, KEPT_EVENTS);
  events = new Map(shown.map((event) => [event.id, event]));
  if (!shown.length) return;
  const list = $("events");
  if (list.firstElementChild && list.firstElementChild.dataset.number === String(shown[0].number)) return;
  list.replaceChildren(...shown.map((event) => {
    const moment = new Date(1000 * event.at);
    return element("li", { class: event.kind, "data-number": event.number },
      element("time", { datetime: moment.toISOString() }, moment.toTimeString().slice(0, 8)),
      element("span", { class: "kind" }, KINDS[event.kind] || event.kind),
      element("span", {}, event.text + (event.times > 1 ? ` (${event.times} times)` : "")));
  }));
}

/* the stream */

function draw() {
  if (!picture || !about) return;
  drawHead(); drawTopology(); drawLoss(); drawPeers(); drawReasons(); drawEvents();
}
function take(data) {
  if (data.about) { about = data.about; events = new Map(); curve = data.curve; }
  if (!about) return;
  picture = data;
  received = performance.now();
  const last = curve[curve.length - 1];
  if (data.point && (!last || data.point[0] > last[0])) curve.push(data.point);
  if (curve.length > KEPT_POINTS) curve = curve.filter((_, i) => i % 2 === 0 || i === curve.length - 1);
  for (const event of data.events) events.set(event.id, event);
  draw();
}
function state(kind, text) { $("live").className = `live ${kind}`; say($("live"), text); }
function listen() {
  const source = new EventSource("events");
  const told = (event) => { state("on", "live"); take(JSON.parse(event.data)); };
  source.addEventListener("open", () => state("on", "live"));
  source.addEventListener("whole", told);
  source.addEventListener("update", told);
  source.addEventListener("end", (event) => {
    source.close();
    take(JSON.parse(event.data));
    state("off", "this peer has ended");
    setTimeout(listen, AGAIN_MS);
  });
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) { state("off", "no connection, trying again"); return; }
    state("off", "refused, or this peer has ended; trying again");
    setTimeout(listen, AGAIN_MS);
  });
}
setInterval(() => { if ($("live").classList.contains("off")) draw(); }, 1000); /* what is not heard of grows old */
listen();
