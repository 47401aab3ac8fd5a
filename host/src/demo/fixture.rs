//! The fixture of the scenarios: emulator, host, client, and a folder for the file.

use super::{DemoError, TIMES_SCALED_DOWN, caller::Caller, io_error};
use crate::{
    config::{self, Problems, settings::Settings},
    emulator::{self, Emulator},
    server::Server,
};
use http::Uri;
use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

const SAMPLE: &str = include_str!("hospitals.csv");
/// How long the breaker stays open: the default of 1 min, scaled down.
pub(super) const OPEN_FOR: Duration = Duration::from_millis(60_000 / TIMES_SCALED_DOWN as u64);

pub(super) struct Fixture {
    pub(super) emulator: Arc<Emulator>,
    pub(super) caller: Caller,
    pub(super) url: Uri,
    pub(super) folder: Folder,
    server: Server,
    stop_emulator: oneshot::Sender<()>,
    emulator_task: JoinHandle<()>,
}

impl Fixture {
    /// Starts the emulator, then the host in front of it.
    pub(super) async fn set(screen: &mut impl Write) -> Result<Self, DemoError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(io_error("a port of this machine"))?;
        let upstream = listener.local_addr().map_err(io_error("a port of this machine"))?;
        let emulator = Emulator::new(emulator::Options::default().scaled_down(TIMES_SCALED_DOWN));
        let (stop_emulator, stopped) = oneshot::channel();
        let emulator_task = tokio::spawn(Arc::clone(&emulator).serve(listener, async move {
            // A dropped sender stops the emulator too.
            let _ = stopped.await;
        }));
        let mut settings = settings(&url(upstream))?;
        // The demo must not conflict with a running host's admin listener.
        settings.admin.listen = None;
        let server = Server::start(&settings)?;
        let listens = server.addresses().first().copied().unwrap_or(settings.server.listen);
        let url = url(listens);
        writeln!(
            screen,
            "An emulated hospital directory listens on {upstream}, Triage in front of it on {listens}.\nAll times are \
             divided by {TIMES_SCALED_DOWN}: a create takes 0.5 s, not 5 s.\n"
        )
        .map_err(io_error("the screen"))?;
        let folder = Folder::with(SAMPLE).map_err(io_error("a temporary folder"))?;
        Ok(Self { emulator, caller: Caller::to(&url)?, url, folder, server, stop_emulator, emulator_task })
    }

    /// Stops the host and the emulator.
    pub(super) async fn shut_down(self) {
        let server = self.server;
        let _ = tokio::task::spawn_blocking(move || server.stop()).await;
        let _ = self.stop_emulator.send(());
        let _ = self.emulator_task.await;
    }
}

fn url(address: SocketAddr) -> Uri {
    Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query("/")
        .build()
        .unwrap_or_else(|_| Uri::from_static("http://127.0.0.1:8080/"))
}

/// Default settings for a hospital directory, with times scaled down like the emulator's: after the first 20, one create per 0.65 s, waits
/// of 0.2 to 1 s, and a breaker that stays open for [`OPEN_FOR`].
fn settings(base_url: &Uri) -> Result<Settings, Problems> {
    let open_for_ms = OPEN_FOR.as_millis();
    config::from_toml(&format!(
        r#"
        server = {{ listen = "127.0.0.1:0", workers = 1, drain = "5s" }}
        [upstreams.hospital-directory]
        base_url = "{base_url}"
        policy = "hospital-directory"
        [upstreams.hospital-directory.defaults]
        retry = {{ min_wait = "200ms", max_wait = "1s" }}
        breaker = {{ open_for = "{open_for_ms}ms", jitter = 0 }}
        [upstreams.hospital-directory.endpoints.create-hospital]
        limits = [{{ requests = 1, period = "650ms", burst = 20 }}]
        "#
    ))
}

/// A temporary folder for the file and its journal, deleted on drop.
pub(super) struct Folder(PathBuf);

impl Folder {
    fn with(csv: &str) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("triage-demo-{:016x}", crate::rng::Rng::system().next()));
        std::fs::create_dir(&path)?;
        let folder = Self(path);
        std::fs::write(folder.csv(), csv)?;
        Ok(folder)
    }

    pub(super) fn csv(&self) -> PathBuf {
        Path::new(&self.0).join("hospitals.csv")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that cannot be deleted stays in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
