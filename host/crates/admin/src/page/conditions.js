// The line on top and the list below it come from the host's list of conditions alone.
const SEVERITY = { critical: ["bad", "✕"], warning: ["warn", "▲"] };
const NARROW = matchMedia("(max-width: 40rem)");

const ago = (unixMs) => time(Math.max(1000, latest.unix_ms - unixMs));
const toneOf = (condition) => SEVERITY[condition.severity]?.[0] ?? "warn";
// Only texts that say nothing of their subject get it in front.
const named = ({ subject, text }) => subject === "host" || text.includes(subject) ? text : `${subject}: ${text}`;

function summary(conditions) {
  const [worst] = conditions;
  if (!worst) return ["good", "No problem: nothing is refused, behind or lost."];
  const first = named(worst).split(". ")[0].replace(/\.$/, "");
  const more = conditions.length > 1 ? ` (and ${conditions.length - 1} more)` : "";
  return [conditions.some((condition) => toneOf(condition) === "bad") ? "bad" : "warn", `${first}${more}.`];
}

function tell(tone, text) {
  mark(at("summary"), "data-tone", tone);
  say(at("summary"), text);
  const title = { good: "Triage", warn: "▲ Triage", bad: "✕ Triage" }[tone] ?? "Triage";
  if (document.title !== title) document.title = title;
}

// A screen reader hears the summary again only when a condition begins or ends, not when a number in a text changes.
function announce(conditions, text) {
  const now = conditions.map(({ id, subject, severity }) => `${id} ${subject} ${severity}`).join("\n");
  if (at("told").dataset.conditions === now) return;
  at("told").dataset.conditions = now;
  say(at("told"), text);
}

// Without the host nothing is known.
function lost(text) {
  tell("bad", text);
  delete at("told").dataset.conditions;
  say(at("told"), text);
}

function makeCondition() {
  return el("li", { class: "condition" },
    el("span", { class: "chip", "data-part": "severity" }, el("span", { "data-part": "icon" }), el("span", { class: "word", "data-part": "word" })),
    el("p", {}, el("span", { "data-part": "text" }), " ", el("span", { class: "quiet", "data-part": "since" })),
    el("p", { class: "remedy", "data-part": "remedy" }));
}

function changeCondition(node, condition) {
  const [tone, icon] = SEVERITY[condition.severity] ?? SEVERITY.warning;
  mark(node, "data-tone", tone);
  mark(node, "data-id", condition.id);
  mark(part(node, "severity"), "data-tone", tone);
  say(part(node, "icon"), icon);
  say(part(node, "word"), ` ${condition.severity}`);
  sayWithCode(part(node, "text"), named(condition));
  const since = condition.since_unix_ms;
  mark(part(node, "since"), "title", `since ${clock(since)}`);
  say(part(node, "since"), `for ${ago(since)}`);
  sayWithCode(part(node, "remedy"), condition.remedy);
}

NARROW.addEventListener("change", () => latest && showConditions(latest.status.conditions));

function showConditions(conditions) {
  const [tone, text] = summary(conditions);
  tell(tone, text);
  announce(conditions, text);
  at("conditions-section").hidden = conditions.length === 0;
  // The breakers and plots below stay on the first screen.
  const first = NARROW.matches ? 1 : conditions.length > 3 ? 2 : 3;
  const key = (condition) => `${condition.id} ${condition.subject}`;
  each(at("conditions"), conditions.slice(0, first), key, makeCondition, changeCondition);
  const others = conditions.slice(first);
  each(at("other-conditions"), others, key, makeCondition, changeCondition);
  at("more-conditions").hidden = others.length === 0;
  say(at("more-conditions").firstElementChild, plural(others.length, "more condition"));
}
