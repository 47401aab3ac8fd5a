// Follows the host.
let latest = null;

function show(now) {
  latest = now;
  showConditions(now.status.conditions);
  say(at("clock"), clock(now.unix_ms));
  tiles(now);
  breakers(now);
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
    if (source.readyState !== EventSource.CLOSED) return lost(`No connection to the host; the page retries.${seen}`);
    // The host refused: the session has ended, or too many pages are open.
    lost(`The host refuses this page; reload the page to sign in, or close other pages of this host.${seen}`);
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
