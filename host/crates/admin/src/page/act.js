// Every action needs a confirmation, which states its effect and when it ends.
const mayAct = document.body.dataset.role === "write";
const dialog = at("confirm");
let pending = null;

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method, body: body && JSON.stringify(body), headers: body ? { "content-type": "application/json" } : {}, cache: "no-store",
  });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.detail ?? `the host answered ${answer.status}`);
  }
  return answer.json();
}

function confirmed(action) {
  pending = { ...action, opener: document.activeElement };
  say(at("confirm-title"), action.title);
  say(at("confirm-text"), action.text);
  say(at("confirm-yes"), action.verb);
  say(at("confirm-error"), "");
  at("confirm-time").hidden = !action.timed;
  dialog.showModal();
  at("confirm-no").focus();
}

at("confirm-no").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  const opener = pending?.opener;
  pending = null;
  if (opener?.isConnected) opener.focus();
});
at("confirm-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const action = pending;
  at("confirm-yes").disabled = true;
  try {
    await ask(action.method ?? "POST", action.path, action.timed ? { for_ms: Number(at("confirm-for").value) } : undefined);
    dialog.close();
    say(at("done"), action.done);
    setTimeout(() => say(at("done"), ""), 6000);
  } catch (error) {
    say(at("confirm-error"), `The action failed: ${error.message}`);
  } finally {
    at("confirm-yes").disabled = false;
  }
});

const seg = encodeURIComponent;
const breakerPath = (breaker, verb) => `/api/v1/breakers/${seg(breaker.upstream)}/${seg(breaker.endpoints[0])}/${verb}`;

const forBoth = (breaker) => breaker.requests === "all" ? "" : " This holds for reads and writes alike.";

const BREAKER = {
  open: (b) => ({
    title: `Force ${b.upstream}/${b.group} open?`, verb: "Force open", timed: true, path: breakerPath(b, "open"),
    text: `The host refuses every request to ${b.endpoints.join(", ")} at once, and sends none to the upstream.${forBoth(b)}`,
    done: `${b.upstream}/${b.group} is held open.`,
  }),
  close: (b) => ({
    title: `Force ${b.upstream}/${b.group} closed?`, verb: "Force closed", timed: true, path: breakerPath(b, "close"),
    text: `The host sends requests to ${b.endpoints.join(", ")} however many of them fail. Limits and retries do not change.${forBoth(b)}`,
    done: `${b.upstream}/${b.group} is held closed.`,
  }),
  reset: (b) => ({
    title: `Reset ${b.upstream}/${b.group}?`, verb: "Reset", path: breakerPath(b, "reset"),
    text: `The breaker closes and its counts return to zero. It opens again if the upstream continues to fail.${forBoth(b)}`,
    done: `${b.upstream}/${b.group} is reset.`,
  }),
  undo: (b) => ({
    title: `Clear the forced state of ${b.upstream}/${b.group}?`, verb: "Clear", method: "DELETE", path: breakerPath(b, "forced"),
    text: `The forced state ends now, and the breaker is reset.${forBoth(b)}`, done: `${b.upstream}/${b.group} decides by itself again.`,
  }),
};

const liftPause = (group) => ({
  title: `Lift the pause of ${group.upstream}/${group.group}?`, verb: "Lift the pause", method: "DELETE",
  path: `/api/v1/limits/${seg(group.upstream)}/${seg(group.endpoints[0])}/pause`,
  text: "The host sends requests again, within the limits. The upstream or its policy asked for the pause, and may ask again.",
  done: `The pause of ${group.upstream}/${group.group} is lifted.`,
});

const rollBack = (p) => ({
  title: `Roll the policy of ${p.upstream} back?`, verb: "Roll back", path: `/api/v1/policies/${seg(p.upstream)}/rollback`,
  text: p.fleet?.generation
    ? "The whole fleet rolls back to its previous generation; the present component is not announced again."
    : `Generation ${p.fallback.generation} (${p.fallback.name}) serves from the next request on; the host does not load the present component again.`,
  done: `The policy of ${p.upstream} was rolled back.`,
});

const settle = (record, verb) => ({
  title: verb === "applied" ? "Settle as applied?" : "Settle as not applied?", verb: verb === "applied" ? "Took effect" : "No effect",
  path: `/api/v1/records/${record.id}/${verb}`, done: "The write is settled.",
  text: verb === "applied" ? "A repetition with the same key gets a success, and the host does not send it."
    : "The host sends a repetition with the same key: if the write did take effect, the upstream applies it twice.",
});

const button = (text, label, action) => el("button", { type: "button", "aria-label": label, onclick: (event) => {
  const opened = event.target.closest(".menu");
  if (opened) closeMenu(opened);
  confirmed(action());
} }, text);

// A menu of actions. Escape closes it, and the focus returns to the element that opened it.
function menu(label, ...buttons) {
  const opener = el("summary", { "aria-label": `Actions: ${label}` }, "⋯");
  const items = el("div", { class: "items", role: "group", "aria-label": label }, ...buttons);
  const made = el("details", { class: "menu", "data-part": "menu" }, opener, items);
  made.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && made.open) closeMenu(made);
  });
  made.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !made.contains(event.relatedTarget)) made.open = false;
  });
  return made;
}

function closeMenu(opened) {
  opened.open = false;
  opened.querySelector("summary").focus();
}

document.addEventListener("pointerdown", (event) => {
  for (const opened of document.querySelectorAll(".menu[open]")) if (!opened.contains(event.target)) opened.open = false;
});
