// One card for each upstream: its plots, its policy, its candidate and its endpoints.
const history = new Map();
const policyOf = (name) => latest.policies.find((own) => own.upstream === name);

const TRIAL = {
  missing: ["quiet", "no component yet"], "on-trial": ["warn", "◐ on trial"], ready: ["good", "✓ ready"], "given-up": ["bad", "✕ given up"],
};

function columns(...names) {
  return el("thead", {}, el("tr", {}, ...names.map((text) => el("th", { scope: "col" }, text))));
}

function makeUpstream(upstream) {
  const endpoints = el("table", {},
    columns("Endpoint", "Requests/s", "Failed/s", "Held back/s", "Retries/s", "Half within", "99 % within", "Under way"), el("tbody", {}));
  const differences = el("ul", { class: "facts differences", tabindex: "0", "aria-label": `Differences of the candidate of ${upstream.name}`, "data-part": "differences" });
  return el("article", { class: "card", "aria-label": upstream.name },
    el("div", { class: "top" }, el("h3", {}, upstream.name, " ", el("small", { class: "quiet", "data-part": "url" })),
      el("span", { class: "chip", "data-part": "standing" }),
      menu(`Policy of ${upstream.name}`, button("Roll back", `Roll back the policy of ${upstream.name}`, () => rollBack(policyOf(upstream.name))))),
    el("div", { class: "plots" }, plot("Requests", ["ok", "held", "failed"], "path"), plot("Time to the answer, without refusals", ["p50", "p99"], "path")),
    el("p", { class: "facts" }, el("span", { "data-part": "policy" })),
    el("section", { class: "candidate", "aria-label": `Candidate of ${upstream.name}`, "data-part": "candidate" },
      el("div", { class: "top" }, el("h4", { "data-part": "candidate-name" }), el("span", { class: "chip", "data-part": "trial" })),
      el("p", { class: "facts", "data-part": "results" }),
      differences,
      el("p", { class: "facts quiet", "data-part": "ungrouped" })),
    el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Endpoints of ${upstream.name}`, "data-part": "endpoints" }, endpoints));
}

// The fleet's state of a policy.
function ofFleet(fleet) {
  if (!fleet) return "";
  const behind = fleet.hosts.filter((host) => host.behind).length;
  const where = fleet.behind ? ", this host is behind" : behind ? `, ${behind} behind` : "";
  return `; fleet generation ${fleet.generation}, ${fleet.phase}, ${fleet.hosts.length} hosts${where}`;
}

function changePolicy(node, policy) {
  const { name, version, digest, generation, standing } = policy.serving;
  const which = digest ? ` ${version}, ${digest.slice(0, 12)}` : "";
  say(part(node, "policy"), `policy ${name}${which}, generation ${generation}${policy.quarantined.length ? `; ${policy.quarantined.length} quarantined` : ""}${ofFleet(policy.fleet)}`);
  const tone = { good: "good", probation: "warn", suspended: "bad" }[standing];
  mark(part(node, "standing"), "data-tone", tone);
  say(part(node, "standing"), { good: "✓ policy good", probation: "◐ policy on probation", suspended: "✕ policy suspended" }[standing]);
  part(node, "menu").hidden = !mayAct || !(policy.fallback || policy.fleet?.generation);
  changeCandidate(part(node, "candidate"), policy.candidate);
}

function changeCandidate(node, candidate) {
  node.hidden = !candidate;
  if (!candidate) return;
  const { name, version, digest, state, mode, share_percent: share, decisions, compared, differed, skipped, faults } = candidate;
  const which = name ? `${name} ${version}${digest ? `, ${digest.slice(0, 12)}` : ""}` : candidate.source;
  say(part(node, "candidate-name"), `Candidate ${which}`);
  const [tone, word] = TRIAL[state];
  mark(part(node, "trial"), "data-tone", tone);
  say(part(node, "trial"), word);
  const how = mode === "canary" ? `canary for ${share} % of the requests` : "in shadow";
  const counts = mode === "canary" ? plural(decisions, "decision")
    : `${compared} compared, ${differed} differed, ${skipped} skipped`;
  const began = candidate.began_unix_ms ? ` for ${ago(candidate.began_unix_ms)}: ${counts}, ${plural(faults, "fault")}` : "";
  say(part(node, "results"), `${how}${began}`);
  const make = (group) => el("li", {}, el("b", {}, `${group.endpoint} ${group.outcome}`), " ", el("span", { class: "quiet", "data-part": "count" }),
    el("p", {}, `live policy: ${group.live}; candidate: ${group.candidate}`));
  const key = (group) => [group.endpoint, group.outcome, group.live, group.candidate].join("\n");
  each(part(node, "differences"), candidate.differences, key, make, (row, group) =>
    say(part(row, "count"), `× ${group.count}, latest ${ago(group.latest_unix_ms)} ago`));
  say(part(node, "ungrouped"), candidate.ungrouped ? `and ${candidate.ungrouped} more in further groups` : "");
}

function changeUpstream(node, upstream) {
  say(part(node, "url"), upstream.base_url);
  const policy = policyOf(upstream.name);
  if (policy) changePolicy(node, policy);
  const { points = [], most = 2, every_ms = 1000 } = history.get(upstream.name) ?? {};
  const [requests, times] = node.querySelectorAll("figure");
  drawRates(requests, points, most);
  drawTimes(times, points, most);
  for (const from of node.querySelectorAll('[data-part="from"]')) say(from, `${time(most * every_ms)} ago`);
  const rows = latest.rates.filter((rates) => rates.upstream === upstream.name);
  const make = (rates) => el("tr", {}, el("td", {}, rates.endpoint), ...Array.from({ length: 7 }, () => el("td")));
  const endpoints = part(node, "endpoints");
  each(endpoints.querySelector("tbody"), rows, (rates) => rates.endpoint, make, (row, rates) => {
    const values = [rates.ok + rates.failed + rates.held, rates.failed, rates.held, rates.retries].map(number);
    [...values, time(rates.p50_ms), time(rates.p99_ms), number(rates.in_flight)].forEach((text, index) => say(row.children[index + 1], text));
    row.children[2].className = rates.failed > 0 ? "hot" : "";
  });
  endpoints.hidden = rows.length === 0;
}
