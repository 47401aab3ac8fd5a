//! A host that follows its fleet, for one upstream: it beats, stages what is proposed, and swaps with the others.

use super::{
    Outcome, Standing, View, Why, Word,
    course::{Course, Next, Told},
    staging::{self, Unstaged},
};
use crate::{
    clock::Clock,
    config::settings::{PolicySource, Upstream},
    entropy::Entropy,
    pipeline::Shared,
    policy::{Digest, Policy},
    registry::Target,
    rollout::{Serving, Step, told},
    service::{Service, ServiceError},
    store::redis::{
        Link, LinkError, Pushed,
        agreement::{Heard, RedisAgreement},
    },
    telemetry::Events,
};
use parking_lot::Mutex;
use std::{
    sync::{Arc, Weak, mpsc},
    thread,
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast::error::RecvError, oneshot},
    time::{MissedTickBehavior, interval},
};

/// Between two beats: one that missed a message catches up by the next.
const BEAT: Duration = Duration::from_secs(1);
/// To the next one after one that did not arrive.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a start waits to hear what the fleet has: then it begins with its own configuration, and catches up.
const FIRST: Duration = Duration::from_secs(2);
/// How long a start waits for a registry that has to give the fleet's component.
const FIRST_PULL: Duration = Duration::from_secs(10);
/// Steps in a row: a word, a swap, the word that it is done.
const STEPS: usize = 4;

/// An upstream whose policy is the fleet's.
#[derive(Debug)]
pub struct Following {
    upstream: String,
    place: Target,
    agreement: RedisAgreement,
    clock: Clock,
    entropy: Entropy,
    told: Arc<Events>,
    course: Mutex<Course>,
    /// Compiled policies by the digest of their manifests: what serves, what served before, what is proposed.
    shelf: Mutex<Vec<(Digest, Arc<Policy>)>>,
    wake: Arc<Notify>,
    announcing: Arc<Semaphore>,
}

/// Why a component was not announced.
#[derive(Debug, thiserror::Error)]
pub enum NotAnnounced {
    /// Another one is.
    #[error("another component is being announced; `triage policy list` shows it: announce again when that is over")]
    Busy,
    /// There is no way to tell the others.
    #[error("shared state cannot be reached now, and only there can the fleet agree: announce again when it answers")]
    Away(#[source] LinkError),
    /// This host refused it.
    #[error("it was refused at step {}: {reason}; nothing is announced", step.name())]
    Refused {
        /// At which step.
        step: Step,
        /// Why.
        reason: String,
    },
    /// It is there.
    #[error("the fleet's generation {0} is this component already")]
    Serving(u64),
    /// It failed.
    #[error(
        "it was rolled back before; mend it, or say that you want it all the same: `triage policy promote UPSTREAM DIGEST`"
    )]
    Quarantined,
}

/// Why a fleet did not go back.
#[derive(Debug, thiserror::Error)]
pub enum NotRolledBack {
    /// There is no way to tell the others.
    #[error("shared state cannot be reached now, and only there can the fleet agree: ask again when it answers")]
    Away(#[source] LinkError),
    /// There is nothing to go back to.
    #[error("the fleet has no generation before this one; announce a component that serves better")]
    NoOther,
    /// Another one serves by now.
    #[error("the fleet has switched meanwhile; look again: `triage policy list`")]
    Stale,
}

/// How an upstream's fleet stands, for operators.
#[derive(Debug, Clone)]
pub struct Report {
    /// This host's name.
    pub host: String,
    /// How it stands as this host knows it.
    pub standing: Standing,
    /// What was last read.
    pub view: View,
    /// Whether that was just now.
    pub is_current: bool,
    /// Whether another policy serves here than the fleet's.
    pub behind: bool,
    /// Why, where something is in the way.
    pub why_behind: Option<String>,
}

impl Following {
    /// Of an upstream that follows its fleet; none for the others. `host` is this host's name.
    pub fn open(
        settings: &Upstream,
        link: Option<&Link>,
        host: &str,
        (clock, entropy, told): (Clock, Entropy, Arc<Events>),
    ) -> Option<Arc<Self>> {
        let (true, Some(link), PolicySource::Registry(own)) = (settings.follow_fleet, link, &settings.policy) else {
            return None;
        };
        Some(Arc::new(Self {
            upstream: settings.name.clone(),
            place: own.target().clone(),
            agreement: RedisAgreement::new(link.clone(), &settings.name),
            clock,
            entropy,
            told,
            course: Mutex::new(Course::new(host.to_owned(), own.digest())),
            shelf: Mutex::default(),
            wake: Arc::default(),
            announcing: Arc::new(Semaphore::new(1)),
        }))
    }

