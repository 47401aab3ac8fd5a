//! Policies: WebAssembly components that classify outcomes. Only this crate uses wasmtime.
//!
//! A [`Policy`] is one loaded generation: compiled, linked and described. [`Policy::decide`] is a synchronous call that takes microseconds
//! and is stopped after 5 ms of processor time. This crate validates the verdict; `triage_core::retry` clamps it.

use triage_bounded_file as bounded_file;
use triage_core::{clock, route};

mod bindings;

pub mod build;
mod builtin;
mod cache;
pub mod compiler;
mod component_facts;
mod component_info;
mod convert;
mod cpu_budget;
mod engine;
mod engine_config;
mod epoch_ticker;
pub mod golden_tests;
mod guest_call;
pub mod guest_language;
mod host_view;
mod instances;
mod load;
mod load_error;
mod nesting_limit;
mod panic_text;
pub mod prebuilt;
pub mod property_check;
pub mod scaffold;
pub mod signature;
mod store_data;
mod wasi;

pub use builtin::judge as builtin_judge;
pub use cache::{Cache, CacheError, CachePaths};
pub use cache::{own_folder, private};
pub use compiler::{CompileError, Compiler};
pub use component_facts::ComponentFacts;
pub use component_info::{Contract, OtherContract, Tier, VERSION};
pub use engine::Engine;
pub use engine_config::EngineError;
pub use load::contained;
#[cfg(any(test, feature = "panic-injection"))]
pub use load::panic_if_marked;
pub use load_error::{LoadError, LoadOptions};
pub use nesting_limit::TooDeep;
pub use panic_text::PanicText;
pub use triage_core::{
    contract::{self, hints},
    digest::{Digest, NotADigest},
};

use contract::{Attempt, Description, Outcome, Verdict};
use load::Component;
use std::sync::Arc;

/// The maximum size of a component's file. A Python policy has 18 MB.
pub const COMPONENT_BYTES: u64 = 64 << 20;

/// One loaded policy generation. Cheap to share. A request keeps the generation with which it began.
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

/// Why a policy made no decision. The request falls back to the built-in policy.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The call exceeded its time limit.
    #[error("the policy ran longer than {cap_ms} ms; the host stopped the call")]
    Overran {
        /// The limit in milliseconds of processor time.
        cap_ms: u64,
    },
    /// The call kept its limit, but the whole decision did not: it includes making and clearing the instance.
    #[error(
        "a decision took more than {cap_ms} ms of processor time, the creation and reset of the policy's instance \
         included; make the policy touch less memory"
    )]
    Costly {
        /// The limit in milliseconds of processor time.
        cap_ms: u64,
    },
    /// The call waited, but a policy must return at once.
    #[error("the policy waited; it must return at once, so the host stopped the call")]
    Waited,
    /// The guest trapped, or returned more than the host accepts.
    #[error("the policy trapped")]
    Trapped(#[source] wasmtime::Error),
    /// The guest panicked. The message names the place alone: the panic's text may quote what the policy was shown.
    #[error("the policy panicked at {}", .0.at)]
    Panicked(PanicText),
    /// The engine could not instantiate the component.
    #[error("the policy could not be instantiated")]
    Instantiate(#[source] wasmtime::Error),
    /// `configure` refused, on a fresh instance, the settings that it accepted at load.
    #[error("the policy refused its settings: {0}")]
    Configure(String),
    /// The verdict failed validation.
    #[error("the policy's verdict is invalid: {0}")]
    Invalid(#[from] convert::InvalidVerdict),
}

impl Fault {
    /// The fault's name in headers, logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Overran { .. } | Self::Costly { .. } => "overran",
            Self::Waited => "waited",
            Self::Trapped(_) | Self::Panicked(_) => "trapped",
            Self::Instantiate(_) => "instantiate",
            Self::Configure(_) => "configure",
            Self::Invalid(_) => "invalid",
        }
    }

    /// The fault, its cause and a panic's text on one line, for the policy's author: the text is of no use to others, and may quote what
    /// the policy was shown.
    pub fn for_author(&self) -> String {
        match self {
            Self::Panicked(panic) => format!("the policy panicked at {panic}"),
            _ => self.with_cause(),
        }
    }

    /// The fault and its cause on one line, for operators.
    pub fn with_cause(&self) -> String {
        let cause = std::error::Error::source(self).map(ToString::to_string);
        match (self, cause) {
            // The message of `Invalid` contains the cause already.
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

    /// Compiles, links, describes and configures a component. A Rust policy takes tens of milliseconds on two cores: call this off the
    /// request threads.
    ///
    /// # Errors
    /// [`LoadError`] names the step that refused the component, the reason and the remedy.
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

    /// The contract for which the component was built; none for the native policy.
    pub fn contract(&self) -> Option<Contract> {
        match &self.kind {
            Kind::Builtin => None,
            Kind::Component(component) => Some(component.contract()),
        }
    }

    /// The tier on which the component runs; none for the native policy.
    pub fn tier(&self) -> Option<Tier> {
        match &self.kind {
            Kind::Builtin => None,
            Kind::Component(component) => Some(component.tier()),
        }
    }

    /// The policy's validated description: its name, endpoints and defaults.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The value of the `triage-policy` response header: name and digest.
    pub fn label(&self) -> &http::HeaderValue {
        &self.label
    }

    /// Classifies an outcome. Blocks for microseconds, at most for the limit of 5 ms of processor time.
    ///
    /// # Errors
    /// [`Fault`] if the guest trapped, exceeded a limit or returned an invalid verdict. The caller falls back to [`builtin_judge`].
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
