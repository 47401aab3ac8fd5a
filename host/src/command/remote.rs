//! Access to a running host's admin listener, shared by several commands.

use super::{runtime, variable};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use triage_admin::{Client, ClientError, Shape};
use triage_bounded_file as bounded_file;
use triage_core::secret::Secret;

/// The address and credentials of the admin listener.
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
        help = "A file with the token, if the listener requires one [default: the token in TRIAGE_ADMIN_TOKEN]"
    )]
    token_file: Option<PathBuf>,
}

impl Remote {
    /// Creates the client.
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

    /// Gets the JSON at a path.
    pub fn get(&self, path: &str, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.get(path, shape)).map_err(with_hint)?)
    }

    /// Gets a list and the total number of entries.
    pub fn list(&self, path: &str, shape: Shape) -> Result<(serde_json::Value, Option<u64>)> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.list(path, shape)).map_err(with_hint)?)
    }

    /// Posts to a path without a body.
    pub fn act(&self, path: &str, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.act(path, shape)).map_err(with_hint)?)
    }

    /// Posts a JSON body to a path.
    pub fn act_with(&self, path: &str, body: &serde_json::Value, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.act_with(path, body, shape)).map_err(with_hint)?)
    }

    /// Deletes what is at a path.
    pub fn delete(&self, path: &str, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.delete(path, shape)).map_err(with_hint)?)
    }
}

/// The listener's message names HTTP headers; replaces it with one that names the command's options.
pub fn with_hint(error: ClientError) -> ClientError {
    match error {
        ClientError::Refused { status: 401, .. } => ClientError::Refused {
            status: 401,
            detail: "the host requires a token; give it by TRIAGE_ADMIN_TOKEN or --token-file FILE".to_owned(),
        },
        other => other,
    }
}

/// Encodes a name for a path. An invalid name must not turn into another path.
pub fn segment(name: &str) -> String {
    name.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'), "~")
}
