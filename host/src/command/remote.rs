//! The way to a running host's admin listener, as commands have it.

use super::{runtime, variable};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use triage::{
    admin::{Client, ClientError},
    bounded_file,
    secret::Secret,
};

/// Where the host is.
#[derive(Debug, clap::Args)]
pub struct Remote {
    #[arg(
        long,
        value_name = "URL",
        help = "The host's admin listener [default: TRIAGE_ADMIN_URL, else http://127.0.0.1:9464]"
    )]
    admin: Option<String>,
    #[arg(
        long,
        value_name = "FILE",
        help = "A file with the token, where the listener wants one [default: the token in TRIAGE_ADMIN_TOKEN]"
    )]
    token_file: Option<PathBuf>,
}

impl Remote {
    /// A caller of it.
    pub fn client(&self) -> Result<Client> {
        let token = match &self.token_file {
            Some(file) => {
                let text =
                    bounded_file::read_secret(file).with_context(|| format!("{} cannot be read", file.display()))?;
                Some(text.trim().to_owned())
            }
            None => variable("TRIAGE_ADMIN_TOKEN"),
        };
        let url = self.admin.clone().or_else(|| variable("TRIAGE_ADMIN_URL"));
        let url = url.unwrap_or_else(|| "http://127.0.0.1:9464".to_owned());
        Ok(Client::new(&url, token.map(|token| Secret::new(token.trim())).as_ref())?)
    }

    /// What a path says.
    pub fn look(&self, path: &str) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.look(path)).map_err(with_hint)?)
    }

    /// What a list says, and how many entries there are in all.
    pub fn list(&self, path: &str) -> Result<(serde_json::Value, Option<u64>)> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.list(path)).map_err(with_hint)?)
    }

    /// Does something.
    pub fn act(&self, path: &str) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.act(path)).map_err(with_hint)?)
    }

    /// Does something that wants to know more.
    pub fn act_with(&self, path: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.act_with(path, body)).map_err(with_hint)?)
    }
}

/// The listener speaks of headers; here a token is given otherwise.
pub fn with_hint(error: ClientError) -> ClientError {
    match error {
        ClientError::Refused { status: 401, .. } => ClientError::Refused {
            status: 401,
            detail: "the host wants a token; give it by TRIAGE_ADMIN_TOKEN or --token-file FILE".to_owned(),
        },
        other => other,
    }
}

/// A name in a path: one that is none must not become another path.
pub fn segment(name: &str) -> String {
    name.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'), "~")
}
