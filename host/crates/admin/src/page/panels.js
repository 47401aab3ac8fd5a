const STATE = {
  closed: ["good", "✓ closed"], "half-open": ["warn", "◐ half-open"], open: ["bad", "✕ open"], off: ["quiet", "no breaker"],
};

function tiles(now) {
  const sum = (name) => now.rates.reduce((total, rates) => total + rates[name], 0);
  const worst = Math.max(-1, ...now.rates.map((rates) => rates.p99_ms ?? -1));
  const failed = sum("failed"), held = sum("held");
  const all = [
    ["Requests", number(sum("ok") + failed + held), "/s"],
    ["Failed", number(failed), "/s", failed > 0 ? "bad" : "good"],
    ["Held back", number(held), "/s", held > 0 ? "warn" : "good"],
    ["Retries", number(sum("retries")), "/s", sum("retries") > 0 ? "warn" : "good"],
    ["Slowest p99", worst < 0 ? "–" : time(worst), ""],
    ["Under way", number(sum("in_flight")), ""],
    ["Memory", bytes(now.memory_bytes), ""],
    ["Up", time(now.status.uptime_ms), ""],
  ];
  const make = ([name]) => el("div", {}, el("dt", {}, name), el("dd", {}, el("span", { "data-part": "value" }), el("small", { "data-part": "unit" })));
  each(at("tiles"), all, ([name]) => name, make, (node, [, value, unit, tone = "good"]) => {
    say(part(node, "value"), value);
    say(part(node, "unit"), unit);
    mark(node, "data-tone", tone);
  });
}

function makeBreaker(breaker) {
  const name = `${breaker.upstream}/${breaker.group}`;
  const now = () => latest.breakers.find((own) => own.upstream === breaker.upstream && own.group === breaker.group) ?? breaker;
  const one = (kind, text) => {
    const made = button(text, `${text}: ${name}`, () => BREAKER[kind](now()));
    made.dataset.part = kind;
    return made;
  };
  const buttons = el("div", { class: "buttons", "data-part": "buttons", role: "group", "aria-label": `Breaker ${name}` },
    one("open", "Force open"), one("close", "Force closed"), one("reset", "Reset"), one("undo", "Clear"));
  return el("li", { class: "card" },
    el("div", { class: "top" }, el("h3", {}, name), el("span", { class: "chip", "data-part": "state" })),
    el("p", { class: "facts", "data-part": "why" }), el("p", { class: "facts quiet", "data-part": "counts" }), buttons);
}

function changeBreaker(node, breaker) {
  const [tone, word] = STATE[breaker.enabled ? breaker.state : "off"];
  mark(node, "data-tone", breaker.forced ? "warn" : tone);
  mark(node, "data-state", breaker.state);
  const chip = part(node, "state");
  mark(chip, "data-tone", tone);
  say(chip, breaker.forced ? `${word}, by an operator` : word);
  const left = breaker.remaining_ms == null ? "" : breaker.forced ? `ends in ${time(breaker.remaining_ms)}` : `probes in ${time(breaker.remaining_ms)}`;
  const since = breaker.open_since_ms == null ? "" : `open for ${time(breaker.open_since_ms)}`;
  say(part(node, "why"), [breaker.why, since, left].filter(Boolean).join(" · "));
  part(node, "why").hidden = !breaker.why && !left;
  const window = breaker.window ?? { calls: 0, failures: 0, slow: 0 };
  const counts = [`${number(window.calls)} calls in the window, ${number(window.failures)} failed`];
  if (breaker.failures_in_row) counts.push(`${breaker.failures_in_row} in a row`);
  if (breaker.probes_under_way) counts.push(plural(breaker.probes_under_way, "probe") + " under way");
  if (breaker.endpoints.length > 1 || breaker.endpoints[0] !== breaker.group) counts.push(`for ${breaker.endpoints.join(", ")}`);
  say(part(node, "counts"), breaker.enabled ? counts.join(" · ") : `for ${breaker.endpoints.join(", ")}`);
  part(node, "buttons").hidden = !mayAct || !breaker.enabled;
  part(node, "undo").hidden = !breaker.forced;
}

const history = new Map();

