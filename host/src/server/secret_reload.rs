//! Reloads certificates, keys and tokens when their files change: a renewal needs no signal to the process.

use crate::{
    Host, admin,
    config::settings::Settings,
    rollout::{Identity, identity},
    secret::TokenSource,
    tls::Tls,
};
use arc_swap::ArcSwap;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{task::spawn_blocking, time::sleep};

/// How often the files are checked. Polling, because replaced symlinks (Kubernetes' Secrets) and network folders send no reliable events; a
/// check costs one system call per file.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The files that are reloaded while the host runs.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) host: Host,
    pub(super) settings: Arc<ArcSwap<Settings>>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) admin: Option<admin::Secrets>,
}

impl Files {
    /// Checks the files periodically, and reloads them after a change. Never ends.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut seen = self.found().await;
        loop {
            sleep(POLL_INTERVAL).await;
            let found = self.found().await;
            if found == seen {
                continue;
            }
            seen = found;
            let files = Arc::clone(&self);
            let _ = spawn_blocking(move || files.read_again()).await;
        }
    }

    async fn found(self: &Arc<Self>) -> Vec<Option<Identity>> {
        let files = Arc::clone(self);
        spawn_blocking(move || files.paths().iter().map(|path| identity(path)).collect()).await.unwrap_or_default()
    }

    fn paths(&self) -> Vec<PathBuf> {
        let settings = self.settings.load();
        let tokens = [&settings.admin.read_token, &settings.admin.write_token];
        let token = |source: &TokenSource| match source {
            TokenSource::File(path) => Some(path.clone()),
            TokenSource::Environment(_) => None,
        };
        let mut paths: Vec<PathBuf> = tokens.into_iter().flatten().filter_map(token).collect();
        for tls in [&settings.server.tls, &settings.admin.tls].into_iter().flatten() {
            paths.extend([tls.certificate.clone(), tls.key.clone()]);
            paths.extend(tls.client_ca.clone());
        }
        paths
    }

    /// Reloads everything. Unusable files change nothing: the other half of a pair may not be written yet.
    fn read_again(&self) {
        let settings = self.settings.load_full();
        let own = self.tls.as_ref().map(|tls| tls.reload().map_err(super::ReloadError::Tls));
        let admin = self.admin.as_ref().map(|admin| {
            let prepared = admin.prepare(&settings)?;
            admin.adopt(prepared, &settings);
            Ok::<_, super::ReloadError>(())
        });
        let mut whole = true;
        for error in [own, admin].into_iter().flatten().filter_map(Result::err) {
            self.host.reload_refused(&error);
            whole = false;
        }
        if whole {
            self.host.files_read();
        }
    }
}
