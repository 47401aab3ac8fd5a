//! Configuration: one TOML file, the environment over it, flags over both.
//!
//! Reading goes in three steps: `layers` puts the sources on top of each other and remembers where each value came from,
//! `read` turns the result into validated [`settings`] and collects every problem on the way, and [`endpoints`] lays the
//! operator's word over what a policy proposes.

mod endpoint;
mod environment;
mod flags;
mod layers;
mod merge;
mod problem;
mod read;
mod section;
pub mod settings;
mod show;
mod upstream;
mod value;

pub use flags::Flags;
pub use layers::Source;
pub use merge::endpoints;
pub use problem::{Problem, Problems};
pub use show::show;

use layers::Layers;
use settings::Settings;

/// All that a configuration is made of. Nothing else is read: no file, no process environment.
#[derive(Debug, Default)]
pub struct Inputs {
    /// The file's name and text.
    pub file: Option<(String, String)>,
    /// Environment variables; those that are not ours are passed over.
    pub environment: Vec<(String, String)>,
    /// The command line.
    pub flags: Flags,
}

/// A configuration that is valid, and where its values came from.
#[derive(Debug)]
pub struct Loaded {
    /// What the host runs on.
    pub settings: Settings,
    layers: Layers,
}

/// Reads a configuration.
///
/// # Errors
/// [`Problems`]: every one, not just the first.
pub fn load(inputs: &Inputs) -> Result<Loaded, Problems> {
    let layers = Layers::stack(inputs)?;
    let settings = read::settings(&layers)?;
    Ok(Loaded { settings, layers })
}

/// Settings from a TOML text alone.
///
/// # Errors
/// [`Problems`] as for [`load`].
pub fn from_toml(text: &str) -> Result<Settings, Problems> {
    let inputs = Inputs { file: Some(("triage.toml".to_owned(), text.to_owned())), ..Inputs::default() };
    load(&inputs).map(|loaded| loaded.settings)
}

/// Default settings for one upstream, as `triage serve --upstream URL --policy NAME` has them.
///
/// # Errors
/// [`Problems`] where the URL or the policy cannot be used.
pub fn for_upstream(base_url: &str, policy: &str) -> Result<Settings, Problems> {
    let flags = Flags { upstream: Some(base_url.to_owned()), policy: Some(policy.to_owned()), ..Flags::default() };
    load(&Inputs { flags, ..Inputs::default() }).map(|loaded| loaded.settings)
}

#[cfg(test)]
mod tests;
