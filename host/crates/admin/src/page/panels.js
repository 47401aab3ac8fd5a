// The tiles, limits, events, requests and unknown writes.
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
  const budget = (group, name) => now.budgets.find((own) => own.upstream === group.upstream && own.group === name);
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
    // Reads may have a budget of their own.
    for (const [name, label] of [[group.group, "retry budget"], [`${group.group} (reads)`, "retry budget of reads"]]) {
      const own = budget(group, name);
      if (own) bars.push([label, `${label}: ${number(Math.floor(own.saved))} of ${own.capacity} left`, own.saved / own.capacity, "low-is-bad"]);
    }
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
    const timeline = await ask("GET", `/api/v1/requests/${details.dataset.request}`);
    steps.append(...timeline.steps.flatMap((step) => [el("span", {}, time(step.at_us / 1000)), el("span", {}, step.text)]));
    part(details, "more").append("The same on the command line: ", el("code", {}, `triage explain ${timeline.id}`));
  } catch (error) {
    say(part(details, "more"), error.message);
  }
}

// Equal refusals are one row, so that they do not hide the failures that caused them.
function rough(now) {
  // Two runs of equal refusals, with a pause between, have one name: the older one gets a number.
  const named = new Map();
  for (const request of now.requests) {
    if (request.count === 1) continue;
    const name = [request.method, request.upstream, request.endpoint, request.status, request.reason].join(" ");
    const runs = named.get(name) ?? 0;
    named.set(name, runs + 1);
    request.key = `${name} ${runs}`;
  }
  const key = (request) => request.key ?? request.id;
  const make = (request) => el("details", { "data-request": request.id, ontoggle: (event) => explain(event.target) },
    el("summary", {}, el("time", { "data-part": "when" }), ` ${request.method} ${request.upstream}/${request.endpoint}: `,
      el("b", { "data-part": "what" }), el("span", { "data-part": "took" })),
    el("p", { class: "steps", "data-part": "steps" }), el("p", { class: "facts quiet", "data-part": "more" }));
  const change = (node, request) => {
    if (!request.method) return;
    const what = [request.status ?? "caller disconnected", request.reason].filter(Boolean).join(" ");
    say(part(node, "when"), clock(request.unix_ms));
    say(part(node, "what"), request.count > 1 ? `${what} × ${request.count}` : what);
    say(part(node, "took"), request.count > 1 ? ` since ${clock(request.first_unix_ms)}` : ` in ${time(request.took_us / 1000)}`);
    // A closed row shows its latest request when it is opened.
    if (!node.open && node.dataset.request !== request.id) {
      node.dataset.request = request.id;
      part(node, "steps").replaceChildren();
      part(node, "more").replaceChildren();
    }
  };
  // Keep an open entry even if newer ones replace it in the list.
  const keys = new Set(now.requests.map(key));
  const open = [...at("rough").querySelectorAll("details[open]")].filter((node) => !keys.has(node.dataset.key));
  const kept = open.map((node) => ({ id: node.dataset.key }));
  each(at("rough"), [...now.requests, ...kept], key, make, change);
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
