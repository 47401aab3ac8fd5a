//! What fits on the first screen, and the breakers' order and menus.

use super::{Front, Scripted, status};
use crate::{
    hostile::guest::{Guest, at},
    support::browser::{Browser, installed},
};
use serde_json::json;
use std::fs;

const ENTER: char = '\u{e007}';
const ESCAPE: char = '\u{e00c}';

/// The signal `failure` in a verdict.
const FAILURE: u8 = 1;
/// Names as long as those of a hospital's API.
const ENDPOINTS: [&str; 14] = [
    "list-hospitals",
    "read-hospital",
    "create-hospital",
    "update-hospital",
    "delete-hospital",
    "activate-batch",
    "search",
    "export",
    "read-staff",
    "create-staff",
    "list-rooms",
    "list-beds",
    "read-health",
    "upload-report",
];

/// A host with a breaker for each of [`ENDPOINTS`], to which every answer is a failure.
fn host(upstream: &Scripted, folder: &std::path::Path) -> Front {
    let (mut guest, list) = (Guest::new(), 0x8000);
    for (index, name) in (0..).zip(ENDPOINTS) {
        let place = list + at::ENDPOINT_BYTES * index;
        // One method, so that reads and writes have no breakers of their own.
        guest.endpoint(place, name, &format!("/{name}")).text(place + 8, "GET");
    }
    guest.pages(32).pair(at::ENDPOINTS, list, 14).byte(at::BREAKER, FAILURE);
    let file = folder.join("policy.wasm");
    fs::write(&file, guest.build()).unwrap();
    Front::with_admin(
        "",
        &format!(
            "[upstreams.hospital]\nbase_url = \"{}\"\npolicy = \"{}\"\n[upstreams.hospital.defaults]\n\
             breaker = {{ failure_threshold = 3, failure_rate = \"off\", jitter = 0 }}\n",
            upstream.url(),
            file.display()
        ),
    )
}

const ROWS: &str = "[...document.querySelectorAll('#breakers-section .row')].filter((row) => row.checkVisibility())";

#[tokio::test]
async fn fourteen_breakers_fit_the_first_screen_the_worst_first() {
    if !installed() {
        return;
    }
    let upstream = Scripted::start(|_| status(500)).await;
    let folder = tempfile::tempdir().unwrap();
    let front = host(&upstream, folder.path());
    let browser = Browser::start().await;
    browser.set_viewport_size(1280, 800, false).await;
    browser.open(&format!("http://{}/", front.admin_address())).await;
    // Without traffic, one line stands for all.
    browser.until("document.getElementById('idle').innerText.trim() === '14 breakers are closed and idle'").await;
    assert_eq!(browser.value(&format!("{ROWS}.length")).await, 0);
    browser.click("#idle > summary").await;
    assert_eq!(browser.value(&format!("{ROWS}.length")).await, 14);
    for name in ENDPOINTS {
        let failures = if ["create-hospital", "create-staff", "upload-report"].contains(&name) { 3 } else { 1 };
        for _ in 0..failures {
            front.ask("GET", &format!("/{name}"), "").await;
        }
    }
    let forced = front.admin("POST", "/api/v1/breakers/hospital/search/close", "", "{\"for_ms\": 600000}").await;
    assert_eq!(forced.status(), "200", "{}", forced.text());
    browser
        .until("document.querySelectorAll('#breakers .row').length === 14 && document.getElementById('idle').hidden")
        .await;
    browser.until("document.querySelectorAll('#breakers .row[data-state=open]').length === 3").await;
    let states = browser.value(&format!("{ROWS}.slice(0, 5).map((row) => row.querySelector('h3').innerText)")).await;
    let worst_first = ["create-hospital", "create-staff", "upload-report", "search", "activate-batch"];
    assert_eq!(states, json!(worst_first.map(|name| format!("hospital/{name}"))));
    for (width, height, dark, conditions) in
        [(360, 800, false, 1), (360, 800, true, 1), (1280, 800, true, 2), (1280, 800, false, 2)]
    {
        browser.set_viewport_size(width, height, dark).await;
        browser.until(&format!("document.querySelectorAll('#conditions > li').length === {conditions}")).await;
        let bottom = browser.value(&format!("{ROWS}.at(-1).getBoundingClientRect().bottom")).await.as_f64().unwrap();
        println!("{width} x {height}: the last breaker ends at {bottom}");
        assert!(bottom < f64::from(height), "{width} x {height}: the last breaker ends at {bottom}");
        let wide = browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
        assert_eq!(wide, 0, "the page is wider than {width} px");
    }
    let plots = browser
        .value("[...document.querySelectorAll('figure')].map((plot) => plot.getBoundingClientRect().bottom)")
        .await;
    assert!(plots.as_array().unwrap().iter().all(|bottom| bottom.as_f64().unwrap() < 800.0), "{plots}");
    // After the measurements: a picture of the whole page changes the window's size for a moment.
    for (width, dark) in [(360, false), (360, true), (1280, true), (1280, false)] {
        browser.set_viewport_size(width, 800, dark).await;
        browser.picture(&format!("breakers-{width}-{}", if dark { "dark" } else { "light" })).await;
    }
}

#[tokio::test]
async fn a_menu_opens_by_the_keyboard_closes_by_escape_and_gives_the_focus_back() {
    if !installed() {
        return;
    }
    let upstream = Scripted::start(|_| status(500)).await;
    let folder = tempfile::tempdir().unwrap();
    let front = host(&upstream, folder.path());
    for name in ["search", "export"] {
        front.ask("GET", &format!("/{name}"), "").await;
    }
    let browser = Browser::start().await;
    browser.set_viewport_size(1280, 800, false).await;
    browser.open(&format!("http://{}/", front.admin_address())).await;
    browser.until("document.querySelectorAll('#breakers .row').length === 2").await;
    let opener = "document.querySelector('#breakers .row:last-child .menu > summary')";
    assert_eq!(browser.value(&format!("{opener}.ariaLabel")).await, "Actions: Breaker hospital/search");
    browser.script(&format!("{opener}.focus()")).await;
    browser.press(ENTER).await;
    browser.until(&format!("{opener}.parentNode.open")).await;
    browser.picture("menu-1280-light").await;
    browser.press('\u{e004}').await;
    assert_eq!(browser.value("document.activeElement.innerText").await, "Force open");
    browser.press(ESCAPE).await;
    let closed = format!("[{opener}.parentNode.open, document.activeElement === {opener}]");
    assert_eq!(browser.value(&closed).await, json!([false, true]));
    // While a menu is open, its row stays in its place, although its breaker is the worst now.
    browser.press(ENTER).await;
    for _ in 0..3 {
        front.ask("GET", "/search", "").await;
    }
    browser.until("document.querySelector('#breakers .row:last-child').dataset.state === 'open'").await;
    assert_eq!(browser.value(&closed).await, json!([true, true]));
    browser.press(ESCAPE).await;
    browser.until("document.querySelector('#breakers .row:first-child').dataset.state === 'open'").await;
    let focused = browser.value("document.activeElement.ariaLabel").await;
    assert_eq!(focused, "Actions: Breaker hospital/search", "a row that moves keeps the focus");
    // Another place closes an open menu.
    browser.click("#breakers .row:first-child .menu > summary").await;
    browser.click("#breakers-title").await;
    browser.until("!document.querySelector('.menu[open]')").await;
}
