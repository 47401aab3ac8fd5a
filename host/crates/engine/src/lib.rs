//! Policies: WebAssembly components that judge outcomes. The only user of wasmtime.
//!
//! A [`Policy`] is one loaded generation: compiled, linked and described. [`Policy::decide`] is a synchronous call of
//! microseconds, capped at five milliseconds; what it returns is validated here and clamped by `triage_core::retry`.

use triage_bounded_file as bounded_file;
use triage_core::{clock, route};

mod bindings;

pub mod build;
mod builtin;
mod cache;
pub mod compiler;
mod component_info;
mod convert;
mod cpu_budget;
mod engine;
mod epoch_ticker;
pub mod golden_tests;
mod guest_call;
pub mod guest_language;
mod instances;
mod load;
mod nesting_limit;
pub mod prebuilt;
pub mod scaffold;
pub mod signature;
mod store_data;
mod wasi;

pub use builtin::judge as builtin_judge;
pub use cache::{Cache, CacheError, CachePlaces};
pub use cache::{own_folder, private};
pub use compiler::{CompileError, Compiler};
pub use component_info::{Contract, OtherContract, Tier, VERSION};
pub use engine::{Engine, EngineError};
pub use load::contained;
#[cfg(any(test, feature = "panic-injection"))]
pub use load::panic_if_told;
pub use load::{LoadError, LoadOptions};
pub use nesting_limit::TooDeep;
pub use triage_core::{
    contract::{self, hints},
    digest::{Digest, NotADigest},
};

use contract::{Attempt, Description, Outcome, Verdict};
use load::Component;
use std::sync::Arc;

/// The largest component that is read: a Python policy has 18 MB.
pub const COMPONENT_BYTES: u64 = 64 << 20;

/// One loaded policy generation. Cheap to share; a request keeps the one it began with.
#[derive(Debug)]
pub struct Policy {
    description: Description,
    digest: Option<Digest>,
    label: http::HeaderValue,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Builtin,
    Component(Box<Component>),
}

/// How a policy failed to decide. The request falls back to the built-in policy.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The call ran over its time.
    #[error("the policy ran longer than {cap_ms} ms; the call was stopped")]
    Overran {
        /// The cap in milliseconds.
        cap_ms: u64,
    },
    /// The call kept to its time, but the decision with all that it costs did not.
    #[error(
        "a decision took more than {cap_ms} ms of the processor, with making and clearing the policy's instance; let it touch less memory"
    )]
    Costly {
        /// The cap in milliseconds.
        cap_ms: u64,
    },
    /// The call waited for something.
    #[error("the policy waited for something; it must answer at once, the call was stopped")]
    Waited,
    /// The guest trapped, or returned more than the host takes.
    #[error("the policy trapped")]
    Trapped(#[source] wasmtime::Error),
    /// No instance could be made.
    #[error("no instance of the policy could be made")]
    Instantiate(#[source] wasmtime::Error),
    /// `configure` refused on a fresh instance what it took at load.
    #[error("the policy refused its settings: {0}")]
    Configure(String),
    /// The verdict makes no sense.
    #[error("the policy's verdict is invalid: {0}")]
    Invalid(#[from] convert::InvalidVerdict),
}

impl Fault {
    /// The name in headers, logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Overran { .. } | Self::Costly { .. } => "overran",
            Self::Waited => "waited",
            Self::Trapped(_) => "trapped",
            Self::Instantiate(_) => "instantiate",
            Self::Configure(_) => "configure",
            Self::Invalid(_) => "invalid",
        }
    }

    /// The fault with its cause, in a line for operators.
    pub fn told(&self) -> String {
        let cause = std::error::Error::source(self).map(ToString::to_string);
        match (self, cause) {
            // Its message holds the cause already.
            (Self::Invalid(_), _) | (_, None) => self.to_string(),
            (_, Some(cause)) => convert::short(&format!("{self}: {cause}"), 400),
        }
    }
}

impl Policy {
    /// The native policy: RFC 9110 for one catch-all endpoint.
    pub fn builtin() -> Arc<Self> {
        Arc::new(Self {
            description: builtin::description(),
            digest: None,
            label: http::HeaderValue::from_static("builtin"),
            kind: Kind::Builtin,
        })
    }

    /// Compiles, links, describes and configures a component. Takes tens of milliseconds of both cores for a Rust policy:
    /// call it off the request threads.
    ///
    /// # Errors
    /// [`LoadError`] says which step refused the component, why, and what to do.
    pub fn load(engine: &Engine, component: &[u8], loading: &LoadOptions) -> Result<Arc<Self>, LoadError> {
        let digest = Digest::of(component);
        let (component, description) = Component::load(engine, &digest, component, loading)?;
        let label = format!("{};digest={}", description.name, digest.short());
        let label = http::HeaderValue::try_from(label).unwrap_or(http::HeaderValue::from_static("component"));
        Ok(Arc::new(Self { description, digest: Some(digest), label, kind: Kind::Component(Box::new(component)) }))
    }

    /// The component's digest; none for the native policy.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The contract that it was built for; none for the native policy.
    pub fn contract(&self) -> Option<Contract> {
        match &self.kind {
            Kind::Builtin => None,
            Kind::Component(component) => Some(component.contract()),
        }
    }

    /// Where it runs; none for the native policy.
    pub fn tier(&self) -> Option<Tier> {
        match &self.kind {
            Kind::Builtin => None,
            Kind::Component(component) => Some(component.tier()),
        }
    }

    /// What the policy says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Name and digest, as the `triage-policy` response header has them.
    pub fn label(&self) -> &http::HeaderValue {
        &self.label
    }

    /// Judges an outcome. Synchronous: at most five milliseconds, normally microseconds.
    ///
    /// # Errors
    /// [`Fault`] where the guest trapped, overran or returned nonsense; the caller falls back to [`builtin_judge`].
    pub fn decide(&self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) -> Result<Verdict, Fault> {
        match &self.kind {
            Kind::Builtin => Ok(builtin::judge(attempt, outcome)),
            Kind::Component(component) => {
                let interest = self.description.endpoints.get(attempt.endpoint).map(|endpoint| &endpoint.interest);
                component.decide(attempt, outcome, interest)
            }
        }
    }
}
