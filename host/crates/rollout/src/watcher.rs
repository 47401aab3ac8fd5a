//! Watches policy files. An event only triggers a check; the check compares the files themselves. So renames, replaced symlinks
//! (Kubernetes' `ConfigMap`s), editors' temporary files and network folders without events all work the same way.
//!
//! `notify-debouncer-full` would add a second thread and a cache of file ids, to describe the events in detail. The check needs only the
//! hint that something changed.

use super::{Context, PolicyRole, Refused, stage};
use crate::{
    config::settings::PolicySource,
    policy::{self, signature::companions},
};
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

/// A copy in progress causes many events: the check waits until there was none for this long ...
const SETTLE_TIME: Duration = Duration::from_millis(15);
/// ... but at most for this many events.
const MAX_SETTLE_EVENTS: u32 = 20;

/// Why the files cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The thread could not be started.
    #[error("the thread that watches policy files could not be started")]
    Thread(#[source] io::Error),
}

/// Watches policy files until it is dropped.
#[derive(Debug)]
pub struct PolicyWatcher {
    stop: Sender<Tick>,
}

/// A message to the watching thread.
#[derive(Debug)]
enum Tick {
    /// A file may have changed.
    Changed,
    /// The watcher was dropped.
    Stop,
}

impl Drop for PolicyWatcher {
    fn drop(&mut self) {
        let _ = self.stop.send(Tick::Stop);
    }
}

/// One file to watch, for one upstream.
#[derive(Debug)]
struct Watched {
    upstream: usize,
    slot: PolicyRole,
    file: PathBuf,
    attention: Attention,
}

/// The last known identity of a file and its companions, and whether it could be read.
#[derive(Debug, Default)]
struct Attention {
    seen: Identities,
    unread: bool,
}

impl Attention {
    /// Whether to read the file: it changed, or could not be read before.
    fn is_due(&self, found: &Identities) -> bool {
        found[0].is_some() && (self.unread || *found != self.seen)
    }

    /// Records a check. Returns whether to report it: a file that stays unreadable is reported once.
    fn record_check(&mut self, found: &Identities, unread: bool) -> bool {
        let news = !(unread && self.unread && *found == self.seen);
        *self = Self { seen: *found, unread };
        news
    }
}

/// A component and its companion files. A refused component is checked again when they change.
type Identities = [Option<Identity>; 4];

/// A file's identity without reading it: device, inode, size, modification time, change time.
pub type Identity = (u64, u64, u64, i128, i128);

impl PolicyWatcher {
    /// Checks all files once, then starts to watch. `poll`: how often to check without an event.
    ///
    /// # Errors
    /// [`WatchError`] if there is no thread. Without file events, the files are polled.
    pub fn start(context: &Arc<Context>, dir: Option<&Path>, poll: Duration) -> Result<Self, WatchError> {
        let mut files = watched(context, dir);
        check_files(context, &mut files);
        let (sender, ticks) = channel();
        let stop = sender.clone();
        let folders: HashSet<PathBuf> =
            files.iter().filter_map(|watched| watched.file.parent().map(Path::to_owned)).collect();
        let created = notify::recommended_watcher(move |_| {
            let _ = sender.send(Tick::Changed);
        });
        let mut watcher = created.inspect_err(|error| tracing::warn!(%error, "policy files are polled")).ok();
        for folder in folders {
            if let Some(watcher) = &mut watcher
                && let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive)
            {
                tracing::warn!(%error, folder = %folder.display(), "policy files are polled");
            }
        }
        let weak = Arc::downgrade(context);
        let run = move || {
            // A panic outside of the contained checks must end only one check, or no policy would ever be loaded again.
            while let Err(panic) = policy::contained(|| watch(&weak, &ticks, &mut files, poll)) {
                tracing::error!(%panic, "the check of policy files failed; it starts again");
                if let Some(context) = weak.upgrade() {
                    context.parts.events.note_seldom("policy-flawed", "policies", || {
                        format!("the check of policy files failed ({panic}); it starts again: report the panic")
                    });
                }
                thread::sleep(poll);
            }
            drop(watcher);
        };
        thread::Builder::new().name("triage-policies".to_owned()).spawn(run).map_err(WatchError::Thread)?;
        Ok(Self { stop })
    }
}

/// The files to watch: a policy's configured file, or `NAME.wasm` in the folder, which replaces the embedded policy of that name.
fn watched(context: &Context, dir: Option<&Path>) -> Vec<Watched> {
    let file = |source: &PolicySource| match source {
        PolicySource::File(path) => Some(path.clone()),
        PolicySource::Embedded(name) => dir.map(|dir| dir.join(format!("{name}.wasm"))),
        // The content of a digest never changes.
        PolicySource::Registry(_) | PolicySource::Builtin => None,
    };
    let mut files = Vec::new();
    for (upstream, serving) in context.upstreams.iter().enumerate() {
        let candidate = serving.settings.candidate.as_ref().map(|candidate| (PolicyRole::Candidate, &candidate.policy));
        for (slot, source) in std::iter::once((PolicyRole::Live, &serving.settings.policy)).chain(candidate) {
            files.extend(file(source).map(|file| Watched { upstream, slot, file, attention: Attention::default() }));
        }
    }
    files
}

