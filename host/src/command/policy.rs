//! `triage policy`: create, build, inspect and test policies.

mod announce;
mod bench;
mod push;
mod remote_policy;
mod replay;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};
use triage_bounded_file as bounded_file;
use triage_engine::{
    COMPONENT_BYTES, Contract, Engine, LoadOptions, Policy, Tier, build,
    contract::Endpoint,
    golden_tests,
    guest_language::Language,
    scaffold,
    signature::{self, KeySource, Keys},
};

/// The guest languages, as named on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Lang {
    /// With the SDK: the smallest and fastest
    Rust,
    /// Built by componentize-js
    Js,
    /// Built by componentize-py
    Python,
}

impl From<Lang> for Language {
    fn from(lang: Lang) -> Self {
        match lang {
            Lang::Rust => Self::Rust,
            Lang::Js => Self::JavaScript,
            Lang::Python => Self::Python,
        }
    }
}

/// The subcommands of `triage policy`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a policy that builds, with its cases, in a new folder of that name
    New {
        /// Its name: a-z, 0-9 and '-'
        name: String,
        /// Its language
        #[arg(long, value_enum, default_value_t = Lang::Rust)]
        lang: Lang,
    },
    /// Run a component's cases (NAME.cases.csv beside it) through the engine and print the differences
    Test {
        /// The component
        component: PathBuf,
        /// The cases [default: COMPONENT with .cases.csv in place of .wasm]
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
        /// A JSON table for the policy's `configure`
        #[arg(long, value_name = "JSON", default_value = "{}")]
        settings: String,
    },
    /// Show a component's digest, size, signature, contract, tier and endpoints, and the parts that it reads of each
    Inspect {
        /// The component
        component: PathBuf,
        /// A minisign public key that may have signed it: `RW...`, or a .pub file
        #[arg(long, value_name = "KEY")]
        key: Vec<KeySource>,
    },
    /// Measure a component's decisions: fresh and reused instances, over its cases and usual answers
    Bench {
        /// The component
        component: PathBuf,
        /// Decisions of each kind
        #[arg(short = 'n', long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
        decisions: u32,
    },
    /// Replay a trace of `triage record` through a component and print the verdicts that differ
    Replay(replay::Options),
    /// Publish a component in an OCI registry; hosts name it by its digest, or follow the fleet's announcements
    Push(push::Options),
    /// Build the policy in a folder into a component
    Build {
        /// The policy's folder, with its Cargo.toml, package.json or pyproject.toml
        dir: PathBuf,
        /// The output file [default: DIR/PACKAGE.wasm]
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Build every policy of guest-policies/ into its prebuilt/ folder
    RebuildPrebuilt {
        /// The guest-policies folder
        #[arg(default_value = "guest-policies")]
        dir: PathBuf,
        /// The output folder [default: DIR/prebuilt]
        #[arg(short, long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
    #[command(flatten)]
    Serving(remote_policy::Command),
}

/// Maximum size of a cases file.
const MAX_CASES_BYTES: u64 = 4 << 20;

impl Command {
    /// Runs the subcommand.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Serving(command) => return command.run(),
            Self::New { name, lang } => begin(&name, lang.into())?,
            Self::Test { component, cases, settings } => {
                let cases = cases.unwrap_or_else(|| component.with_extension("cases.csv"));
                let policy = load(&component, settings)?;
                let text = bounded_file::read_text(&cases, MAX_CASES_BYTES)
                    .with_context(|| format!("{} cannot be read", cases.display()))?;
                println!("{} cases pass", golden_tests::play(&policy, &text)?);
            }
            Self::Inspect { component, key } => inspect(&component, &key)?,
            Self::Bench { component, decisions } => print!("{}", bench::run(&component, decisions)?),
            Self::Push(options) => return push::run(&options),
            Self::Replay(options) => return replay::run(&options),
            Self::Build { dir, out } => println!("{}", build::build(&dir, out.as_deref())?),
            Self::RebuildPrebuilt { dir, out } => {
                let out = out.unwrap_or_else(|| dir.join("prebuilt"));
                for built in build::rebuild(&dir, &out)? {
                    println!("{built}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn load(component: &Path, settings: String) -> Result<Arc<Policy>> {
    let bytes = read(component)?;
    let loading = LoadOptions { settings, ..LoadOptions::default() };
    Policy::load(&Engine::start()?, &bytes, &loading).with_context(|| format!("{} is refused", component.display()))
}

fn read(component: &Path) -> Result<Vec<u8>> {
    bounded_file::read(component, COMPONENT_BYTES).with_context(|| format!("{} cannot be read", component.display()))
}

fn begin(name: &str, language: Language) -> Result<()> {
    let folder = scaffold::scaffold(Path::new(""), name, language)?;
    println!("{} holds a working policy; its decisions are in {}. Then:", folder.display(), language.source());
    println!("  triage policy build {name}");
    println!("  triage policy test {name}/{name}.wasm");
    println!("  triage serve --upstream URL --policy {name}/{name}.wasm");
    Ok(())
}

fn inspect(component: &Path, keys: &[KeySource]) -> Result<()> {
    let keys = Keys::open(keys)?;
    let state = signature::state(&keys, component, &read(component)?);
    let policy = load(component, String::new())?;
    let description = policy.description();
    let digest = policy.digest().map_or_else(String::new, |digest| digest.to_string());
    let bytes = fs::metadata(component)?.len();
    println!("{} {}  {bytes} bytes  sha256:{digest}", description.name, description.version);
    let tier = match policy.tier() {
        Some(Tier::Wasi) => "the WASI tier: up to 64 MiB, and a WASI without files, network or environment",
        Some(Tier::Sync) | None => "the fast tier: up to 16 MiB, no imports",
    };
    println!("{state}");
    println!("contract {}, runs on {tier}", policy.contract().map_or("none", Contract::name));
    if let Some(health) = &description.health {
        println!("health call: GET {}", health.path_and_query);
    }
    for endpoint in &description.endpoints {
        let method = endpoint.method.as_ref().map_or("*", |method| method.as_str());
        println!("  {}: {method} {} ({})", endpoint.name, endpoint.path, reads(endpoint));
    }
    Ok(())
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