    /// The first generation of this host: the fleet's, if shared state and registry give it soon, else the configured one. Blocks.
    ///
    /// # Errors
    /// [`ServiceError`] where the configured one is refused.
    pub fn begin(
        self: &Arc<Self>,
        load: impl Fn(&PolicySource, Duration) -> Result<Service, ServiceError>,
        configured: impl Fn() -> Result<Service, ServiceError>,
    ) -> Result<Service, ServiceError> {
        match self.ask_first() {
            Some(Ok(heard)) => {
                let told = self.course.lock().heard(&Word::Beat, &heard, self.clock.now());
                self.tell_all(told);
            }
            Some(Err(error)) => tracing::warn!(upstream = self.upstream, %error, "{UNHEARD}"),
            None => tracing::warn!(upstream = self.upstream, "{UNHEARD}"),
        }
        let elsewhere = self.course.lock().elsewhere();
        let fleets = elsewhere.map(|target| (target, load(&PolicySource::Registry(self.place.at(target)), FIRST_PULL)));
        let service = match fleets {
            None => configured()?,
            Some((_, Ok(service))) => service,
            Some((target, Err(error))) => {
                let why = Unstaged::Away(told(&error));
                let told = self.course.lock().failed(target, why, self.clock.now());
                self.tell_all(told);
                configured()?
            }
        };
        self.shelve(&service);
        let settled = self.course.lock().settle(service.artifact);
        self.tell_all(settled);
        Ok(service)
    }

    /// On the thread beside: this one may be in a runtime already.
    fn ask_first(self: &Arc<Self>) -> Option<Result<Heard, LinkError>> {
        let (answer, answered) = mpsc::sync_channel(1);
        let own = Arc::clone(self);
        self.agreement.link().beside(async move {
            let speaker = own.course.lock().speaker(&[]);
            let heard = own.agreement.say_within(FIRST, &speaker, &Standing::default(), &Word::Beat).await;
            let _ = answer.send(heard);
        });
        answered.recv_timeout(FIRST).ok()
    }

    fn tell_all(&self, told: impl IntoIterator<Item = Told>) {
        for told in told {
            if told.is_good() {
                tracing::info!(upstream = self.upstream, "fleet: {told}");
            } else {
                tracing::warn!(upstream = self.upstream, "fleet: {told}");
            }
            self.told.note(told.kind(), &self.upstream, told.to_string());
        }
    }

    fn shelf(&self) -> Vec<Digest> {
        self.shelf.lock().iter().map(|(digest, _)| *digest).collect()
    }

    /// Keeps what serves at hand, to come back to without any registry.
    fn shelve(&self, service: &Service) {
        if let Some(digest) = service.artifact {
            self.put(digest, Arc::clone(&service.policy));
        }
    }

    fn put(&self, digest: Digest, policy: Arc<Policy>) {
        const MOST: usize = 4;
        let kept = self.course.lock().kept();
        let mut shelf = self.shelf.lock();
        shelf.retain(|(own, _)| *own != digest);
        if shelf.len() >= MOST {
            let spare = shelf.iter().position(|(own, _)| !kept.contains(&Some(*own))).unwrap_or(0);
            shelf.remove(spare);
        }
        shelf.push((digest, policy));
    }

    fn at_hand(&self, digest: Digest) -> Option<Arc<Policy>> {
        self.shelf.lock().iter().find(|(own, _)| *own == digest).map(|(_, policy)| Arc::clone(policy))
    }

    /// Says what there is to say, and does what follows from the answer. Whether shared state was reached.
    async fn turn(self: &Arc<Self>, shared: &Arc<Shared>, upstream: usize) -> bool {
        let Some(serving) = shared.upstreams.get(upstream) else { return true };
        for _ in 0..STEPS {
            let (shelf, artifact) = (self.shelf(), serving.current().artifact);
            let (speaker, known, word) = {
                let course = self.course.lock();
                (course.speaker(&shelf), course.known().clone(), course.word())
            };
            let heard = self.agreement.say(&speaker, &known, &word).await;
            let now = self.clock.now();
            let mut told = Vec::new();
            let next = {
                let mut course = self.course.lock();
                if let Ok(heard) = &heard {
                    told = course.heard(&word, heard, now);
                    told.extend(course.settle(artifact));
                }
                course.next(serving.current().artifact, &shelf, now)
            };
            self.tell_all(told);
            match next {
                Next::Install { digest, promoted } => self.install(shared, serving, digest, promoted),
                Next::Stage { digest, promoted } => self.stage(shared, upstream, digest, promoted, None),
                Next::Rest => {}
            }
            if heard.is_err() {
                return false;
            }
            // What has changed is said at once: others wait for it.
            let (shelf, course) = (self.shelf(), self.course.lock());
            if course.speaker(&shelf) == speaker && course.word() == Word::Beat {
                return true;
            }
        }
        true
    }