fn watch(context: &Weak<Context>, ticks: &Receiver<Tick>, files: &mut [Watched], poll: Duration) {
    loop {
        match ticks.recv_timeout(poll) {
            Ok(Tick::Changed) => {
                for _ in 0..MAX_SETTLE_EVENTS {
                    match ticks.recv_timeout(SETTLE_TIME) {
                        Ok(Tick::Changed) => {}
                        Ok(Tick::Stop) => return,
                        Err(_) => break,
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Tick::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(context) = context.upgrade() else { return };
        check_files(&context, files);
    }
}

fn check_files(context: &Context, files: &mut [Watched]) {
    for watched in files {
        let found = identities(&watched.file);
        #[cfg(test)]
        policy::panic_if_marked("files", &fs::read(&watched.file).unwrap_or_default());
        if !watched.attention.is_due(&found) {
            continue;
        }
        let Some(serving) = context.upstreams.get(watched.upstream) else { continue };
        let staged = stage(serving, watched.slot, &context.parts, &watched.file);
        let unread = staged.as_ref().is_err_and(Refused::may_succeed_later);
        let news = watched.attention.record_check(&found, unread);
        match staged {
            Ok(Some(service)) => serving.put(watched.slot, service),
            Err(refused) if news => serving.refused(refused.event(&watched.file)),
            Ok(None) | Err(_) => {}
        }
    }
}

fn identities(file: &Path) -> Identities {
    let [signature, checksum] = companions(file);
    [identity(file), identity(&file.with_extension("cases.csv")), identity(&signature), identity(&checksum)]
}

/// The identity of a file; none if there is no file.
pub fn identity(file: &Path) -> Option<Identity> {
    let found = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let bytes = time(found.mtime(), found.mtime_nsec());
    Some((found.dev(), found.ino(), found.size(), bytes, time(found.ctime(), found.ctime_nsec())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::{
        Parts,
        admission::Groups,
        clock::Clock,
        config,
        policy::{Engine, signature::Keys},
        registry::{Credentials, Registry},
        rng::Rng,
        telemetry::{self, AllEndpointCounters, Events},
    };

    /// A folder that is watched.
    struct Watching {
        folder: tempfile::TempDir,
        context: Arc<Context>,
        _watch: PolicyWatcher,
    }

    impl Watching {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let toml = format!(
                "[policies]\ncache = false\ndir = \"{}\"\npoll = \"20ms\"\n[upstreams.api]\nbase_url = \"http://127.0.0.1:9\"\n",
                folder.path().display()
            );
            let settings = config::from_toml(&toml).unwrap();
            let (clock, entropy) = (Clock::system(), Rng::seeded(1));
            let events = Arc::new(Events::new(clock));
            let parts = Parts {
                engine: Engine::start().unwrap(),
                keys: Keys::open(&[]).unwrap(),
                registry: Registry::new(Credentials::default(), None),
                gates: Groups::memory(clock, entropy.clone(), Arc::clone(&events)),
                events,
                meters: Arc::new(AllEndpointCounters::new(1)),
            };
            let context = Context::start(&settings, None, parts, clock, &entropy).unwrap();
            let watch =
                PolicyWatcher::start(&context, settings.policies.dir.as_deref(), settings.policies.poll).unwrap();
            Self { folder, context, _watch: watch }
        }

        fn drop_in(&self, bytes: &[u8]) {
            let beside = self.folder.path().join("new.tmp");
            fs::write(&beside, bytes).unwrap();
            fs::rename(beside, self.folder.path().join("http-standard.wasm")).unwrap();
        }

        /// The name of the live policy.
        fn serves(&self) -> String {
            self.context.upstreams[0].current().policy.description().name.clone()
        }

        /// Waits for an event of this kind with this text.
        fn wait_for_event(&self, kind: &str, text: &str) -> telemetry::Event {
            for _ in 0..6000 {
                let events = self.context.parts.events.after(0);
                if let Some(event) = events.into_iter().find(|event| event.kind == kind && event.text.contains(text)) {
                    return event;
                }
                thread::sleep(Duration::from_millis(10));
            }
            panic!("no {kind} with {text:?}: {:?}", self.context.parts.events.after(0));
        }
    }

    /// Panics are caught in the load of a component, in the checks around it, and in the whole check. The live policy goes on, and the next
    /// good file is loaded.
    #[test]
    fn a_load_that_panics_is_an_event_and_the_next_good_file_is_loaded() {
        for (step, kind, text) in [
            ("load", "policy-refused", "made the compiler panic (test-panic:load;)"),
            ("check", "policy-refused", "a check panicked on the component (test-panic:check;)"),
            ("files", "policy-flawed", "the check of policy files failed (test-panic:files;)"),
        ] {
            let watching = Watching::new();
            assert_eq!(watching.serves(), "http-standard");
            watching.drop_in(format!("test-panic:{step};").as_bytes());
            watching.wait_for_event(kind, text);
            assert_eq!(watching.serves(), "http-standard", "{step}");
            watching.drop_in(include_bytes!("../../../../guest-policies/prebuilt/fhir.wasm"));
            watching.wait_for_event("policy-installed", "generation 2");
            assert_eq!(watching.serves(), "fhir", "{step}");
        }
    }

    const fn found(size: u64) -> Identities {
        [Some((1, 1, size, 0, 0)), None, None, None]
    }

    #[test]
    fn an_unreadable_file_is_checked_again_and_reported_once() {
        let mut attention = Attention::default();
        assert!(!attention.is_due(&[None; 4]), "no file");
        assert!(attention.is_due(&found(1)) && attention.record_check(&found(1), true), "reported the first time");
        assert!(attention.is_due(&found(1)), "nothing changed, but it was not read");
        assert!(!attention.record_check(&found(1), true), "and not reported again");
        assert!(attention.record_check(&found(2), true), "unless it changed");
        assert!(attention.is_due(&found(2)) && attention.record_check(&found(2), false), "now it was read");
        assert!(!attention.is_due(&found(2)), "that is done");
        assert!(attention.is_due(&found(3)));
    }
}
