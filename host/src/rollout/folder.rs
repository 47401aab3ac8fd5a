//! Watches policy files. Events tell when to look; what counts is what a look finds, so that renames, links that are
//! exchanged (Kubernetes' `ConfigMap`s), editors' temporary files and network folders without events all end the same way.

use super::{Slot, stage};
use crate::{config::settings::PolicySource, pipeline::Shared, policy::signature::companions};
use notify::{RecursiveMode, Watcher as _};
use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

/// A copy in progress brings many events: the look waits until none has come for so long.
const QUIET: Duration = Duration::from_millis(15);
/// But not longer than so many of them.
const PATIENCE: u32 = 20;

/// The folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The thread could not be started.
    #[error("the thread that watches policy files could not be started")]
    Thread(#[source] io::Error),
}

/// Watches as long as it lives.
#[derive(Debug)]
pub struct Watch {
    stop: Sender<Tick>,
}

/// What the watching thread is told.
#[derive(Debug)]
enum Tick {
    /// Something may have changed.
    Look,
    /// The watch was dropped.
    Stop,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.send(Tick::Stop);
    }
}

/// One file to look at, for one upstream.
#[derive(Debug)]
struct Watched {
    upstream: usize,
    slot: Slot,
    file: PathBuf,
    seen: Identities,
}

/// A component and the files beside it that speak for it: one that was refused is looked at again when they come.
type Identities = [Option<Identity>; 4];

/// What a file is known by without reading it: device, inode, size, time of change of its bytes and of itself.
type Identity = (u64, u64, u64, i128, i128);

impl Watch {
    /// Looks once, now, then starts watching. `poll` is how often it looks without being told.
    ///
    /// # Errors
    /// [`WatchError`]; where events cannot be had, polling does.
    pub(crate) fn start(shared: &Arc<Shared>, dir: Option<&Path>, poll: Duration) -> Result<Self, WatchError> {
        let mut files = watched(shared, dir);
        look(shared, &mut files);
        let (sender, ticks) = channel();
        let stop = sender.clone();
        let folders: HashSet<PathBuf> =
            files.iter().filter_map(|watched| watched.file.parent().map(Path::to_owned)).collect();
        let told = notify::recommended_watcher(move |_| {
            let _ = sender.send(Tick::Look);
        });
        let mut watcher = told.inspect_err(|error| tracing::warn!(%error, "policy files are polled")).ok();
        for folder in folders {
            if let Some(watcher) = &mut watcher
                && let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive)
            {
                tracing::warn!(%error, folder = %folder.display(), "policy files are polled");
            }
        }
        let weak = Arc::downgrade(shared);
        let run = move || {
            watch(&weak, &ticks, &mut files, poll);
            drop(watcher);
        };
        thread::Builder::new().name("triage-policies".to_owned()).spawn(run).map_err(WatchError::Thread)?;
        Ok(Self { stop })
    }
}

/// The files that may bring a policy: the one an upstream names, or `NAME.wasm` in the folder in an embedded one's place.
fn watched(shared: &Shared, dir: Option<&Path>) -> Vec<Watched> {
    let file = |source: &PolicySource| match source {
        PolicySource::File(path) => Some(path.clone()),
        PolicySource::Embedded(name) => dir.map(|dir| dir.join(format!("{name}.wasm"))),
        PolicySource::Builtin => None,
    };
    let mut files = Vec::new();
    for (upstream, serving) in shared.upstreams.iter().enumerate() {
        let candidate = serving.settings.candidate.as_ref().map(|candidate| (Slot::Candidate, &candidate.policy));
        for (slot, source) in std::iter::once((Slot::Live, &serving.settings.policy)).chain(candidate) {
            files.extend(file(source).map(|file| Watched { upstream, slot, file, seen: [None; 4] }));
        }
    }
    files
}

fn watch(shared: &Weak<Shared>, ticks: &Receiver<Tick>, files: &mut [Watched], poll: Duration) {
    loop {
        match ticks.recv_timeout(poll) {
            Ok(Tick::Look) => {
                for _ in 0..PATIENCE {
                    match ticks.recv_timeout(QUIET) {
                        Ok(Tick::Look) => {}
                        Ok(Tick::Stop) => return,
                        Err(_) => break,
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Tick::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        look(&shared, files);
    }
}

fn look(shared: &Shared, files: &mut [Watched]) {
    for watched in files {
        let found = identities(&watched.file);
        if found[0].is_none() || found == watched.seen {
            continue;
        }
        watched.seen = found;
        let Some(serving) = shared.upstreams.get(watched.upstream) else { continue };
        match stage(serving, watched.slot, &shared.engine, &shared.keys, &shared.gates, &watched.file) {
            Ok(Some(service)) => serving.put(watched.slot, service),
            Ok(None) => {}
            Err(refused) => serving.refused(refused.event(&watched.file)),
        }
    }
}

fn identities(file: &Path) -> Identities {
    let [signature, checksum] = companions(file);
    [identity(file), identity(&file.with_extension("cases.csv")), identity(&signature), identity(&checksum)]
}

fn identity(file: &Path) -> Option<Identity> {
    let found = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let bytes = time(found.mtime(), found.mtime_nsec());
    Some((found.dev(), found.ino(), found.size(), bytes, time(found.ctime(), found.ctime_nsec())))
}