    fn install(&self, shared: &Shared, serving: &Serving, digest: Digest, promoted: bool) {
        let Some(policy) = self.at_hand(digest) else { return };
        let component = policy.digest();
        if promoted && let Some(component) = component {
            serving.pardon(&component);
        }
        let made = match component.filter(|component| serving.is_quarantined(component)) {
            Some(_) => Err(Unstaged::Refused(Step::Quarantine, staging::QUARANTINED.to_owned())),
            None => staging::service(shared, serving, &policy),
        };
        let told = match made {
            Ok(service) => {
                self.shelve(&serving.current());
                serving.install(service.from(digest));
                let mut course = self.course.lock();
                course.installed();
                course.settle(Some(digest))
            }
            Err(why) => self.course.lock().failed(digest, why, self.clock.now()),
        };
        self.tell_all(told);
    }

    /// Begins to pull and compile, on a thread of its own. `asked`: who waits for it instead of the fleet.
    fn stage(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        upstream: usize,
        digest: Digest,
        promoted: bool,
        asked: Option<Asked>,
    ) {
        let artifact = self.place.at(digest);
        let mut staging = Staging { following: Arc::downgrade(self), digest, asked, is_fleets: true };
        staging.is_fleets = staging.asked.is_none();
        if staging.is_fleets {
            self.course.lock().begin(digest);
        }
        let (registry, shared) = (shared.registry.clone(), Arc::downgrade(shared));
        let work = move || {
            let checked = staging::pull(&registry, &artifact).and_then(|pulled| {
                // The host may have gone meanwhile.
                let gone = || Unstaged::Away("the host is stopping".to_owned());
                let shared = shared.upgrade().ok_or_else(gone)?;
                let serving = shared.upstreams.get(upstream).ok_or_else(gone)?;
                staging::check(&shared, serving, &pulled, promoted)
            });
            staging.done(checked);
        };
        if let Err(error) = thread::Builder::new().name("triage-staging".to_owned()).spawn(work) {
            tracing::warn!(%error, "a component cannot be staged: there is no thread for it");
        }
    }

    fn staged(&self, digest: Digest, checked: Result<Arc<Policy>, Unstaged>) {
        match checked {
            Ok(policy) => self.put(digest, policy),
            Err(why) => {
                let told = self.course.lock().failed(digest, why, self.clock.now());
                self.tell_all(told);
            }
        }
    }

    /// Announces a component to the fleet, once this host itself could serve it. `promoted`: although it was rolled back before.
    /// Dropping the future announces nothing that was not announced yet.
    ///
    /// # Errors
    /// [`NotAnnounced`]; nothing is announced then.
    pub(crate) async fn announce(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        digest: Digest,
        promoted: bool,
    ) -> Result<(), NotAnnounced> {
        let place = Arc::clone(&self.announcing).try_acquire_owned().map_err(|_| NotAnnounced::Busy)?;
        let own = |serving: &Arc<Serving>| serving.following.as_ref().is_some_and(|own| Arc::ptr_eq(own, self));
        let upstream = shared.upstreams.iter().position(own).ok_or(NotAnnounced::Busy)?;
        if !self.agreement.link().is_up() {
            return Err(NotAnnounced::Away(LinkError::Down));
        }
        self.would(Word::Announce { id: 0, digest, promoted })?;
        if promoted || self.at_hand(digest).is_none() {
            let (answer, answered) = oneshot::channel();
            self.stage(shared, upstream, digest, promoted, Some(Asked { answer, _place: place }));
            let failed = || Unstaged::Away("the thread that staged it failed".to_owned());
            let checked = answered.await.unwrap_or_else(|_| Err(failed()));
            let policy = checked.map_err(|why| {
                let (step, reason) = why.parts();
                NotAnnounced::Refused { step, reason: reason.to_owned() }
            })?;
            self.put(digest, policy);
        }
        let id = self.entropy.next();
        let heard = self.tell(&Word::Announce { id, digest, promoted }).await.map_err(NotAnnounced::Away)?;
        match heard.outcome {
            Outcome::Serving => Err(NotAnnounced::Serving(heard.view.standing.generation)),
            Outcome::Quarantined => Err(NotAnnounced::Quarantined),
            Outcome::Busy => Err(NotAnnounced::Busy),
            Outcome::Done | Outcome::NoOther | Outcome::Stale => Ok(()),
        }
    }

