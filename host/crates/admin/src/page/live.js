// Follows the host. A screen reader announces only the summary, and only when its text changes.
let latest = null;

function summary(now) {
  const open = now.breakers.filter((breaker) => breaker.enabled && breaker.state !== "closed");
  const held = now.breakers.filter((breaker) => breaker.forced && breaker.state === "closed");
  const out = now.policies.filter((policy) => policy.serving.standing === "suspended");
  const paused = now.limits.filter((group) => group.paused_ms);
  const bad = [], warn = [];
  if (!now.status.ready) bad.push(`not ready: ${now.status.unready}`);
  for (const { upstream, group, state, why, forced } of open.slice(0, 3)) {
    bad.push(`breaker ${upstream}/${group} is ${state}${forced ? ", by an operator" : why ? `: ${why}` : ""}`);
  }
  if (open.length > 3) bad.push(`${open.length - 3} more breakers are not closed`);
  if (out.length) bad.push(`the policy of ${out.map((policy) => policy.upstream).join(", ")} no longer serves`);
  if (now.unsettled.count) warn.push(`${plural(now.unsettled.count, "write")} of unknown effect`);
  for (const { upstream, group } of held) warn.push(`breaker ${upstream}/${group} is held closed by an operator`);
  for (const { upstream, group } of paused) warn.push(`${upstream}/${group} is paused by its upstream`);
  const all = [...bad, ...warn];
  if (!all.length) return ["good", "No problem: every breaker is closed."];
  const text = all.join("; ");
  return [bad.length ? "bad" : "warn", `${text[0].toUpperCase()}${text.slice(1)}.`];
}

function tell(tone, text) {
  mark(at("summary"), "data-tone", tone);
  say(at("summary"), text);
  const title = { good: "Triage", warn: "▲ Triage", bad: "✕ Triage" }[tone] ?? "Triage";
  if (document.title !== title) document.title = title;
}

function show(now) {
  latest = now;
  const [tone, text] = summary(now);
  tell(tone, text);
  say(at("clock"), clock(now.unix_ms));
  tiles(now);
  each(at("breakers"), now.breakers, (breaker) => `${breaker.upstream}/${breaker.group}`, makeBreaker, changeBreaker);
  for (const [name, point] of Object.entries(now.points)) {
    const own = history.get(name) ?? { points: [], most: 180, every_ms: 1000 };
    own.points = [...own.points, point].slice(-own.most);
    history.set(name, own);
  }
  each(at("upstreams"), now.status.upstreams, (upstream) => upstream.name, makeUpstream, changeUpstream);
  events(now);
  rough(now);
  limits(now);
  unsettled(now);
}

let source = null;

function follow() {
  if (source && source.readyState !== EventSource.CLOSED) return;
  source = new EventSource("/live");
  source.addEventListener("history", (event) => {
    const { every_ms, most, upstreams } = JSON.parse(event.data);
    history.clear();
    for (const [name, points] of Object.entries(upstreams)) history.set(name, { points, most, every_ms });
  });
  source.addEventListener("now", (event) => show(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    const seen = latest ? ` The values are from ${clock(latest.unix_ms)}.` : "";
    if (source.readyState !== EventSource.CLOSED) return tell("bad", `No connection to the host; the page retries.${seen}`);
    // The host refused: the session has ended, or too many pages are open.
    tell("bad", `The host refuses this page; reload the page to sign in, or close other pages of this host.${seen}`);
    setTimeout(follow, 15_000);
  });
}

at("reader").hidden = mayAct;
at("leave").hidden = document.body.dataset.session !== "yes";
// A hidden page closes its stream, so that it costs the host nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) source?.close();
  else follow();
});
if (!document.hidden) follow();
