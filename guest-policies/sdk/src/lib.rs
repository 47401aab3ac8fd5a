//! Write a Triage policy in a few lines: the contract's types, the export, and what most policies need.
//!
//! ```
//! use triage_policy::{Attempt, Description, Endpoint, Outcome, Policy, Verdict, retry, verdict::Class};
//!
//! struct Mine;
//!
//! impl Policy for Mine {
//!     type Settings = ();
//!     fn describe() -> Description {
//!         triage_policy::description("mine", "0.1.0", vec![triage_policy::endpoint("any", "*", "/{*rest}")])
//!     }
//!     fn decide(_settings: &(), attempt: &Attempt, outcome: &Outcome) -> Verdict {
//!         match outcome {
//!             Outcome::Response(response) if response.status < 500 => Verdict::deliver(Class::Applied, "fine"),
//!             _ => Verdict::retry(Class::Unknown, 2000, "again"),
//!         }
//!     }
//! }
//! triage_policy::export!(Mine);
//! # fn main() {}
//! ```

pub mod bindings;
#[doc(hidden)]
pub mod panics;
pub mod retry;
pub mod status;
pub mod testing;
pub mod verdict;

pub use bindings::triage::policy::types::{
    Attempt, Defaults, Description, Effect, Endpoint, Failure, FailureKind, Header, HealthCall, Interest, Limit, Next,
    Outcome, Probe, Purpose, Replacement, Response, StatusRange, Verdict,
};
pub use serde;
pub use serde_json as json;

use serde::de::DeserializeOwned;
use std::cell::OnceCell;

/// A policy: what it knows, and how it judges.
pub trait Policy {
    /// The operator's settings; `()` for none. The crate needs no `serde` of its own:
    ///
    /// ```
    /// use triage_policy::serde::{self, Deserialize};
    ///
    /// #[derive(Default, Deserialize)]
    /// #[serde(crate = "triage_policy::serde", default, deny_unknown_fields)]
    /// struct Settings {
    ///     wait_ms: u64,
    /// }
    /// # let _ = Settings::default().wait_ms;
    /// ```
    type Settings: DeserializeOwned + Default + 'static;

    /// Says what the policy is.
    fn describe() -> Description;

    /// Says what the policy is under the operator's settings: they may change times such as `commit_within_ms`. The host asks
    /// once more after `configure` where there are settings. The endpoints stay the same.
    fn describe_configured(_settings: &Self::Settings) -> Description {
        Self::describe()
    }

    /// Judges an outcome.
    fn decide(settings: &Self::Settings, attempt: &Attempt, outcome: &Outcome) -> Verdict;
}

/// Holds an instance's settings. Guests have one thread.
pub struct Kept<T>(OnceCell<T>);

// SAFETY: a component instance is entered by one thread at a time.
unsafe impl<T> Sync for Kept<T> {}

impl<T: Default + DeserializeOwned> Kept<T> {
    /// Nothing kept yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Reads the operator's JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn configure(&self, settings: &str) -> Result<(), String> {
        // The usual case costs no parser: a fresh instance is configured for every request.
        let parsed = if settings.is_empty() || settings == "{}" {
            T::default()
        } else {
            json::from_str(settings).map_err(|error| error.to_string())?
        };
        let _ = self.0.set(parsed);
        Ok(())
    }

    /// The settings, once they were read.
    pub fn configured(&self) -> Option<&T> {
        self.0.get()
    }

    /// The settings.
    pub fn get(&self) -> &T {
        self.0.get_or_init(T::default)
    }
}

impl<T: Default + DeserializeOwned> Default for Kept<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Exports a [`Policy`] as the component's world.
#[macro_export]
macro_rules! export {
    ($policy:ty) => {
        static KEPT: $crate::Kept<<$policy as $crate::Policy>::Settings> = $crate::Kept::new();

        struct Exported;

        impl $crate::bindings::Guest for Exported {
            fn describe() -> $crate::Description {
                match KEPT.configured() {
                    Some(settings) => <$policy as $crate::Policy>::describe_configured(settings),
                    None => <$policy as $crate::Policy>::describe(),
                }
            }
            fn configure(settings: String) -> Result<(), String> {
                // The host configures each fresh instance first.
                #[cfg(target_arch = "wasm32")]
                $crate::panics::keep();
                KEPT.configure(&settings)
            }
            fn decide(attempt: $crate::Attempt, outcome: $crate::Outcome) -> $crate::Verdict {
                <$policy as $crate::Policy>::decide(KEPT.get(), &attempt, &outcome)
            }
        }

        $crate::bindings::export_policy!(Exported with_types_in $crate::bindings);
    };
}

/// A description without a health call.
pub fn description(name: &str, version: &str, endpoints: Vec<Endpoint>) -> Description {
    Description { name: name.to_owned(), version: version.to_owned(), endpoints, health: None }
}

/// An endpoint that reads nothing and proposes nothing; its effect is its method's.
pub fn endpoint(name: &str, method: &str, path: &str) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        method: method.to_owned(),
        path: path.to_owned(),
        effect: match method {
            // The host knows the method of each request and takes the stricter effect.
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "QUERY" | "*" => Effect::Safe,
            "PUT" | "DELETE" => Effect::Idempotent,
            _ => Effect::Unsafe,
        },
        interest: Interest {
            path: false,
            request_headers: Vec::new(),
            request_body_bytes: 0,
            response_headers: Vec::new(),
            response_body_bytes: 0,
        },
        settled: Vec::new(),
        commit_within_ms: None,
        defaults: Defaults {
            attempt_timeout_ms: None,
            deadline_ms: None,
            max_attempts: None,
            limits: Vec::new(),
            concurrency: None,
        },
    }
}

/// The value of a header, by its name in lower case.
pub fn header<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.name == name).map(|header| header.value.as_str())
}
