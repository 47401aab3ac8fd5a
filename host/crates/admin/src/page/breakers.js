// The breakers, the worst first. Closed breakers without traffic are folded into one line.
const STATE = {
  closed: ["good", "✓"], "half-open": ["warn", "◐"], open: ["bad", "✕"],
};
const RANK = ["open", "half-open", "forced", "closed", "off"];
// Fewer idle breakers take no more room than the line that would hide them.
const MIN_FOLDED = 4;

const breakerName = (breaker) => `${breaker.upstream}/${breaker.group}`;
const rank = (breaker) => RANK.indexOf(!breaker.enabled ? "off" : breaker.forced && breaker.state === "closed" ? "forced" : breaker.state);

function isIdle(breaker, rates) {
  if (!breaker.enabled) return true;
  // Reads and writes of an endpoint have common rates, but breakers of their own.
  const busy = breaker.requests === "all" && rates.some((own) => own.upstream === breaker.upstream && breaker.endpoints.includes(own.endpoint)
    && own.ok + own.held + own.failed + own.in_flight > 0);
  return breaker.state === "closed" && !breaker.forced && !busy && (breaker.window?.calls ?? 0) < 0.5;
}

function makeBreaker(breaker) {
  const name = breakerName(breaker);
  const now = () => latest.breakers.find((own) => breakerName(own) === name) ?? breaker;
  const one = (kind, text) => {
    const made = button(text, `${text}: ${name}`, () => BREAKER[kind](now()));
    made.dataset.part = kind;
    return made;
  };
  return el("li", { class: "row" },
    el("span", { class: "chip", "data-part": "state" }, el("span", { "data-part": "icon" }), el("span", { class: "word", "data-part": "word" })), el("h3", {}, name),
    el("span", { class: "facts quiet", "data-part": "counts" }),
    menu(`Breaker ${name}`, one("open", "Force open"), one("close", "Force closed"), one("reset", "Reset"), one("undo", "Clear")),
    el("p", { class: "facts", "data-part": "why" }));
}

function changeBreaker(node, breaker) {
  const [tone, icon] = breaker.enabled ? STATE[breaker.state] : ["quiet", ""];
  const shown = breaker.forced && tone === "good" ? "warn" : tone;
  mark(node, "data-tone", shown);
  mark(node, "data-state", breaker.state);
  mark(part(node, "state"), "data-tone", shown);
  say(part(node, "icon"), icon);
  say(part(node, "word"), !breaker.enabled ? "no breaker" : ` ${breaker.forced ? "forced " : ""}${breaker.state}`);
  const facts = [];
  if (breaker.forced) facts.push("by an operator");
  else if (breaker.why) facts.push(breaker.why);
  if (breaker.open_since_ms != null) facts.push(`for ${time(breaker.open_since_ms)}`);
  if (breaker.remaining_ms != null) facts.push(`${breaker.forced ? "ends" : "probes"} in ${time(breaker.remaining_ms)}`);
  if (breaker.probes_under_way) facts.push(`${plural(breaker.probes_under_way, "probe")} under way`);
  say(part(node, "why"), facts.join(" · "));
  part(node, "why").hidden = facts.length === 0;
  const { calls, failures } = breaker.window ?? { calls: 0, failures: 0 };
  const row = breaker.failures_in_row > 1 ? `, ${breaker.failures_in_row} in a row` : "";
  say(part(node, "counts"), breaker.enabled && (calls >= 0.5 || breaker.state === "closed") ? `${plural(number(calls), "call")}, ${number(failures)} failed${row}` : "");
  part(node, "menu").hidden = !mayAct || !breaker.enabled;
  part(node, "undo").hidden = !breaker.forced;
}

function breakers(now) {
  // No row moves while a menu is open: a click must not hit another breaker.
  const isHeld = document.querySelector("#breakers-section .menu[open]") !== null;
  const place = isHeld ? new Map([...document.querySelectorAll("#breakers-section .row")].map((row, index) => [row.dataset.key, index])) : null;
  const order = (breaker) => place?.get(breakerName(breaker)) ?? rank(breaker);
  const sorted = now.breakers.toSorted((one, two) => order(one) - order(two));
  const hidden = at("idle-breakers");
  const folded = sorted.filter((breaker) => {
    if (!isHeld) return isIdle(breaker, now.rates);
    return [...hidden.children].some((row) => row.dataset.key === breakerName(breaker));
  });
  const fold = folded.length >= MIN_FOLDED ? folded : [];
  each(at("breakers"), sorted.filter((breaker) => !fold.includes(breaker)), breakerName, makeBreaker, changeBreaker);
  each(hidden, fold, breakerName, makeBreaker, changeBreaker);
  at("idle").hidden = fold.length === 0;
  const off = fold.filter((breaker) => !breaker.enabled).length, idle = fold.length - off;
  const texts = [idle && `${plural(idle, "breaker")} ${idle === 1 ? "is" : "are"} closed and idle`,
    off && `${plural(off, "group")} ${off === 1 ? "has" : "have"} no breaker`];
  say(at("idle").firstElementChild, texts.filter(Boolean).join("; "));
}
