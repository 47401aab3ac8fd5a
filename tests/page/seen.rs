//! The page in a real Chromium, if installed.

use super::{Front, Reply, Scripted, TOKENS, guarded, ok, status};
use crate::{
    hostile::guest::Guest,
    support::{
        browser::{Browser, installed},
        stage::prebuilt,
    },
};
use serde_json::json;
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Key codes of `WebDriver`.
const ENTER: char = '\u{e007}';
const TAB: char = '\u{e004}';
const ESCAPE: char = '\u{e00c}';

/// An upstream that responds 503 while `down` is set.
async fn upstream(down: &Arc<AtomicBool>) -> Scripted {
    let down = Arc::clone(down);
    Scripted::start(move |_| -> Reply {
        if down.load(Ordering::Relaxed) { status(503) } else { ok("", "{}") }
    })
    .await
}

fn toml(upstream: &Scripted, folder: &std::path::Path) -> String {
    format!(
        "[policies]\ndir = \"{}\"\npoll = \"50ms\"\n[upstreams.api]\nbase_url = \"{}\"\n[upstreams.api.defaults]\n\
         retry = {{ max_attempts = 2, min_wait = \"0s\", max_wait = \"0s\" }}\n\
         breaker = {{ failure_threshold = 6, jitter = 0 }}\nlimits = [{{ requests = 600, period = \"1m\" }}]\n",
        folder.display(),
        upstream.url()
    )
}

/// The breaker of the reads.
const ROW: &str = "[...document.querySelectorAll('#breakers .row')].find((row) => row.innerText.includes('(reads)'))";

#[tokio::test]
async fn a_breaker_trips_is_forced_and_a_policy_is_reloaded_before_the_eyes() {
    if !installed() {
        return;
    }
    let down = Arc::new(AtomicBool::new(false));
    let upstream = upstream(&down).await;
    let folder = tempfile::tempdir().unwrap();
    let front = Front::with_admin("", &toml(&upstream, folder.path()));
    let browser = Browser::start().await;
    browser.set_viewport(1280, false).await;
    browser.open(&format!("http://{}/", front.admin_address())).await;
    browser.until("document.getElementById('summary').dataset.tone === 'good'").await;
    for _ in 0..20 {
        assert_eq!(front.ask("GET", "/a", "").await.status(), "200");
    }
    browser.until(&format!("{ROW}?.dataset.state === 'closed'")).await;
    // The page shows a failure without a reload.
    down.store(true, Ordering::Relaxed);
    for _ in 0..8 {
        front.ask("GET", "/a", "").await;
    }
    browser.until(&format!("{ROW}.dataset.state === 'open'")).await;
    let summary = browser.text("#summary").await;
    assert!(summary.starts_with("Breaker api/any (reads) is open: 6 failures in a row: answered 503"), "{summary}");
    assert_eq!(browser.value(&format!("{ROW}.innerText.includes('✕ open')")).await, true);
    assert!(browser.text("#events").await.contains("breaker opened"));
    // It also shows the cause: a failed request with its timeline.
    browser.until("document.querySelectorAll('#rough details').length > 0").await;
    browser.click("#rough details:last-of-type summary").await;
    browser.until("document.querySelector('#rough details[open] [data-part=steps]').childElementCount > 0").await;
    let timeline = browser.text("#rough details[open]").await;
    assert!(timeline.contains("answered 503") && timeline.contains("triage explain "), "{timeline}");
    for (width, dark) in [(360, false), (360, true), (1280, true), (1280, false)] {
        browser.set_viewport(width, dark).await;
        let wide = browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
        assert_eq!(wide, 0, "the page is wider than {width} px");
        browser.picture(&format!("tripped-{width}-{}", if dark { "dark" } else { "light" })).await;
    }
    // Force it closed with the keyboard. The menu's entry only opens the confirmation.
    let choose = async || {
        browser.script(&format!("{ROW}.querySelector('.menu > summary').focus()")).await;
        browser.press(ENTER).await;
        browser.script(&format!("{ROW}.querySelector('[data-part=close]').focus()")).await;
        browser.press(ENTER).await;
        browser.until("document.getElementById('confirm').open").await;
        assert_eq!(browser.value("document.activeElement.id").await, "confirm-no", "the harmless button has the focus");
    };
    choose().await;
    browser.picture("confirm-1280-light").await;
    browser.press(ESCAPE).await;
    browser.until("!document.getElementById('confirm').open").await;
    let focused = browser.value("document.activeElement.ariaLabel").await;
    assert_eq!(focused, "Actions: Breaker api/any (reads)", "the focus comes back");
    assert_eq!(front.get_json("/api/v1/breakers").await[0]["forced"], false);
    choose().await;
    browser.press(TAB).await;
    assert_eq!(browser.value("document.activeElement.id").await, "confirm-yes");
    browser.press(ENTER).await;
    browser.until(&format!("{ROW}.innerText.includes('✓ forced closed')")).await;
    let breakers = front.get_json("/api/v1/breakers").await;
    assert_eq!((&breakers[0]["forced"], &breakers[0]["state"]), (&json!(true), &json!("closed")), "{breakers}");
    // The page shows a new policy from the folder too.
    fs::copy(prebuilt("hospital-directory"), folder.path().join("new.tmp")).unwrap();
    fs::rename(folder.path().join("new.tmp"), folder.path().join("http-standard.wasm")).unwrap();
    browser.until("document.getElementById('upstreams').innerText.includes('generation 2')").await;
    assert!(browser.text("#upstreams").await.contains("hospital-directory"));
    let log = browser.log().await;
    assert_eq!(log, json!([]), "the page complained");
}

