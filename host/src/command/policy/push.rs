//! `triage policy push`: publishes a component in an OCI registry.

use super::{
    announce,
    component::{CacheOptions, load, read},
};
use crate::command::remote::Remote;
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use triage_engine::{LoadOptions, Policy, golden_tests, signature::companions};
use triage_registry::{Credentials, Publication, Registry, Target};

/// The component and its target.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The component; published with COMPONENT.minisig, if that file exists
    component: PathBuf,
    #[arg(value_name = "oci://HOST/REPOSITORY", help = "The target, with :TAG or tagged by the policy's version")]
    target: Target,
    /// A JSON table for the policy's `configure`, which must accept it
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    #[arg(
        long,
        value_name = "FILE",
        help = "A docker config.json with names and passwords of registries [default: its content in \
                TRIAGE_REGISTRY_AUTH]"
    )]
    auth_file: Option<PathBuf>,
    /// Announce the component to the fleet through a running host: all hosts of this upstream stage it, and switch together
    #[arg(long, value_name = "UPSTREAM")]
    announce: Option<String>,
    #[command(flatten)]
    cache: CacheOptions,
    #[command(flatten)]
    remote: Remote,
}

/// Pushes, prints the reference for the configuration, and announces it if requested.
pub fn run(options: &Options) -> Result<ExitCode> {
    let component = read(&options.component)?;
    // Do not publish a component that no host would load.
    let loading = LoadOptions { settings: options.settings.clone(), ..LoadOptions::default() };
    let policy = load(&options.cache.engine()?, &options.component, &component, &loading)?;
    let cases = cases(&options.component, &policy)?;
    let [signature, _] = companions(&options.component);
    let signature = if signature.exists() {
        Some(fs::read_to_string(&signature).with_context(|| format!("{} cannot be read", signature.display()))?)
    } else {
        None
    };
    let signed = if signature.is_some() { "signed" } else { "not signed" };
    let description = policy.description();
    let publication = Publication {
        target: options.target.clone(),
        component,
        signature,
        cases,
        name: description.name.clone(),
        version: description.version.clone(),
    };
    let published = Registry::new(credentials(options)?, None).publish(&publication)?;
    println!(
        "{} {} is published as {}, {signed}. In the configuration:\n  policy = \"{}\"",
        description.name, description.version, published.tag, published.artifact
    );
    match &options.announce {
        None => Ok(ExitCode::SUCCESS),
        Some(upstream) => announce::run(&options.remote, upstream, "announce", published.artifact.digest()),
    }
}

/// Reads the component's cases, if there are any, and checks that the component passes them. They are published with it.
fn cases(component: &Path, policy: &Policy) -> Result<Option<String>> {
    /// The cases are part of the manifest, and registries accept 4 MiB of that.
    const MAX_CASES_BYTES: usize = 1 << 20;
    let file = component.with_extension("cases.csv");
    if !file.exists() {
        return Ok(None);
    }
    let shown = file.display();
    let text = fs::read_to_string(&file).with_context(|| format!("{shown} cannot be read"))?;
    golden_tests::play(policy, &text).with_context(|| format!("{} does not pass {shown}", component.display()))?;
    ensure!(
        text.len() <= MAX_CASES_BYTES,
        "{shown} has {} bytes; at most {MAX_CASES_BYTES} can be published with a component: shorten it",
        text.len()
    );
    Ok(Some(text))
}

fn credentials(options: &Options) -> Result<Credentials> {
    match (&options.auth_file, crate::command::variable("TRIAGE_REGISTRY_AUTH")) {
        (Some(file), _) => {
            let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
            Ok(Credentials::read(&text, &file.display().to_string())?)
        }
        (None, Some(text)) => Ok(Credentials::read(&text, "TRIAGE_REGISTRY_AUTH")?),
        (None, None) => Ok(Credentials::default()),
    }
}