    /// What would come of an announcement, as far as this host knows: nothing is pulled in vain.
    fn would(&self, word: Word) -> Result<(), NotAnnounced> {
        let Word::Announce { digest, promoted, .. } = word else { return Ok(()) };
        let course = self.course.lock();
        let known = course.known();
        if known.chosen == super::Chosen::Artifact(digest) {
            return Err(NotAnnounced::Serving(known.generation));
        }
        if known.quarantined.contains(&digest) && !promoted {
            return Err(NotAnnounced::Quarantined);
        }
        Ok(())
    }

    /// Takes the whole fleet back to the generation before this one, on an operator's word.
    ///
    /// # Errors
    /// [`NotRolledBack`]
    pub async fn roll_back(&self) -> Result<(), NotRolledBack> {
        let generation = self.course.lock().known().generation;
        let word = Word::RollBack { generation, why: Why::Operator };
        let heard = self.tell(&word).await.map_err(NotRolledBack::Away)?;
        match heard.outcome {
            Outcome::Done => Ok(()),
            Outcome::NoOther => Err(NotRolledBack::NoOther),
            _ => Err(NotRolledBack::Stale),
        }
    }

    /// Says one word for an operator; what follows from it is done by the next turn, which comes at once.
    async fn tell(&self, word: &Word) -> Result<Heard, LinkError> {
        let (speaker, known) = {
            let (shelf, course) = (self.shelf(), self.course.lock());
            (course.speaker(&shelf), course.known().clone())
        };
        let heard = self.agreement.say(&speaker, &known, word).await?;
        let told = self.course.lock().heard(word, &heard, self.clock.now());
        self.tell_all(told);
        self.wake.notify_one();
        Ok(heard)
    }

    /// What served failed too often here: the fleet is told.
    pub(in crate::rollout) fn failed_here(&self, artifact: Option<Digest>) {
        if self.course.lock().fault(artifact) {
            self.wake.notify_one();
        }
    }

    /// Whether the fleet has said anything yet.
    pub fn is_told(&self) -> bool {
        self.course.lock().known().generation > 0
    }

    /// How it stands, where `artifact` serves.
    pub fn report(&self, artifact: Option<Digest>) -> Report {
        let course = self.course.lock();
        let (view, is_current) = course.view(self.clock.now());
        Report {
            host: course.host.clone(),
            standing: course.known().clone(),
            view,
            is_current,
            behind: course.behind(artifact),
            why_behind: course.why_behind(),
        }
    }
}

const UNHEARD: &str = "what the fleet's policy is cannot be heard now: the configured one serves, until it can";

/// An operator who waits, and the place that this takes.
#[derive(Debug)]
struct Asked {
    answer: oneshot::Sender<Result<Arc<Policy>, Unstaged>>,
    _place: OwnedSemaphorePermit,
}

/// A component on its way. Whatever becomes of it, the next one may follow.
#[derive(Debug)]
struct Staging {
    following: Weak<Following>,
    digest: Digest,
    asked: Option<Asked>,
    is_fleets: bool,
}

impl Staging {
    fn done(mut self, checked: Result<Arc<Policy>, Unstaged>) {
        match (self.asked.take(), self.following.upgrade()) {
            // Who asked may have gone.
            (Some(asked), _) => drop(asked.answer.send(checked)),
            (None, Some(following)) => following.staged(self.digest, checked),
            (None, None) => {}
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let Some(following) = self.following.upgrade().filter(|_| self.is_fleets) else { return };
        following.course.lock().end();
        following.wake.notify_one();
    }
}

/// Follows the fleet for each upstream that does, on the thread beside, as long as the host lives.
pub(crate) fn start(shared: &Arc<Shared>) {
    for (upstream, serving) in shared.upstreams.iter().enumerate() {
        let Some(following) = &serving.following else { continue };
        let link = following.agreement.link();
        let (wake, message) = (Arc::clone(&following.wake), following.agreement.message());
        link.beside(follow(Arc::downgrade(shared), upstream, wake, link.pushed(), message));
    }
}

async fn follow(
    shared: Weak<Shared>,
    upstream: usize,
    wake: Arc<Notify>,
    mut pushed: tokio::sync::broadcast::Receiver<Pushed>,
    message: String,
) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            _ = beats.tick() => true,
            () = wake.notified() => true,
            heard = pushed.recv() => match heard {
                Ok(Pushed::Message(own)) => *own == *message,
                Err(RecvError::Closed) => return,
                // What was said meanwhile was not heard.
                Ok(Pushed::Joined) | Err(RecvError::Lagged(_)) => true,
            },
        };
        let Some(shared) = shared.upgrade() else { return };
        let following = shared.upstreams.get(upstream).and_then(|serving| serving.following.clone());
        let Some(following) = following.filter(|_| due) else { continue };
        if !following.turn(&shared, upstream).await {
            beats.reset_after(AGAIN);
        }
    }
}
