//! A real Chromium, controlled by `WebDriver`. The driver chooses its port; browser and driver are killed on drop.

use base64::Engine as _;
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The last flags stop Chromium from checking for its own updates, which fail noisily without a network.
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
/// Polls for an expected change, for far longer than it takes.
const LOOKS: usize = 1200;

pub struct Browser {
    driver: Child,
    pid: Option<u64>,
    session: String,
    client: reqwest::Client,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        if let Some(pid) = self.pid {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

/// Whether a browser and its driver are installed. Prints what is missing.
pub fn installed() -> bool {
    let runs = |program: &str| {
        let quiet = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        quiet.is_ok_and(|status| status.success())
    };
    let missing: Vec<&str> = ["chromium", "chromedriver"].into_iter().filter(|program| !runs(program)).collect();
    if !missing.is_empty() {
        println!("skipped: {} does not run; on Debian: apt-get install chromium chromium-driver", missing.join(", "));
    }
    missing.is_empty()
}

impl Browser {
    pub async fn start() -> Self {
        let mut driver =
            Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let started = said.filter_map(|line| line.split_once("successfully on port ").map(|(_, port)| port.to_owned()));
        let port = started.map(|port| port.trim_end_matches('.').to_owned()).next().expect("the driver starts");
        let profile = tempfile::tempdir().unwrap();
        let mut flags: Vec<String> = FLAGS.map(str::to_owned).to_vec();
        flags.push(format!("--user-data-dir={}", profile.path().display()));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://127.0.0.1:{port}/session");
        let mut own = Self { driver, pid: None, session: base, client, _profile: profile };
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let made = own.command("", &wanted).await;
        own.pid = made["capabilities"]["goog:processID"].as_u64();
        own.session = format!("{}/{}", own.session, made["sessionId"].as_str().expect("a session"));
        own
    }

    async fn command(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let sent = self.client.post(&url).timeout(Duration::from_secs(120)).body(body.to_string()).send().await;
        let text = sent.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(answer["value"]["error"].is_null(), "{path} {body}: {answer}");
        answer["value"].clone()
    }

    async fn devtools(&self, method: &str, params: Value) -> Value {
        self.command("/goog/cdp/execute", &json!({ "cmd": method, "params": params })).await
    }

    pub async fn open(&self, url: &str) {
        self.command("/url", &json!({ "url": url })).await;
    }

    /// Runs a script in every page before its own scripts.
    pub async fn before(&self, script: &str) {
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).await;
    }

    /// Sets the window's width and its light or dark mode.
    pub async fn set_viewport(&self, width: u32, dark: bool) {
        self.set_viewport_size(width, 900, dark).await;
    }

    /// Sets the window's size and its light or dark mode.
    pub async fn set_viewport_size(&self, width: u32, height: u32, dark: bool) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Runs the body of a function and returns its result.
    pub async fn script(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// Evaluates an expression.
    pub async fn value(&self, expression: &str) -> Value {
        self.script(&format!("return {expression}")).await
    }

    /// The text of the first element that a selector matches.
    pub async fn text(&self, selector: &str) -> String {
        let found = self.value(&format!("document.querySelector({})?.innerText ?? ''", json!(selector))).await;
        found.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        for _ in 0..LOOKS {
            if self.value(&format!("Boolean({expression})")).await == true {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let page = self.text("body").await;
        panic!("never: {expression}; the log: {}; the page: {page}", self.log().await);
    }

    /// Clicks an element like a user.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.command(&format!("/element/{element}/click"), &json!({})).await;
    }

    pub async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.command(&format!("/element/{element}/value"), &json!({ "text": text })).await;
    }

    /// Presses a key at the focused element.
    pub async fn press(&self, key: char) {
        let down = json!({ "type": "keyDown", "value": key.to_string() });
        let up = json!({ "type": "keyUp", "value": key.to_string() });
        let keys = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": [down, up] }] });
        self.command("/actions", &keys).await;
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.command("/element", &json!({ "using": "css selector", "value": selector })).await;
        let id = found.as_object().and_then(|found| found.values().next()?.as_str());
        id.unwrap_or_else(|| panic!("{selector}: {found}")).to_owned()
    }

    /// The console log: failed scripts, and violations of the content security policy.
    pub async fn log(&self) -> Value {
        self.command("/se/log", &json!({ "type": "browser" })).await
    }

    /// Saves a screenshot of the whole page, if `TRIAGE_TEST_SCREENSHOTS` is set.
    pub async fn picture(&self, name: &str) {
        let Ok(folder) = std::env::var("TRIAGE_TEST_SCREENSHOTS") else { return };
        let taken = self.devtools("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}
