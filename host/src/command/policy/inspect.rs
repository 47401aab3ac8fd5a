//! `triage policy inspect`: shows facts about a component. It compiles nothing, so that it answers at once for any file.

use super::component::{CacheOptions, read};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use triage_engine::{
    CompileError, ComponentFacts, Contract, Digest, LoadError, LoadOptions, Policy, Tier,
    contract::{Description, Endpoint},
    signature::{self, KeySource, Keys},
};

/// The component, and who may have signed it.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The component
    component: PathBuf,
    /// A minisign public key that may have signed it: `RW...`, or a .pub file
    #[arg(long, value_name = "KEY")]
    key: Vec<KeySource>,
    #[command(flatten)]
    cache: CacheOptions,
}

/// Prints the facts. Name and endpoints come from the component itself, so they need its compiled code from the cache.
pub fn run(options: &Options) -> Result<()> {
    let component = &options.component;
    let refused = || format!("{} is refused", component.display());
    let keys = Keys::open(&options.key)?;
    let bytes = read(component)?;
    let state = signature::state(&keys, component, &bytes);
    let facts = ComponentFacts::read(&bytes).with_context(refused)?;
    let engine = options.cache.engine()?.only_cached();
    let policy = match Policy::load(&engine, &bytes, &LoadOptions::default()) {
        Err(LoadError::Compile(CompileError::NotCached)) => None,
        loaded => Some(loaded.with_context(refused)?),
    };
    let name = policy.as_ref().map_or_else(
        || component.display().to_string(),
        |policy| format!("{} {}", policy.description().name, policy.description().version),
    );
    println!("{name}  {} bytes  sha256:{}", bytes.len(), Digest::of(&bytes));
    println!("{state}");
    println!("contract {}, runs on {}", Contract::name(facts.contract), tier(facts.tier));
    if !facts.imports.is_empty() {
        println!("imports {}", facts.imports.join(", "));
    }
    if !facts.missing_exports.is_empty() {
        println!("does not export {}, so no host loads it", facts.missing_exports.join(", "));
    }
    match &policy {
        Some(policy) => described(policy.description()),
        None => println!("name and endpoints: not known before its first `triage policy test`, which compiles it"),
    }
    Ok(())
}

fn tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Wasi => "the WASI tier: up to 64 MiB, and a WASI without files, network or environment",
        Tier::Sync => "the fast tier: up to 16 MiB, no imports",
    }
}

fn described(description: &Description) {
    if let Some(health) = &description.health {
        println!("health call: GET {}", health.path_and_query);
    }
    for endpoint in &description.endpoints {
        let method = endpoint.method.as_ref().map_or("*", |method| method.as_str());
        println!("  {}: {method} {} ({})", endpoint.name, endpoint.path, reads(endpoint));
    }
}

/// Lists the parts of requests and responses that a policy reads for an endpoint.
fn reads(endpoint: &Endpoint) -> String {
    let interest = &endpoint.interest;
    let names =
        |headers: &[http::HeaderName]| headers.iter().map(http::HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let mut reads = Vec::new();
    if interest.path {
        reads.push("the path".to_owned());
    }
    if !interest.request_headers.is_empty() {
        reads.push(format!("request headers {}", names(&interest.request_headers)));
    }
    if interest.request_body_bytes > 0 {
        reads.push(format!("{} bytes of the request", interest.request_body_bytes));
    }
    if !interest.response_headers.is_empty() {
        reads.push(format!("response headers {}", names(&interest.response_headers)));
    }
    if interest.response_body_bytes > 0 {
        reads.push(format!("{} bytes of the response", interest.response_body_bytes));
    }
    let settled = if endpoint.settled.is_empty() { "" } else { "; not called where the status settles the request" };
    format!("reads {}{settled}", if reads.is_empty() { "the status only".to_owned() } else { reads.join(", ") })
}
