// Two plots per upstream: the results of its requests, and their latency.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600, HEIGHT = 100;

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function plot(label, series, tag) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  for (const name of series) svg.append(shape(tag, { class: name }));
  const spans = series.map((name) => el("span", { class: `s-${name}`, "data-part": name }));
  return el("figure", {}, el("figcaption", {}, el("b", {}, label), ...spans), svg,
    el("div", { class: "axis", "aria-hidden": "true" }, el("span", { "data-part": "from" }), el("span", { "data-part": "most" }), el("span", {}, "now")));
}

// A round number at or above every value, so that the scale does not change with each point.
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((round) => round >= value);
}

const across = (index, points, most) => (WIDTH * (index + most - points.length)) / Math.max(1, most - 1);

function drawRates(figure, points, most) {
  const total = (point) => point.ok + point.held + point.failed;
  const top = ceiling(Math.max(0, ...points.map(total)));
  let below = points.map(() => 0);
  for (const name of ["ok", "held", "failed"]) {
    const above = points.map((point, index) => below[index] + point[name]);
    const line = (values) => values.map((value, index) =>
      `${across(index, points, most).toFixed(1)},${(HEIGHT * (1 - value / top)).toFixed(1)}`);
    const outline = [...line(above), ...line(below).reverse()];
    figure.querySelector(`.${name}`).setAttribute("d", points.length ? `M${outline.join("L")}Z` : "");
    below = above;
  }
  const last = points.at(-1) ?? { ok: 0, held: 0, failed: 0 };
  const words = { ok: "answered", held: "held back", failed: "failed" };
  const texts = Object.entries(words).map(([name, word]) => [name, `${word} ${number(last[name])}/s`]);
  for (const [name, text] of texts) say(part(figure, name), text);
  say(part(figure, "most"), `scale: 0 to ${number(top)}/s`);
  mark(figure.querySelector("svg"), "aria-label", `Requests a second: ${texts.map(([, text]) => text).join(", ")}`);
}

function drawTimes(figure, points, most) {
  const known = points.flatMap((point) => [point.p50_ms, point.p99_ms]).filter((ms) => ms != null);
  const top = ceiling(Math.max(0, ...known));
  for (const name of ["p50", "p99"]) {
    let drawn = "", pen = "M";
    points.forEach((point, index) => {
      const ms = point[`${name}_ms`];
      if (ms == null) { pen = "M"; return; }
      drawn += `${pen}${across(index, points, most).toFixed(1)},${(HEIGHT * (1 - ms / top)).toFixed(1)}`;
      pen = "L";
    });
    figure.querySelector(`path.${name}`).setAttribute("d", drawn);
  }
  const last = points.at(-1) ?? {};
  const texts = [["p50", `half within ${time(last.p50_ms)}`], ["p99", `99 % within ${time(last.p99_ms)}`]];
  for (const [name, text] of texts) say(part(figure, name), text);
  say(part(figure, "most"), `scale: 0 to ${time(top)}`);
  mark(figure.querySelector("svg"), "aria-label", `Time to the answer: ${texts.map(([, text]) => text).join(", ")}`);
}