#[tokio::test]
async fn people_sign_in_and_readers_cannot_act() {
    if !installed() {
        return;
    }
    let upstream = upstream(&Arc::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let (front, _tokens) = guarded(&toml(&upstream, folder.path()));
    let browser = Browser::start().await;
    browser.set_viewport(360, false).await;
    browser.open(&format!("http://{}/", front.admin_address())).await;
    browser.picture("sign-in-360-light").await;
    browser.fill("#token", "no-token-of-this-host").await;
    browser.press(ENTER).await;
    browser.until("document.querySelector('.error').innerText.includes('not a token')").await;
    browser.fill("#token", TOKENS[0].1).await;
    browser.press(ENTER).await;
    browser.until("document.getElementById('summary')?.dataset.tone === 'good'").await;
    assert_eq!(browser.value("document.cookie").await, "", "a script cannot read the session");
    browser.until("document.querySelector('#breakers .row')").await;
    assert_eq!(browser.value(&format!("{ROW}.querySelector('.menu').hidden")).await, true);
    assert!(browser.text("#reader").await.starts_with("This session is read-only."));
    browser.click("#leave button").await;
    browser.until("document.getElementById('token')").await;
    browser.fill("#token", TOKENS[1].1).await;
    browser.press(ENTER).await;
    browser.until(&format!("{ROW} && !{ROW}.querySelector('.menu').hidden")).await;
    browser.click("#breakers .menu > summary").await;
    browser.click("#breakers [data-part=open]").await;
    browser.click("#confirm-yes").await;
    browser.until(&format!("{ROW}.dataset.state === 'open'")).await;
    browser.until("document.getElementById('summary').innerText.includes('is forced open by an operator')").await;
}

/// Accessibility: landmarks, one top-level heading, names for all controls, and no announcements for values that change often.
#[tokio::test]
async fn the_page_has_names_and_landmarks_and_does_not_chatter() {
    if !installed() {
        return;
    }
    let upstream = upstream(&Arc::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let front = Front::with_admin("", &toml(&upstream, folder.path()));
    front.ask("GET", "/a", "").await;
    let browser = Browser::start().await;
    browser.set_viewport(1280, false).await;
    browser.open(&format!("http://{}/", front.admin_address())).await;
    browser.until("document.querySelectorAll('#upstreams tbody tr').length > 0").await;
    let nameless = "[...document.querySelectorAll('button, summary, input, select, meter, [role=img], [role=region], section, article')]\
        .filter((node) => node.checkVisibility() && !(node.ariaLabel || node.textContent.trim() || node.labels?.length))\
        .map((node) => node.outerHTML)";
    assert_eq!(browser.value(nameless).await, json!([]));
    for (what, selector, count) in [("main", "main", 1), ("first headings", "h1", 1), ("headers", "body > header", 1)] {
        assert_eq!(browser.value(&format!("document.querySelectorAll('{selector}').length")).await, count, "{what}");
    }
    let unnamed = "[...document.querySelectorAll('section')].filter((node) => !node.ariaLabel && !document.getElementById(node.getAttribute('aria-labelledby'))).length";
    assert_eq!(browser.value(unnamed).await, 0);
    // Elements that are announced automatically do not change while only time passes.
    browser
        .script(
            "window.spoken = 0; new MutationObserver((all) => spoken += all.length).observe(document.getElementById('told'), \
             { childList: true, characterData: true, subtree: true }); window.ticks = document.getElementById('clock').innerText",
        )
        .await;
    browser.until("document.getElementById('clock').innerText !== ticks").await;
    assert_eq!(browser.value("spoken").await, 0);
    let alive =
        "[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map((node) => node.id).sort()";
    assert_eq!(browser.value(alive).await, json!(["confirm-error", "done", "told"]));
}

#[tokio::test]
async fn a_candidates_results_are_on_the_card_of_its_upstream() {
    if !installed() {
        return;
    }
    let upstream = Scripted::start(|_| status(404)).await;
    let folder = tempfile::tempdir().unwrap();
    let next = folder.path().join("next.wasm");
    fs::write(&next, Guest::new().build()).unwrap();
    let front = Front::with_admin(
        "",
        &format!("[upstreams.api]\nbase_url = \"{}\"\ncandidate.policy = \"{}\"\n", upstream.url(), next.display()),
    );
    for _ in 0..12 {
        front.ask("GET", "/a", "").await;
    }
    let browser = Browser::start().await;
    browser.set_viewport(1280, false).await;
    browser.open(&format!("http://{}/", front.admin_address())).await;
    browser
        .until(
            "document.querySelector('.candidate')?.innerText.includes('12 compared, 12 differed, 0 skipped, 0 faults')",
        )
        .await;
    let shown = browser.text(".candidate").await;
    for part in [
        "Candidate hostile 0.1.0, ",
        "◐ on trial",
        "in shadow for ",
        "any 404 × 12, latest ",
        "live policy: rejected, success, deliver; candidate: rejected, ignore, deliver",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    browser.picture("candidate-1280-light").await;
}
