//! Helpers for tables of hostile components.

use super::guest::Guest;
use crate::support::stage::Stage;
use triage_engine::Digest;
use triage_rollout::Event;
use triage_upstream_runtime::StagePhase;

/// A name, a component, and the event's step and reason.
pub struct Case(pub &'static str, pub Vec<u8>, pub StagePhase, pub String);

impl Case {
    /// A guest that is refused while loading.
    pub fn load(what: &'static str, guest: &Guest, reason: String) -> Self {
        Self::file(what, guest.build(), reason)
    }

    /// A file that is refused while loading.
    pub fn file(what: &'static str, bytes: Vec<u8>, reason: String) -> Self {
        Self(what, bytes, StagePhase::Load, reason)
    }
}

/// A guest with a broken part, which is refused while loading.
pub fn spoilt(what: &'static str, spoil: impl FnOnce(&mut Guest) -> &mut Guest, reason: String) -> Case {
    let mut guest = Guest::new();
    spoil(&mut guest);
    Case(what, guest.build(), StagePhase::Load, reason)
}

pub fn overran(call: &str) -> String {
    format!(
        "the policy did not return from `{call}`; it must return within 100 ms: remove endless loops and long computations there"
    )
}

pub fn failed(call: &str, cause: &str) -> String {
    format!(
        "the policy failed in `{call}`; it must return a value as defined in wit/, without a trap: correct that function: {cause}"
    )
}

pub const UNREACHABLE: &str = "wasm trap: wasm `unreachable` instruction executed";

/// Drops every component into one host, one after the other.
pub async fn refused(cases: Vec<Case>) {
    let stage = Stage::new(&[]).await;
    let mut wrong = Vec::new();
    for Case(what, bytes, step, reason) in cases {
        stage.drop_in(&bytes);
        let own = Digest::of(&bytes);
        let event = stage
            .until(what, |event| {
                matches!(event, Event::Refused { digest, .. } if digest.is_none_or(|digest| digest == own))
                    || matches!(event, Event::Installed { .. })
            })
            .await;
        let Event::Refused { step: at, reason: text, .. } = &event else { panic!("{what}: {event}") };
        // The offset in the file depends on the encoder.
        let text = text.split(" (at offset").next().unwrap_or_default();
        if (*at, text) != (step, reason.as_str()) {
            wrong.push(format!("{what}:\n     got {text}\n  wanted {reason}"));
        }
        assert_eq!(stage.policy().await, "http-standard", "{what}: the one before serves on");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