function makeUpstream(upstream) {
  const head = ["Endpoint", "Requests/s", "Failed/s", "Held back/s", "Retries/s", "Half within", "99 % within", "Under way"];
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}));
  return el("article", { class: "card", "aria-label": upstream.name },
    el("div", { class: "top" }, el("h3", {}, upstream.name, " ", el("small", { class: "quiet", "data-part": "url" })), el("span", { class: "chip", "data-part": "standing" })),
    el("p", { class: "facts" }, el("span", { "data-part": "policy" })),
    el("div", { class: "buttons", "data-part": "policy-buttons" },
      button("Roll back", `Roll back the policy of ${upstream.name}`, () => rollBack(latest.policies.find((own) => own.upstream === upstream.name)))),
    el("div", { class: "plots" }, plot("Requests", ["ok", "held", "failed"], "path"), plot("Time to the answer", ["p50", "p99"], "path")),
    el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Endpoints of ${upstream.name}` }, table));
}

// The fleet's state of a policy.
function ofFleet(fleet) {
  if (!fleet) return "";
  const behind = fleet.hosts.filter((host) => host.behind).length;
  const where = fleet.behind ? ", this host is behind" : behind ? `, ${behind} behind` : "";
  return `; fleet generation ${fleet.generation}, ${fleet.phase}, ${fleet.hosts.length} hosts${where}`;
}

function changeUpstream(node, upstream) {
  say(part(node, "url"), upstream.base_url);
  const policy = latest.policies.find((own) => own.upstream === upstream.name);
  if (policy) {
    const { name, version, digest, generation, standing } = policy.serving;
    const which = digest ? ` ${version}, ${digest.slice(0, 12)}` : "";
    say(part(node, "policy"), `policy ${name}${which}, generation ${generation}${policy.quarantined.length ? `; ${policy.quarantined.length} quarantined` : ""}${ofFleet(policy.fleet)}`);
    const tone = { good: "good", probation: "warn", suspended: "bad" }[standing];
    mark(part(node, "standing"), "data-tone", tone);
    say(part(node, "standing"), { good: "✓ policy good", probation: "◐ policy on probation", suspended: "✕ policy suspended" }[standing]);
    part(node, "policy-buttons").hidden = !mayAct || !(policy.fallback || policy.fleet?.generation);
  }
  const { points = [], most = 2, every_ms = 1000 } = history.get(upstream.name) ?? {};
  const [requests, times] = node.querySelectorAll("figure");
  drawRates(requests, points, most);
  drawTimes(times, points, most);
  for (const from of node.querySelectorAll('[data-part="from"]')) say(from, `${time(most * every_ms)} ago`);
  const rows = latest.rates.filter((rates) => rates.upstream === upstream.name);
  const make = (rates) => el("tr", {}, el("td", {}, rates.endpoint), ...Array.from({ length: 7 }, () => el("td")));
  each(node.querySelector("tbody"), rows, (rates) => rates.endpoint, make, (row, rates) => {
    const values = [rates.ok + rates.failed + rates.held, rates.failed, rates.held, rates.retries].map(number);
    [...values, time(rates.p50_ms), time(rates.p99_ms), number(rates.in_flight)].forEach((text, index) => say(row.children[index + 1], text));
    row.children[2].className = rates.failed > 0 ? "hot" : "";
  });
  node.querySelector(".wide").hidden = rows.length === 0;
}

function bar(name) {
  return el("div", { "data-part": name }, el("p", { class: "facts" }, ""), el("meter", { min: "0", max: "1" }));
}

function fill(node, text, share, tone) {
  say(node.querySelector("p"), text);
  const meter = node.querySelector("meter");
  mark(meter, "aria-label", text);
  const bad = tone === "low-is-bad";
  meter.low = bad ? 0.01 : 0.7;
  meter.high = bad ? 0.03 : 0.95;
  meter.optimum = bad ? 1 : 0;
  meter.value = Math.max(0, Math.min(1, share));
}

function limits(now) {
  const budget = (group) => now.budgets.find((own) => own.upstream === group.upstream && own.group === group.group);
  const make = (group) => {
    const name = `${group.upstream}/${group.group}`;
    const lift = el("div", { class: "buttons", "data-part": "lift" }, button("Lift the pause", `Lift the pause: ${name}`, () => liftPause(group)));
    return el("li", { class: "card" }, el("h3", {}, name), el("p", { class: "facts error", "data-part": "paused" }), lift,
      el("div", { class: "stack", "data-part": "bars" }));
  };
  each(at("limits"), now.limits, (group) => `${group.upstream}/${group.group}`, make, (node, group) => {
    say(part(node, "paused"), group.paused_ms ? `paused for ${time(group.paused_ms)}: the upstream asked for it` : "");
    part(node, "lift").hidden = !mayAct || !group.paused_ms;
    const bars = group.limits.map((limit, index) => [`limit-${index}`,
      `${plural(limit.requests, "request")} per ${time(limit.period_ms)}: ${limit.taken} of ${limit.burst} taken`, limit.taken / limit.burst]);
    for (const place of group.concurrency) {
      bars.push([`places-${place.endpoint}`, `${place.endpoint}: ${place.taken} of ${plural(place.places, "permit")} taken`, place.taken / place.places]);
    }
    const rate = group.adaptive_rate?.per_minute;
    // A full bar means that the rate is at its floor.
    if (rate) bars.push(["adaptive-rate", `the upstream throttles: the host sends ${plural(Math.floor(rate), "request")} a minute`, group.adaptive_rate.floor_per_minute / rate]);
    const saved = budget(group);
    if (saved) bars.push(["budget", `retry budget: ${number(Math.floor(saved.saved))} of ${saved.capacity} left`, saved.saved / saved.capacity, "low-is-bad"]);
    each(part(node, "bars"), bars, ([name]) => name, ([name]) => bar(name), (own, [, text, share, tone]) => fill(own, text, share, tone));
  });
}

function events(now) {
  const make = (event) => el("li", { class: "event" }, el("time", { datetime: new Date(event.unix_ms).toISOString() }, clock(event.unix_ms)),
    el("span", {}, el("b", {}, `${event.kind.replaceAll("-", " ")} `), `${event.subject}: ${event.text}`));
  each(at("events"), [...now.events].reverse(), (event) => event.number, make);
  if (!now.events.length) at("events").append(el("li", { class: "quiet", "data-key": "none" }, "No events yet."));
}

async function explain(details) {
  const steps = part(details, "steps");
  if (!details.open || steps.childElementCount) return;
  try {
    const timeline = await ask("GET", `/api/v1/requests/${details.dataset.key}`);
    steps.append(...timeline.steps.flatMap((step) => [el("span", {}, time(step.at_us / 1000)), el("span", {}, step.text)]));
    part(details, "more").append("The same on the command line: ", el("code", {}, `triage explain ${timeline.id}`));
  } catch (error) {
    say(part(details, "more"), error.message);
  }
}

function rough(now) {
  const make = (request) => el("details", { ontoggle: (event) => explain(event.target) },
    el("summary", {}, el("time", {}, clock(request.unix_ms)), ` ${request.method} ${request.upstream}/${request.endpoint}: `,
      el("b", {}, request.status ?? "caller disconnected"), ` in ${time(request.took_us / 1000)}`),
    el("p", { class: "steps", "data-part": "steps" }), el("p", { class: "facts quiet", "data-part": "more" }));
  // Keep an open entry even if newer ones replace it in the list.
  const open = [...at("rough").querySelectorAll("details[open]")].filter((node) => !now.requests.some((own) => own.id === node.dataset.key));
  const kept = open.map((node) => ({ id: node.dataset.key }));
  each(at("rough"), [...now.requests, ...kept], (request) => request.id, make);
  if (!now.requests.length && !kept.length) at("rough").append(el("p", { class: "quiet", "data-key": "none" }, "None so far."));
}

function unsettled(now) {
  at("unsettled-section").hidden = now.unsettled.count === 0;
  const make = (record) => el("li", {}, el("p", { class: "facts" }, el("code", {}, record.id)), el("p", { class: "facts quiet", "data-part": "ago" }),
    el("div", { class: "buttons" }, ...mayAct ? [button("Took effect", `Took effect: ${record.id}`, () => settle(record, "applied")),
      button("No effect", `No effect: ${record.id}`, () => settle(record, "not-applied"))] : []));
  const endpoint = (record) => record.endpoint ? `${record.upstream}/${record.endpoint}, ` : "";
  const next = (record) => record.verified_in_ms === null ? "" : `, verified in ${time(record.verified_in_ms)}`;
  each(at("unsettled"), now.unsettled.first, (record) => record.id, make, (node, record) =>
    say(part(node, "ago"), `${endpoint(record)}sent ${time(record.sent_ms_ago)} ago${next(record)}`));
}
